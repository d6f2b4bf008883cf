"""The verbs of the docker command line, for `matrix.py`. Each gives what was seen."""

import errno
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

from matrix_py import contents

LIMIT = 60
FRAME = struct.pack("HHHH", 33, 99, 0, 0)


class Cli:
    def __init__(self, program, lane):
        self.program, self.lane = program, lane

    def raw(self, *arguments, stdin=b"", environment=()):
        return subprocess.run(
            [self.program, *arguments], input=stdin, capture_output=True, timeout=LIMIT, cwd=self.lane.place,
            env=self.lane.environment() | dict(environment))

    def __call__(self, *arguments, **options):
        done = self.raw(*arguments, **options)
        return {"exit": done.returncode, "out": self.lane.show(done.stdout), "err": self.lane.show(done.stderr)}

    def out(self, *arguments, **options):
        """The trimmed stdout of a success: for steps that another verb is about."""
        done = self.raw(*arguments, **options)
        if done.returncode:
            raise AssertionError(f"{arguments}: {done.stderr.decode()}")
        return done.stdout.decode().strip()

    def started(self, *arguments):
        """Running, its lines to be read from `stdout`."""
        return subprocess.Popen([self.program, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env=self.lane.environment(), cwd=self.lane.place)

    @staticmethod
    def interrupted(told):
        """How it ended by Ctrl-C, and what it said. `stats` of docker 28 goes on until the third."""
        try:
            for _ in range(3):
                told.send_signal(signal.SIGINT)
                try:
                    return {"exit": told.wait(3), "err": told.stderr.read()}
                except subprocess.TimeoutExpired:
                    continue
            raise AssertionError("three times Ctrl-C, and it goes on")
        finally:
            told.kill()
            told.wait()

    def create(self, word, *command, options=()):
        return self.made("create", word, *command, options=options)

    def run_d(self, word, *command, options=()):
        return self.made("run", word, *command, options=("-d", *options))

    def made(self, verb, word, *command, options=()):
        lane = self.lane
        name = lane.named(word)
        self.out(verb, "--name", name, "--network", lane.network, *options, lane.image, *command)
        return name

    def tty(self, *arguments, talk=()):
        """On a terminal of 33 by 99. `talk`: pairs of what to wait for and what to type."""
        return on_terminal(self.program, arguments, self.lane, talk)


def on_terminal(program, arguments, lane, talk=()):
    environment = lane.environment()
    pid, master = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, FRAME)
        os.chdir(lane.place)
        os.execve(program, [program, *arguments], environment)
    return screen(pid, master, list(talk))


def screen(pid, master, talk):
    """Everything that appeared on the terminal, and how the program ended."""
    text, looked, deadline = b"", 0, time.monotonic() + LIMIT
    try:
        while time.monotonic() < deadline:
            while talk and talk[0][0] in text[looked:]:
                looked = len(text)
                os.write(master, talk.pop(0)[1])
            ready, _, _ = select.select([master], [], [], 0.5)
            if not ready:
                continue
            try:
                piece = os.read(master, 65536)
            except OSError as error:
                if error.errno != errno.EIO:  # how Linux says that the other side is closed
                    raise
                break
            if not piece:
                break
            text += piece
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(master)
        _, status = os.waitpid(pid, 0)
    return {"exit": os.waitstatus_to_exitcode(status), "screen": text.decode(errors="replace"), "left to type": len(talk)}


SIZE = "until [ \"$(stty size 2>/dev/null)\" = '33 99' ]; do sleep 0.05; done; tty; echo ready; "


def verbs(program):
    table = []

    def verb(name):
        def add(work):
            table.append((name, lambda lane: work(lane, Cli(program, lane))))
            return work
        return add

    running(verb)
    talking(verb)
    looking(verb)
    changing(verb)
    ending(verb)
    images(verb)
    things(verb)
    return table


