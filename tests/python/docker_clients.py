"""Docker clients for Python that bring conventions of their own: Testcontainers (a reaper, exec, logs, copies) and
python-on-whales (drives docker's command line). Prints one JSON object, so that a run through kfp-creds can be compared
with one at the engine itself.

  DOCKER_HOST=unix://… python docker_clients.py IMAGE [NETWORK-MODE]
"""

import io
import json
import os
import sys
import tarfile

# Its reaper is an image of a registry.
os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"

from python_on_whales import docker  # noqa: E402
from python_on_whales.exceptions import DockerException  # noqa: E402
from testcontainers.core.container import DockerContainer  # noqa: E402
from testcontainers.core.wait_strategies import LogMessageWaitStrategy  # noqa: E402

image, mode = sys.argv[1], (sys.argv[2:] or [None])[0]
results = {}


def step(name):
    def run(work):
        try:
            results[name] = work()
        except Exception as error:  # noqa: BLE001  the other clients are to be seen all the same
            results[name] = f"failed: {type(error).__name__}: {error}"

    return run


def text(pair):
    return [part.decode() if isinstance(part, bytes) else part for part in pair]


@step("testcontainers")
def _():
    container = DockerContainer(image).with_command("sh -c 'echo begun; sleep 60'").with_env("OWN", "1")
    container = container.waiting_for(LogMessageWaitStrategy("begun").with_startup_timeout(20))
    if mode:
        container = container.with_kwargs(network_mode=mode)
    with container as running:
        code, said = running.exec(["sh", "-c", "echo $OWN; exit 3"])
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            about = tarfile.TarInfo("copied")
            about.size = 4
            tar.addfile(about, io.BytesIO(b"text"))
        running.get_wrapped_container().put_archive("/tmp", archive.getvalue())
        return [code, said.decode(), text(running.get_logs()), running.exec(["cat", "/tmp/copied"])[1].decode()]


@step("python-on-whales")
def _():
    networks = [mode] if mode else []
    said = docker.run(image, ["sh", "-c", "echo out"], remove=True, networks=networks)
    streamed = list(docker.run(image, ["sh", "-c", "echo out; echo err >&2"], remove=True, networks=networks, stream=True))
    try:
        docker.run(image, ["sh", "-c", "exit 7"], remove=True, networks=networks)
        code = 0
    except DockerException as error:
        code = error.return_code
    with docker.run(image, ["sleep", "60"], detach=True, remove=True, networks=networks) as running:
        inside = running.execute(["sh", "-c", "echo inside"])
        state = running.state.status
    return [said, sorted([kind, line.decode()] for kind, line in streamed), code, inside, state]


print(json.dumps(results))
