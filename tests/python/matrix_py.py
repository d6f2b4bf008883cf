"""The verbs of docker-py, for `matrix.py`, and attach over a WebSocket, which no client here speaks on a unix socket."""

import base64
import io
import os
import re
import socket
import tarfile
import threading
import time

import docker
import docker.utils.socket


class Py:
    """A client for one verb, as kfp makes one for one task."""

    def __init__(self, lane):
        self.lane = lane
        self.client = docker.DockerClient(base_url=f"unix://{lane.socket}", timeout=60)
        self.api = self.client.api

    def create(self, word, *command, **options):
        return self.client.containers.create(
            self.lane.image, list(command), name=self.lane.named(word), network=self.lane.network, **options)

    def run_d(self, word, *command, **options):
        container = self.create(word, *command, **options)
        container.start()
        return container

    def sleeper(self):
        try:
            return self.client.containers.get(self.lane.named("sleeper"))
        except docker.errors.NotFound:
            return self.run_d("sleeper", "sleep", "300")


def contents(archive, name):
    """What is in the tar file of an image, `name` left out: Engine 28 writes the time of the save to a folder."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {member.name: tar.extractfile(member).read() if member.isfile() else b"" for member in tar}
    return [f"{file} {body.replace(name.encode(), b'<lane>')!r}" for file, body in sorted(files.items())]


def verbs():
    table = []

    def verb(name):
        def add(work):
            def run(lane):
                py = Py(lane)
                try:
                    return work(lane, py)
                finally:
                    py.client.close()

            table.append((name, run))
            return work
        return add

    running(verb)
    looking(verb)
    changing(verb)
    things(verb)
    return table


def failure(work, *arguments, **options):
    try:
        return work(*arguments, **options)
    except docker.errors.APIError as error:
        return [error.status_code, error.explanation]


def tar_of(name, content):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return tar.getvalue()


def drain(stream):
    """What a hijacked socket brings to its end, by stream: how writes were cut into frames is chance."""
    raw = stream._sock
    raw.settimeout(60)
    got = {1: b"", 2: b""}
    for number, piece in docker.utils.socket.frames_iter_no_tty(raw):
        got[number] += piece
    return [got[1], got[2]]


def running(verb):
    @verb("run")
    def _(lane, py):
        options = {"network": lane.network, "remove": True}
        seen = py.client.containers.run(lane.image, ["echo", "out"], **options)
        try:
            py.client.containers.run(lane.image, ["sh", "-c", "echo err >&2; exit 7"], **options)
        except docker.errors.ContainerError as error:
            return [seen, error.exit_status, error.stderr]

    @verb("create, start, logs, wait, remove")
    def _(lane, py):
        container = py.run_d("short", "sh", "-c", "echo one; sleep 0.3; echo two >&2; exit 6")
        lines = b"".join(container.logs(stream=True))
        return [lines, container.wait(), container.logs(stdout=False, stderr=True), container.remove()]

    @verb("attach, 20 MB on stdin")
    def _(lane, py):
        container = py.create("fed", "sh", "-c", "sha1sum; echo after", stdin_open=True)
        stream = container.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
        container.start()
        raw = stream._sock
        raw.sendall(lane.stand.data)
        raw.shutdown(socket.SHUT_WR)
        return [drain(stream), container.wait(), container.remove()]

    @verb("attach, stream of output")
    def _(lane, py):
        container = py.create("shown", "sh", "-c", "echo one; echo two >&2; exit 2")
        stream = container.attach(stream=True, logs=False, stdout=True, stderr=False)
        container.start()
        return [b"".join(stream), container.wait(), container.remove()]

    @verb("attach over a WebSocket")
    def _(lane, py):
        container = py.run_d("web", "sh", "-c", "read line; echo heard $line", stdin_open=True)
        return [websocket(lane.socket, container.id, b"hello\n"), container.wait(), container.remove()]

    @verb("exec")
    def _(lane, py):
        loud = ["sh", "-c", "echo out; echo err >&2; exit 9"]
        container = py.sleeper()
        streamed = list(container.exec_run(["sh", "-c", "echo a; sleep 0.2; echo b"], stream=True).output)
        return [container.exec_run(loud, demux=True), container.exec_run(loud, tty=True), streamed]

    @verb("exec, 20 MB on stdin")
    def _(lane, py):
        container = py.sleeper()
        made = py.api.exec_create(container.id, ["sh", "-c", "sha1sum; echo after"], stdin=True)
        stream = py.api.exec_start(made["Id"], socket=True)
        stream._sock.sendall(lane.stand.data)
        stream._sock.shutdown(socket.SHUT_WR)
        return [drain(stream), py.api.exec_inspect(made["Id"])["ExitCode"]]


def websocket(path, container, line):
    """Attaches by RFC 6455, sends one line, and gives the payload of the frames up to the closing one."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(30)
    stream.connect(path)
    key = base64.b64encode(os.urandom(16)).decode()
    stream.sendall(
        f"GET /v1.41/containers/{container}/attach/ws?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: docker\r\n"
        f"Origin: http://docker\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode())
    file = stream.makefile("rb")
    status = file.readline().decode()
    while file.readline().strip():
        pass
    mask = b"\1\2\3\4"
    stream.sendall(bytes([0x82, 0x80 | len(line)]) + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(line)))
    payload = b""
    while head := file.read(2):
        if head[0] & 15 == 8:
            break
        length = head[1] & 127
        payload += file.read(int.from_bytes(file.read(2), "big") if length == 126 else length)
    stream.close()
    return [status, payload]


