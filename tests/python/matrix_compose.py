"""The verbs of docker-compose 1.29, for `matrix.py`: one project on an internal network, from up to down."""

import os
import re
import subprocess

from matrix_cli import Cli, on_terminal

LIMIT = 90
PROJECT = """\
version: "2.4"
networks:
  default:
    internal: true
services:
  keeper:
    image: {image}
    command: ["sh", "-c", "echo up; touch /data/up; sleep 300"]
    labels: {{a: b}}
    environment: {{A: b}}
  worker:
    image: {image}
    command: ["sh", "-c", "echo one; sleep 1; echo two; exit 3"]
    depends_on: [keeper]
    volumes: ["kept:/v"]
volumes:
  kept: {{}}
"""

BUILT = """\
version: "2.4"
services:
  made:
    build: {{context: ., network: none}}
    image: {lane}-made
    network_mode: none
"""
ASKS = "until [ \"$(stty size 2>/dev/null)\" != '0 0' ]; do sleep 0.05; done; tty; echo ready; read line; echo got $line; exit 5"


class Compose:
    def __init__(self, program, lane):
        self.program, self.lane = program, lane
        with open(os.path.join(lane.place, "docker-compose.yml"), "w", encoding="utf-8") as file:
            file.write(PROJECT.format(image=lane.image))
        # `exec`, `run` and `build` call a docker command line if they may; these rows are about what compose does itself.
        self.place, self._environment = lane.place, lane.environment() | {"COMPOSE_PROJECT_NAME": lane.name, "COMPOSE_INTERACTIVE_NO_CLI": "1", "COMPOSE_DOCKER_CLI_BUILD": "0"}

    def __call__(self, *arguments, stdin=b""):
        done = subprocess.run(
            [self.program, "--no-ansi", *arguments], input=stdin, capture_output=True, timeout=LIMIT, cwd=self.lane.place,
            env=self._environment)
        return {"exit": done.returncode, "out": self.lane.show(done.stdout), "err": self.lane.show(done.stderr)}

    def environment(self):
        return self._environment

    def inspected(self, service):
        """Straight at the engine: what compose has made."""
        client = self.lane.stand.client
        return client.api.inspect_container(f"{self.lane.name}_{service}_1")


class ByCli:
    """Compose, calling docker's command line."""

    def __init__(self, compose):
        self.place, self._environment = compose.place, compose.environment()

    def environment(self):
        programs = os.path.dirname(os.environ["KFP_CREDS_DOCKER_CLI_28"])
        kept = {name: value for name, value in self._environment.items() if name != "COMPOSE_INTERACTIVE_NO_CLI"}
        return kept | {"PATH": f"{programs}:{kept['PATH']}"}


def without_labels(line):
    """A line of an event, without what a session adds to the labels of a container."""
    return re.sub(r", kfp-creds\.\w+=[^,)]*", "", line)


def verbs(program):
    table = []

    def verb(name):
        def add(work):
            table.append((name, lambda lane: work(lane, Compose(program, lane))))
            return work
        return add

    @verb("config")
    def _(lane, compose):
        return compose("config")

    @verb("up -d")
    def _(lane, compose):
        return compose("up", "-d")

    @verb("up -d, again")
    def _(lane, compose):
        return compose("up", "-d", "keeper")

    @verb("ps, top")
    def _(lane, compose):
        top = compose("top", "keeper")
        top["out"] = re.sub(r"\s+|-{9,}", " ", re.sub(r"\d+", "<n>", top["out"]))
        return [compose("ps", "-q", "keeper"), compose("ps", "keeper"), top]

    @verb("inspect what it made")
    def _(lane, compose):
        seen = lane.without_ours(compose.inspected("keeper"))
        seen["State"]["Pid"] = seen["NetworkSettings"]["SandboxKey"] = "<varies>"
        for endpoint in seen["NetworkSettings"]["Networks"].values():
            endpoint["Aliases"].sort()
            (endpoint.get("DNSNames") or []).sort()
        seen["Config"]["Labels"]["com.docker.compose.config-hash"] = "<of the image's name>"
        return seen

    @verb("logs -f")
    def _(lane, compose):
        return compose("logs", "-f", "worker")

    @verb("exec -T")
    def _(lane, compose):
        # Both streams come out as one; which comes first is chance unless they are apart.
        return compose("exec", "-T", "keeper", "sh", "-c", "echo out; sleep 0.5; echo err >&2; exit 9")

    @verb("exec")
    def _(lane, compose):
        return on_terminal(compose.program, ["exec", "keeper", "sh", "-c", ASKS], compose, [(b"ready", b"hello\r")])

    @verb("run --rm")
    def _(lane, compose):
        # compose 1.29 attaches after the start, and misses what a container says at once.
        return compose("run", "--rm", "--no-deps", "-T", "worker", "sh", "-c", "sleep 1; echo ran; sleep 1; exit 4")

    @verb("run --rm, at a terminal")
    def _(lane, compose):
        # By the docker command line, as compose does unless told otherwise: its own stream of a started container shows
        # nothing, at the engine as well.
        step = ["--no-ansi", "run", "--rm", "--no-deps", "worker", "sh", "-c", ASKS]
        return on_terminal(compose.program, step, ByCli(compose), [(b"ready", b"hello\r")])

    @verb("build")
    def _(lane, compose):
        with open(os.path.join(lane.place, "Dockerfile"), "w", encoding="utf-8") as file:
            file.write(f"FROM {lane.image}\nRUN echo built | tee /word\n")
        with open(os.path.join(lane.place, "build.yml"), "w", encoding="utf-8") as file:
            file.write(BUILT.format(lane=lane.name))
        # A project of its own: what the other one has made would be called orphans.
        own = ("-f", "build.yml", "-p", f"{lane.name}b")
        reads = ("run", "--rm", "-T", "made", "sh", "-c", "sleep 1; cat /word; sleep 1")
        steps = [("build", "--no-cache"), reads, ("down", "--rmi", "all")]
        return [compose(*own, *step) for step in steps]

    @verb("events, until they are interrupted")
    def _(lane, compose):
        told = subprocess.Popen(
            [compose.program, "--no-ansi", "events"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, cwd=lane.place, env=compose.environment())
        lines, steps = [], []
        for line in lane.lines_of(told.stdout, f"{lane.name}_keeper_1"):
            if line is None:
                steps.append(compose("restart", "-t", "0", "keeper"))
                continue
            lines.append(without_labels(lane.show(line)))
            if " container restart " in lines[-1]:
                break
        # Of a restart the engine tells `die` and `stop` in either order.
        return [steps, sorted(lines), Cli.interrupted(told)]

    @verb("restart, pause, unpause, kill, stop, rm")
    def _(lane, compose):
        steps = [("restart", "-t", "1", "keeper"), ("pause", "keeper"), ("unpause", "keeper"),
                 ("kill", "-s", "KILL", "keeper"), ("stop", "-t", "1", "keeper"), ("rm", "-f", "keeper")]
        return [compose(*step) for step in steps]

    @verb("up, to the end of a service")
    def _(lane, compose):
        return compose("up", "--no-deps", "--exit-code-from", "worker", "worker")

    @verb("down -v")
    def _(lane, compose):
        return compose("down", "-v", "-t", "1")

    return table
