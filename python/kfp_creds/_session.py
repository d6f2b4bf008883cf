"""A session: the program, running beside this process, and the variables that lead clients to it."""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections import deque
from types import TracebackType
from typing import Any, Deque, Dict, Iterable, List, Mapping, MutableMapping, Optional, Type, Union

from ._bin import find_bin
from ._errors import KfpCredsError, UsageError, of_exit
from ._status import Status

_log = logging.getLogger("kfp_creds")
_PathLike = Union[str, "os.PathLike[str]"]

#: How long the program may take to end in good order, with its network and relay.
_END_WITHIN = 15.0
#: Sessions of this process that have set variables, by kind: these are the process's own, so there is one of each.
_active: Dict[str, "Session"] = {}
_lock = threading.RLock()
_all: "weakref.WeakSet[Session]" = weakref.WeakSet()


class Session:
    """Containers that this process starts through Docker get credentials, from :meth:`start` to :meth:`stop`.

    ``config``
        A config file; otherwise the ``kfp-creds.toml`` that counts in ``cwd``.
    ``identity``
        For what no rule of the config names: the name of an identity of the config, or the e-mail of a service account
        that your login may impersonate.
    ``mounts``
        ``SRC:DST[:rw]``, each, into every container that gets an identity.
    ``offline``
        Tokens that no cloud accepts, signed with a key made now: for tests and emulators. ``self.jwks`` has its public key.
    ``all``
        An identity for every container, not for kfp tasks alone.
    ``listen``
        No Docker: a metadata server for processes of this machine (``SubprocessRunner``). ``True``, or ``127.0.0.1:PORT``.
        Processes that this one starts find it, and not your login; it is an agreement, and no isolation: a process of yours
        can still read your files.
    ``name``
        The name of the session's socket, see ``kfp-creds serve --help``.
    ``timeout``
        Seconds until it has to be ready. The first start loads the relay's image into the engine.
    """

    def __init__(
        self,
        *,
        config: Optional[_PathLike] = None,
        identity: Optional[str] = None,
        mounts: Iterable[str] = (),
        offline: bool = False,
        all: bool = False,  # noqa: A002  (the program's word)
        project: Optional[str] = None,
        credentials_file: Optional[_PathLike] = None,
        listen: Union[bool, str] = False,
        name: Optional[str] = None,
        cwd: Optional[_PathLike] = None,
        timeout: float = 120.0,
    ) -> None:
        self.kind = "listen" if listen else "docker"
        self._timeout = timeout
        self._cwd = cwd
        self._variables: Dict[str, str] = {}
        arguments: List[str] = []
        if listen:
            arguments += ["--listen", "127.0.0.1:0" if listen is True else listen]
        if config is not None:
            arguments += ["--config", os.fspath(config)]
        if identity is not None and "@" in identity:
            arguments += ["--impersonate", identity]
        elif identity is not None:
            self._variables["KFP_CREDS_DEFAULT"] = identity
        for mount in mounts:
            arguments += ["--mount", mount]
        if project is not None:
            arguments += ["--project", project]
        if credentials_file is not None:
            arguments += ["--credentials-file", os.fspath(credentials_file)]
        if name is not None:
            arguments += ["--name", name]
        arguments += ["--offline"] * offline + ["--all"] * all
        self._arguments = arguments
        self._process: Optional["subprocess.Popen[bytes]"] = None
        self._owner = -1
        self._ready: Dict[str, Any] = {}
        self._before: Dict[str, Optional[str]] = {}
        self._set: Dict[str, Optional[str]] = {}
        self._no_login: Optional[str] = None
        self._said: Deque[str] = deque(maxlen=50)
        self._reader: Optional[threading.Thread] = None

    # What it is

    @property
    def running(self) -> bool:
        """Whether the program runs, and is this process's to stop."""
        return self._process is not None and self._owner == os.getpid() and self._process.poll() is None

    @property
    def environment(self) -> Dict[str, str]:
        """The variables that lead clients to the session."""
        return dict(self._ready.get("environment", {}))

    @property
    def pid(self) -> Optional[int]:
        """Of the program."""
        return self._ready.get("pid")

    @property
    def id(self) -> Optional[str]:
        """Eight hex digits, for ``kfp-creds status --session``; ``None`` without an engine."""
        return self._ready.get("session")

    @property
    def socket(self) -> Optional[str]:
        """Where the Docker API of the session is; ``None`` without an engine."""
        return self._ready.get("socket")

    @property
    def page(self) -> Optional[str]:
        """The address of the status page, with the secret path that gives access to it."""
        return self._ready.get("page")

    @property
    def jwks(self) -> Optional[str]:
        """Where the public keys of an offline session are."""
        return self._ready.get("jwks")

    def status(self) -> Status:
        """Who holds which tokens now."""
        if not self.running:
            raise KfpCredsError("this session does not run")
        if self.kind == "listen":
            return Status(self.kind, self.environment)
        found = json.loads(self._program("status", "--json", "--session", str(self.id)))
        return Status(self.kind, self.environment, found[0] if found else {})

    # Its life

    def start(self, *, set_environment: bool = True) -> "Session":
        """Starts the program, waits until it serves and, unless told otherwise, sets this process's variables."""
        with _lock:
            if self.running:
                if set_environment:
                    self.enter_environment()
                return self
            # What one leaves that ended by itself.
            self.stop()
            if set_environment:
                self._refuse_second()
            self._launch()
            if set_environment:
                self.enter_environment()
        return self

    def stop(self) -> None:
        """Puts the variables back and ends the program. Nothing happens in a process that did not start it."""
        with _lock:
            self.leave_environment()
            process, self._process = self._process, None
            if process is None or self._owner != os.getpid():
                return
            _end(process)
            if self._reader is not None:
                self._reader.join(2)
            _close(process.stderr)
            if self._no_login is not None:
                shutil.rmtree(self._no_login, ignore_errors=True)
                self._no_login = None
            self._ready = {}

    def __enter__(self) -> "Session":
        return self.start()

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"running, pid {self.pid}" if self.running else "not running"
        return f"<kfp_creds.Session {self.kind}: {state}>"

    # This process's variables

    def enter_environment(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Sets the variables of the session; :meth:`leave_environment` puts back what was there."""
        with _lock:
            if self._set:
                return
            if not self._ready:
                raise KfpCredsError("this session does not run: start() it first")
            self._refuse_second()
            changes: Dict[str, Optional[str]] = {name: None for name in self._ready.get("unset", [])}
            changes.update(self.environment)
            if self.kind == "listen":
                changes.update(self._without_login())
            self._before = {name: environ.get(name) for name in changes}
            self._set = changes
            _apply(changes, environ)
            _active[self.kind] = self

    def leave_environment(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Puts back what was there. A variable that somebody else has changed meanwhile is left alone."""
        with _lock:
            ours = [name for name, value in self._set.items() if environ.get(name) == value]
            _apply({name: self._before[name] for name in ours}, environ)
            self._set = {}
            if _active.get(self.kind) is self:
                del _active[self.kind]

    def _without_login(self) -> Dict[str, Optional[str]]:
        """A login file takes precedence over a metadata server in Google's libraries, so processes get a directory without one."""
        if self._no_login is None:
            self._no_login = tempfile.mkdtemp(prefix="kfp-creds-")
        return {"CLOUDSDK_CONFIG": self._no_login}

    def _refuse_second(self) -> None:
        other = _active.get(self.kind)
        if other is not None and other is not self and other.running:
            variable = "GCE_METADATA_HOST" if self.kind == "listen" else "DOCKER_HOST"
            raise UsageError(f"a session is active in this process already: stop it first, because {variable} is the process's own")

    # The program

    def _launch(self) -> None:
        arguments = [find_bin(), "serve", "--json", "--stdin", *self._arguments]
        # A session of its own: the terminal's Ctrl-C is for this process alone.
        process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self._cwd,
            env={**self._environ_before(), **self._variables}, start_new_session=True,
        )
        self._said.clear()
        self._reader = threading.Thread(target=_listen, args=(process, self._said), name="kfp-creds", daemon=True)
        self._reader.start()
        try:
            line = _first_line(process, self._timeout)
        except BaseException:
            _end(process)
            raise
        if not line:
            _close(process.stdin)
            code = process.wait()
            self._reader.join(5)
            _close(process.stderr)
            raise of_exit(code, "\n".join(self._said))
        self._ready = json.loads(line)
        self._process, self._owner = process, os.getpid()
        _all.add(self)

    def _environ_before(self) -> Dict[str, str]:
        """What this process would have without a session of another kind, which would be taken for the machine."""
        environ = dict(os.environ)
        for other in _active.values():
            other_before = {name: other._before[name] for name, value in other._set.items() if environ.get(name) == value}
            _apply(other_before, environ)
        return environ

    def _program(self, *arguments: str) -> str:
        done = subprocess.run(
            [find_bin(), *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            env=self._environ_before(),
        )
        if done.returncode != 0:
            raise of_exit(done.returncode, done.stderr)
        return done.stdout

    def _forget(self) -> None:
        """In a forked child: the other end of the pipe is the parent's alone, and so is the program."""
        if self._process is not None:
            _close(self._process.stdin)


def _apply(changes: Mapping[str, Optional[str]], environ: MutableMapping[str, str]) -> None:
    for name, value in changes.items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value


def _close(pipe: Any) -> None:
    if pipe is not None:
        try:
            pipe.close()
        except OSError:
            pass


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The end of its stdin is what it waits for."""
    _close(process.stdin)
    try:
        process.wait(_END_WITHIN)
    except subprocess.TimeoutExpired:
        _log.warning("kfp-creds did not end within %s s and is killed; its next start removes what is left", _END_WITHIN)
        process.kill()
        process.wait()


def _first_line(process: "subprocess.Popen[bytes]", timeout: float) -> bytes:
    """The first line of stdout; empty where the program ended."""
    lines: "queue.Queue[bytes]" = queue.Queue()
    stdout = process.stdout
    assert stdout is not None

    def read() -> None:
        lines.put(stdout.readline())
        stdout.close()

    threading.Thread(target=read, name="kfp-creds-ready", daemon=True).start()
    try:
        return lines.get(timeout=timeout)
    except queue.Empty:
        raise KfpCredsError(f"kfp-creds was not ready within {timeout:g} s") from None


def _listen(process: "subprocess.Popen[bytes]", said: Deque[str]) -> None:
    """Passes what the program says to the logger ``kfp_creds``: what needs a person as warnings."""
    stderr = process.stderr
    assert stderr is not None
    for raw in stderr:
        line = raw.decode("utf-8", "replace").rstrip("\n")
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or "event" not in event:
            said.append(line)
            _log.info("%s", line)
            continue
        kind = event.pop("event")
        level = logging.WARNING if kind in ("refused", "notice") else logging.INFO
        _log.log(level, "%s", _told(kind, event))


def _told(kind: str, event: Mapping[str, Any]) -> str:
    if kind in ("notice", "progress"):
        return str(event.get("text", ""))
    if kind == "refused":
        return f"refused: {event.get('what')}: {event.get('why')}"
    # As on a terminal: a container ends, and only a person cuts one off.
    words = {"cut-off": "cut off" if event.get("by_hand") else "ended", "ended": "session ended"}
    names = {"cut_off": "ended", "exit_code": "exit code"}
    told = {names.get(name, name): value for name, value in event.items() if value is not None and name != "by_hand"}
    return f"{words.get(kind, kind)}: " + ", ".join(f"{name} {value}" for name, value in told.items())


#: ``with kfp_creds.session(…): my_pipeline()``
session = Session


def start(**options: Any) -> Session:
    """Starts a session that stays until :func:`stop` or the end of this process. The options are those of :class:`Session`."""
    return Session(**options).start()


def stop() -> None:
    """Ends every session that is active in this process."""
    for active in list(_active.values()):
        active.stop()


def current() -> Optional[Session]:
    """The session that is active in this process; of two, that for Docker."""
    return _active.get("docker") or _active.get("listen")


def _end_all() -> None:
    for each in list(_all):
        each.stop()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for each in list(_all):
        each._forget()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