def running(verb):
    base = ("run", "--rm", "--network")

    @verb("run")
    def _(lane, docker):
        return docker(*base, lane.network, lane.image, "sh", "-c", "echo out; echo err >&2; exit 7")

    @verb("run --network none")
    def _(lane, docker):
        return docker(*base, "none", lane.image, "sh", "-c", "ip -o link | wc -l; exit 3")

    @verb("run, a command that is not there")
    def _(lane, docker):
        seen = docker(*base, lane.network, lane.image, "/nope")
        # Whether docker 20.10 still gets to say that its wait was broken off is a race with its own end.
        broken_off = 'time="<time>" level=error msg="error waiting for container: context canceled"\n'
        return seen | {"err": seen["err"].replace(broken_off, "")}

    @verb("run -it")
    def _(lane, docker):
        loud = SIZE + "read line; echo got $line; exit 5"
        return docker.tty(*base, lane.network, "-it", lane.image, "sh", "-c", loud, talk=[(b"ready\r\n", b"hello\r")])

    @verb("run -it, Ctrl-C")
    def _(lane, docker):
        loud = "trap 'echo caught; exit 9' INT; " + SIZE + "while :; do sleep 0.1; done"
        return docker.tty(*base, lane.network, "-it", lane.image, "sh", "-c", loud, talk=[(b"ready\r\n", b"\x03")])

    @verb("run -i, 20 MB on stdin")
    def _(lane, docker):
        loud = "sha1sum; echo after; echo err >&2"
        return docker(*base, lane.network, "-i", lane.image, "sh", "-c", loud, stdin=lane.stand.data)

    @verb("run -i, 20 MB in and out")
    def _(lane, docker):
        return docker(*base, lane.network, "-i", lane.image, "cat", stdin=lane.stand.data)

    @verb("run -i, a reader that stops early")
    def _(lane, docker):
        return docker(*base, lane.network, "-i", lane.image, "head", "-c", "4", stdin=b"abcdefgh")

    @verb("run -d, logs, wait, rm")
    def _(lane, docker):
        name = docker.run_d("short", "sh", "-c", "echo done; exit 6")
        return [docker("wait", name), docker("logs", name), docker("wait", name), docker("rm", name)]