def looking(verb):
    @verb("logs, followed")
    def _(lane, py):
        container = py.run_d("writer", "sh", "-c", "echo one; sleep 0.5; echo two; sleep 0.5; echo three")
        lines = list(container.logs(stream=True, follow=True))
        return [lines, container.logs(tail=1), container.logs(timestamps=True), container.wait(), container.remove()]

    @verb("list")
    def _(lane, py):
        found = py.client.containers.list(filters={"name": py.sleeper().name})
        # Other lanes tag the same image for a moment.
        tags = lambda image: [tag for tag in image.tags if not tag.startswith("kcm")]
        return [[one.name, one.status, tags(one.image)] for one in found]

    @verb("inspect")
    def _(lane, py):
        container = py.create("looked-at", "sleep", "300", environment={"A": "b"}, labels={"c": "d"}, hostname="h")
        container.reload()
        return [lane.without_ours(container.attrs), container.remove(), failure(py.client.containers.get, container.id)]

    @verb("top")
    def _(lane, py):
        found = py.sleeper().top(ps_args="-eo pid,args")
        return [found["Titles"], [row[1] for row in found["Processes"]]]

    @verb("stats")
    def _(lane, py):
        found = py.sleeper().stats(stream=False)
        return sorted(key for key in found if key != "networks")

    @verb("stats, streamed")
    def _(lane, py):
        # One more process each half second: a sample that shows another count than the last is a new one.
        container = py.run_d("growing", "sh", "-c", "while :; do sleep 300 & sleep 0.5; done")
        counts, keys, stream = set(), set(), container.stats(stream=True, decode=True)
        for sample in stream:
            counts.add(sample["pids_stats"].get("current"))
            keys |= set(sample) - {"networks"}
            if len(counts) == 3:
                break
        stream.close()
        return [sorted(keys), container.remove(force=True)]

    @verb("events, until they are closed")
    def _(lane, py):
        name, sleeper = lane.named("live"), py.sleeper()
        stream = py.client.events(filters={"container": [name, sleeper.id]}, decode=True)
        told = []
        for event in lane.lines_of(stream, sleeper.id):
            if event is None:
                options = {"name": name, "network": lane.network, "auto_remove": True}
                py.client.containers.create(lane.image, ["sh", "-c", "exit 8"], **options).start()
                continue
            told.append([event["Type"], event["Action"], event["Actor"]["Attributes"].get("exitCode")])
            if event["Type"] == "container" and event["Action"] == "destroy":
                break
        stream.close()
        return told

    @verb("events")
    def _(lane, py):
        name, since = lane.named("eventful"), time.time()
        stream = py.client.events(since=since, filters={"container": name}, decode=True)
        container = py.client.containers.create(lane.image, ["sh", "-c", "exit 8"], name=name, network=lane.network, auto_remove=True)
        container.start()
        told = []
        for event in stream:
            told.append([event["Action"], event["Actor"]["Attributes"].get("exitCode")])
            if event["Action"] == "destroy":
                break
        stream.close()
        return told

    @verb("version, info, ping")
    def _(lane, py):
        return [py.client.version()["ApiVersion"], py.client.info()["ServerVersion"], py.client.ping()]


