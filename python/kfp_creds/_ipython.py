"""``%load_ext kfp_creds`` and ``%kfp_creds start | status | stop``."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any, NoReturn, Optional

from ._errors import KfpCredsError, UsageError
from ._session import Session, current, start, stop
from ._status import Status

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_USAGE = "%kfp_creds start [--offline] [--all] [--config FILE] [--identity NAME] [--mount SRC:DST] [--listen] | status | stop"


class _Parser(argparse.ArgumentParser):
    """Its errors are exceptions: a kernel does not end for a typing error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def exit(self, status: int = 0, message: Optional[str] = None) -> NoReturn:
        raise UsageError(message or "")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="%kfp_creds", add_help=False, description="credentials for the pipelines of this notebook")
    verbs = parser.add_subparsers(dest="verb", required=True)
    begin = verbs.add_parser("start", add_help=False)
    begin.add_argument("--config")
    begin.add_argument("--identity")
    begin.add_argument("--project")
    begin.add_argument("--credentials-file")
    begin.add_argument("--mount", action="append", dest="mounts", default=[])
    begin.add_argument("--offline", action="store_true")
    begin.add_argument("--all", action="store_true")
    begin.add_argument("--listen", nargs="?", const=True, default=False)
    begin.add_argument("--name")
    verbs.add_parser("status", add_help=False)
    verbs.add_parser("stop", add_help=False)
    return parser


def run(line: str) -> Optional[Status]:
    """What a line of the magic does; the status where there is one to show."""
    known, unknown = _parser().parse_known_args(shlex.split(line))
    if unknown:
        # What was typed may be a secret, and the outputs of a notebook are kept.
        raise UsageError(f"{len(unknown)} of the arguments are not known (not shown): {_USAGE}")
    asked = vars(known)
    verb = asked.pop("verb")
    active: Optional[Session] = current()
    if verb == "stop":
        stop()
        return None
    if verb == "start":
        return start(**asked).status()
    if active is None:
        raise KfpCredsError("no session is active in this kernel: %kfp_creds start")
    return active.status()


def _without_trace(error: KfpCredsError) -> KfpCredsError:
    """The same error as IPython shows it: not at all, for it was printed."""
    kind = type(error)
    quiet = type(kind.__name__, (kind,), {"_render_traceback_": lambda self: []})
    shown: KfpCredsError = quiet(str(error), error.code)
    return shown


def register(shell: "InteractiveShell") -> None:
    def kfp_creds(line: str) -> Any:
        try:
            return run(line)
        except KfpCredsError as error:
            # The line that says what to do, without the trace of this package.
            print(f"kfp-creds: {error}", file=sys.stderr)
            raise _without_trace(error) from None

    kfp_creds.__doc__ = _USAGE
    shell.register_magic_function(kfp_creds, magic_kind="line", magic_name="kfp_creds")