def talking(verb):
    @verb("exec")
    def _(lane, docker):
        name = docker.run_d("sleeper", "sleep", "300")
        return docker("exec", name, "sh", "-c", "echo out; echo err >&2; exit 9")

    @verb("exec -it")
    def _(lane, docker):
        loud = SIZE + "read line; echo got $line; exit 5"
        return docker.tty("exec", "-it", lane.named("sleeper"), "sh", "-c", loud, talk=[(b"ready\r\n", b"hello\r")])

    @verb("exec -i, 20 MB on stdin")
    def _(lane, docker):
        return docker("exec", "-i", lane.named("sleeper"), "sh", "-c", "sha1sum; echo after", stdin=lane.stand.data)

    @verb("exec -d")
    def _(lane, docker):
        name = lane.named("sleeper")
        seen = docker("exec", "-d", name, "sh", "-c", "echo here >/data/mark")
        return [seen, docker("exec", name, "sh", "-c", "until [ -s /data/mark ]; do sleep 0.05; done; cat /data/mark")]

    @verb("attach")
    def _(lane, docker):
        name = docker.run_d("hearer", "sh", "-c", "read line; echo heard $line; echo err >&2; exit 4", options=("-i",))
        # Its stdin stays open: the engine ends the output of an attach together with its input.
        told = subprocess.Popen([docker.program, "attach", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env=lane.environment())
        told.stdin.write(b"hello\n")
        told.stdin.flush()
        seen = [told.stdout.read(), told.stderr.read(), told.wait(LIMIT)]
        told.stdin.close()
        return [seen, docker("rm", name)]

    @verb("attach, and detach by its keys")
    def _(lane, docker):
        # The terminal gets its size from whoever attaches.
        loud = SIZE + "while read line; do echo heard $line; done"
        name = docker.run_d("keys", "sh", "-c", loud, options=("-it",))
        seen = docker.tty("attach", name, talk=[(b"ready\r\n", b"one\r"), (b"heard one\r\n", b"\x10\x11")])
        return [seen, docker("inspect", "-f", "{{.State.Running}}", name), docker("rm", "-f", name)]

    @verb("start -ai")
    def _(lane, docker):
        loud = "echo ready; while read line; do echo heard $line; done; exit 4"
        name = docker.create("starter", "sh", "-c", loud, options=("-i",))
        return [docker("start", "-ai", name, stdin=b"one\ntwo\n"), docker("rm", name)]


def looking(verb):
    @verb("logs -f")
    def _(lane, docker):
        name = docker.run_d("writer", "sh", "-c", "echo one; sleep 1; echo two >&2; sleep 1; echo three")
        seen = docker("logs", "-f", name)
        return [seen, docker("logs", "--tail", "1", name), docker("logs", "-t", name), docker("rm", name)]

    @verb("ps")
    def _(lane, docker):
        mine = ("--filter", f"name={lane.named('sleeper')}")
        seen = [docker("ps", *mine), docker("ps", "-aq", *mine), docker("ps", "--no-trunc", *mine)]
        # Columns are as wide as the ages in them.
        return [one | {"out": re.sub(r" {2,}", "  ", one["out"])} for one in seen]

    @verb("inspect")
    def _(lane, docker):
        name = docker.create("looked-at", "sleep", "300", options=("-e", "A=b", "-l", "c=d", "--hostname", "h"))
        seen = json.loads(docker.out("inspect", name))
        seen[0] = lane.without_ours(seen[0])
        return [seen, docker("rm", name), docker("inspect", name)]

    @verb("top")
    def _(lane, docker):
        seen = docker("top", lane.named("sleeper"), "-eo", "pid,args")
        return seen | {"out": re.sub(r"(?m)^(\d+|PID) +", "<pid> ", seen["out"])}

    @verb("stats --no-stream")
    def _(lane, docker):
        seen = docker("stats", "--no-stream", lane.named("sleeper"))
        out = re.sub(r"(?m)[\d.]+ *(?:%|[kKMG]?i?B)(?= |$)|\b\d+ *$", "<n>", seen["out"])
        return seen | {"out": re.sub(r" +", " ", out)}

    @verb("stats, until it is interrupted")
    def _(lane, docker):
        # One more process each half second: a sample that shows another count than the last is a new one.
        name = docker.run_d("growing", "sh", "-c", "while :; do sleep 300 & sleep 0.5; done")
        told = docker.started("stats", name)
        rows, counts = set(), set()
        for line in told.stdout:
            row = re.sub(r"\x1b\[\d*[A-Z]", "", lane.show(line)).strip()
            if row.startswith("<short id>") and not row.endswith("--"):
                counts.add(int(row.split()[-1]))
            rows.add(re.sub(r" +", " ", re.sub(r"[\d.]+ *(?:%|[kKMG]?i?B)(?= |$)|\b\d+ *$", "<n>", row)))
            if len(counts) == 3:
                break
        return [sorted(rows), docker.interrupted(told), docker("rm", "-f", name)]

    @verb("events, until they are interrupted")
    def _(lane, docker):
        name, sleeper = lane.named("live"), lane.named("sleeper")
        told = docker.started(
            "events", "--filter", f"container={name}", "--filter", f"container={sleeper}", "--format",
            "{{.Type}} {{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}}")
        lines, codes = [], []
        for line in lane.lines_of(told.stdout, sleeper):
            if line is None:
                codes.append(docker("run", "--rm", "--name", name, "--network", lane.network, lane.image, "sh", "-c", "exit 8"))
                continue
            lines.append(line)
            if line.startswith(b"container destroy"):
                break
        return [codes, lines, docker.interrupted(told)]

    @verb("events")
    def _(lane, docker):
        name, since = lane.named("eventful"), f"{time.time():.3f}"
        told = subprocess.Popen(
            [docker.program, "events", "--since", since, "--filter", f"container={name}", "--format",
             "{{.Action}} {{.Actor.Attributes.exitCode}}"],
            stdout=subprocess.PIPE, env=lane.environment())
        try:
            code = docker("run", "--rm", "--name", name, "--network", lane.network, lane.image, "sh", "-c", "exit 8")
            lines = []
            for line in told.stdout:  # destroy comes last
                lines.append(line.decode())
                if line.startswith(b"destroy"):
                    return [code, lines]
            return lines
        finally:
            told.terminate()
            told.wait()

    @verb("diff, port")
    def _(lane, docker):
        name = lane.named("sleeper")
        return [sorted(docker.out("diff", name).splitlines()), docker("port", name)]

    @verb("version")
    def _(lane, docker):
        return docker("version", "--format", "{{.Client.Version}} {{.Server.Version}} {{.Server.APIVersion}}")


def changing(verb):
    @verb("cp to a container")
    def _(lane, docker):
        os.makedirs(os.path.join(lane.place, "tree/deep"))
        with open(os.path.join(lane.place, "tree/deep/big"), "wb") as file:
            file.write(lane.stand.data)
        name = lane.named("sleeper")
        seen = docker("cp", "tree", f"{name}:/data/")
        return [seen, docker("exec", name, "sha1sum", "/data/tree/deep/big")]

    @verb("cp from a container")
    def _(lane, docker):
        seen = docker("cp", f"{lane.named('sleeper')}:/data/tree", "back")
        with open(os.path.join(lane.place, "back/deep/big"), "rb") as file:
            return [seen, file.read()]

    @verb("cp, a file that is not there")
    def _(lane, docker):
        return docker("cp", f"{lane.named('sleeper')}:/nothing", "back")

    @verb("pause, unpause")
    def _(lane, docker):
        name = lane.named("sleeper")
        state = ("inspect", "-f", "{{.State.Status}}", name)
        return [docker("pause", name), docker(*state), docker("exec", name, "true"), docker("unpause", name), docker(*state)]

    @verb("rename")
    def _(lane, docker):
        name = docker.create("before", "true")
        after = lane.named("afterw")
        return [docker("rename", name, after), docker("inspect", "-f", "{{.Name}}", after), docker("rm", name), docker("rm", after)]

    @verb("update")
    def _(lane, docker):
        name = lane.named("sleeper")
        seen = docker("update", "--restart", "on-failure:2", name)
        return [seen, docker("inspect", "-f", "{{json .HostConfig.RestartPolicy}}", name), docker("update", "--restart", "no", name)]


def ending(verb):
    @verb("wait")
    def _(lane, docker):
        name = docker.run_d("ending", "sh", "-c", "until [ -e /data/go ]; do sleep 0.05; done; exit 3")
        identity = docker.out("inspect", "-f", "{{.Id}}", name)
        waits = [
            subprocess.Popen([docker.program, "wait", what], stdout=subprocess.PIPE, env=lane.environment())
            for what in (name, identity, identity[:12])
        ]
        docker.out("exec", name, "touch", "/data/go")
        seen = [one.communicate(timeout=LIMIT)[0].decode().replace(identity, "<id>") for one in waits]
        return [seen, docker("wait", name), docker("rm", name)]

    @verb("wait, after its removal")
    def _(lane, docker):
        name = docker.run_d("gone", "sh", "-c", "exit 3")
        return [docker("wait", name), docker("rm", name), docker("wait", name)]

    @verb("kill -s")
    def _(lane, docker):
        loud = "trap 'echo usr1; exit 42' USR1; touch /data/set; while :; do sleep 0.1; done"
        name = docker.run_d("killed", "sh", "-c", loud)
        docker.out("exec", name, "sh", "-c", "until [ -e /data/set ]; do sleep 0.05; done")
        seen = docker("kill", "-s", "USR1", name)
        return [seen, docker("wait", name), docker("logs", name), docker("kill", name), docker("rm", name)]

    @verb("restart")
    def _(lane, docker):
        name = docker.run_d("again", "sh", "-c", "echo hello; [ -e /data/second ] && exit 5; touch /data/second; sleep 300")
        docker.out("exec", name, "sh", "-c", "until [ -e /data/second ]; do sleep 0.05; done")
        seen = docker("restart", "-t", "1", name)
        return [seen, docker("wait", name), docker("logs", name), docker("rm", name)]

    @verb("stop, start, rm -f")
    def _(lane, docker):
        name = lane.named("sleeper")
        state = ("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name)
        steps = [("stop", "-t", "1", name), state, ("start", name), state, ("rm", name), ("rm", "-f", name), ("rm", "-f", name)]
        return [docker(*step) for step in steps]


def images(verb):
    @verb("build, classic")
    def _(lane, docker):
        return build(lane, docker, "0", ())

    @verb("build, BuildKit")
    def _(lane, docker):
        return build(lane, docker, "1", ("-q",))

    @verb("save | load")
    def _(lane, docker):
        tag = f"{lane.name}:saved"
        docker.out("tag", lane.image, tag)
        saved = docker.raw("save", tag)
        removed = docker("rmi", tag)
        return [saved.returncode, contents(saved.stdout, lane.name), removed,
                docker("load", stdin=saved.stdout), docker("images", "--format", "{{.Repository}} {{.Tag}} {{.Size}}", lane.name), docker("rmi", tag)]

    @verb("commit, history, export | import")
    def _(lane, docker):
        name, tag = docker.create("source", "true"), f"{lane.name}:made"
        seen = [docker("commit", "-m", "words", name, tag), docker("history", "-q", tag), docker("rmi", tag)]
        tree = docker.raw("export", name).stdout
        return seen + [len(tree) > 1 << 20, docker("import", "-", tag, stdin=tree), docker("rmi", tag), docker("rm", name)]

    @verb("pull, from a registry that is not there")
    def _(lane, docker):
        seen = docker("pull", "127.0.0.1:9/nothing:1")
        return [seen["exit"], seen["out"]]


def build(lane, docker, kit, options):
    place, tag = os.path.join(lane.place, f"build{kit}"), f"{lane.name}:built"
    os.makedirs(place)
    with open(os.path.join(place, "data"), "wb") as file:
        file.write(lane.stand.data[:3 << 20])
    with open(os.path.join(place, "Dockerfile"), "w", encoding="utf-8") as file:
        file.write(f"FROM {lane.image}\nCOPY data /data/file\nRUN sha1sum /data/file | tee /sum && echo built\n")
    seen = docker("build", "--no-cache", "--network", "none", *options, "-t", tag, place, environment={"DOCKER_BUILDKIT": kit})
    return [seen, docker("run", "--rm", "--pull", "never", "--network", "none", tag, "cat", "/sum"), docker("rmi", "-f", tag)["exit"]]


def things(verb):
    @verb("network create, connect, ls, inspect, disconnect, rm")
    def _(lane, docker):
        network, name = lane.named("net"), docker.create("guest", "true")
        steps = [("network", "create", "--internal", network), ("network", "connect", "--alias", "also", network, name)]
        seen = [docker(*step) for step in steps]
        inspected = json.loads(docker.out("inspect", name))[0]["NetworkSettings"]["Networks"]
        seen.append(sorted(found for found in inspected if not found.startswith("kfp-creds")))
        steps = [
            ("network", "ls", "--filter", f"name={network}"), ("network", "inspect", network),
            ("network", "disconnect", network, name), ("rm", name), ("network", "rm", network), ("network", "inspect", network),
        ]
        return seen + [docker(*step) for step in steps]

    @verb("volume create, ls, inspect, use, rm")
    def _(lane, docker):
        volume = lane.named("vol")
        run = ("run", "--rm", "--network", lane.network, "-v", f"{volume}:/v", lane.image, "sh", "-c")
        steps = [
            ("volume", "create", "--label", "a=b", volume), ("volume", "ls", "--filter", f"name={volume}"),
            ("volume", "inspect", volume), (*run, "echo kept >/v/file"), (*run, "cat /v/file"),
            ("volume", "rm", volume), ("volume", "inspect", volume),
        ]
        return [docker(*step) for step in steps]