def changing(verb):
    @verb("put_archive, get_archive")
    def _(lane, py):
        container = py.sleeper()
        content = lane.stand.data
        put = container.put_archive("/data", tar_of("big", content))
        stream, stat = container.get_archive("/data/big")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            back = archive.extractfile("big").read()
        return [put, stat["size"], back, failure(container.get_archive, "/nothing")]

    @verb("pause, unpause, rename, update")
    def _(lane, py):
        container, name = py.sleeper(), lane.named("sleeper")
        seen = [container.pause(), failure(container.exec_run, "true"), container.unpause()]
        return seen + [container.rename(f"{name}2"), container.rename(name), container.update(mem_limit="64m", memswap_limit="64m")]

    @verb("wait")
    def _(lane, py):
        container = py.run_d("ending", "sh", "-c", "until [ -e /data/go ]; do sleep 0.05; done; exit 3")
        seen = {}

        def wait(what, condition=None):
            other = Py(lane)
            seen[f"{what} {condition}"] = other.api.wait(what, timeout=60, condition=condition)
            other.client.close()

        waits = [("id", container.id, None), ("name", container.name, None), ("prefix", container.id[:10], "next-exit")]
        threads = [threading.Thread(target=wait, args=pair[1:]) for pair in waits]
        for thread in threads:
            thread.start()
        time.sleep(2)  # one that asks for the next exit after the last one waits in vain
        container.exec_run(["touch", "/data/go"])
        for thread in threads:
            thread.join()
        return [sorted(map(str, seen.values())), container.wait(), container.remove()]

    @verb("wait, after its removal")
    def _(lane, py):
        container = py.run_d("gone", "sh", "-c", "exit 3")
        return [container.wait(), container.remove(), failure(py.api.wait, container.name)]

    @verb("kill by signal")
    def _(lane, py):
        loud = "trap 'exit 42' USR1; touch /data/set; while :; do sleep 0.1; done"
        container = py.run_d("killed", "sh", "-c", loud)
        container.exec_run(["sh", "-c", "until [ -e /data/set ]; do sleep 0.05; done"])
        return [container.kill("USR1"), container.wait(), failure(container.kill), container.remove()]

    @verb("restart, stop, start, remove")
    def _(lane, py):
        container = py.run_d("again", "sh", "-c", "echo hello; [ -e /data/second ] && exit 5; touch /data/second; sleep 300")
        container.exec_run(["sh", "-c", "until [ -e /data/second ]; do sleep 0.05; done"])
        seen = [container.restart(timeout=1), container.wait(), container.logs()]
        seen += [container.start(), container.wait(), container.stop(), failure(container.remove), failure(container.remove)]
        return seen


def things(verb):
    @verb("build")
    def _(lane, py):
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            lines = f"FROM {lane.image}\nCOPY data /data/file\nRUN sha1sum /data/file >/sum && echo built\n".encode()
            for name, content in (("Dockerfile", lines), ("data", lane.stand.data[:3 << 20])):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        tar.seek(0)
        tag = f"{lane.name}:built"
        image, told = py.client.images.build(
            fileobj=tar, custom_context=True, tag=tag, nocache=True, rm=True, network_mode="none")
        told = [line["stream"] for line in told if "stream" in line]
        sums = py.client.containers.run(tag, ["cat", "/sum"], remove=True, network="none")
        return [told, image.tags, sums, py.client.images.remove(tag, force=True)]

    @verb("save, load, tag, history")
    def _(lane, py):
        tag = f"{lane.name}:saved"
        image = py.client.images.get(lane.image)
        tagged = image.tag(lane.name, "saved")
        saved = b"".join(py.client.images.get(tag).save(named=tag))
        py.client.images.remove(tag)
        loaded = [one.id for one in py.client.images.load(saved)]
        return [tagged, contents(saved, lane.name), loaded, len(image.history()), py.client.images.remove(tag)]

    @verb("commit, export")
    def _(lane, py):
        container = py.create("source", "true")
        image = container.commit(lane.name, "made")
        tree = b"".join(container.export())
        return [image.tags, len(tree) > 1 << 20, py.client.images.remove(image.id), container.remove()]

    @verb("pull, from a registry that is not there")
    def _(lane, py):
        return re.sub(r"127\.0\.0\.1:\d+->", "", str(failure(py.client.images.pull, "127.0.0.1:9/nothing", tag="1")))

    @verb("networks")
    def _(lane, py):
        network = py.client.networks.create(lane.named("net"), internal=True)
        container = py.create("guest", "true")
        network.connect(container, aliases=["also"])
        container.reload()
        found = sorted(name for name in container.attrs["NetworkSettings"]["Networks"] if not name.startswith("kfp-creds"))
        network.reload()
        seen = [found, network.attrs["Internal"], network.disconnect(container), container.remove(), network.remove()]
        return seen + [failure(network.remove)]

    @verb("volumes")
    def _(lane, py):
        volume = py.client.volumes.create(lane.named("vol"), labels={"a": "b"})
        options = {"network": lane.network, "volumes": {volume.name: {"bind": "/v"}}, "remove": True}
        py.client.containers.run(lane.image, ["sh", "-c", "echo kept >/v/file"], **options)
        kept = py.client.containers.run(lane.image, ["cat", "/v/file"], **options)
        return [kept, volume.attrs["Labels"], volume.remove(), failure(volume.remove)]
