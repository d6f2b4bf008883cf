"""Docker clients, verb by verb: straight at the engine and through sessions' proxies, observed in the same words.

    matrix.py --column direct=SOCKET --column proxied=SOCKET --column attached=SOCKET

Every client runs every verb once for each column. What a person or program could see (exit code, stdout, stderr, files
that came back) is normalised as little as possible (ids, addresses, times, pids, the lane's own names) and hashed. In
the column `attached` the additions of a session, and nothing else, are taken out of what `inspect` shows.

Containers of the columns that are not attached could reach out, so all are on an internal network, or on none.
Clients come from KFP_CREDS_DOCKER_CLI_28, KFP_CREDS_DOCKER_CLI_20, KFP_CREDS_DOCKER_COMPOSE and docker-py from this
interpreter; one that is missing ends the program with exit code 2. Prints one JSON object.
"""

import argparse
import concurrent.futures
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback

import docker

import matrix_cli
import matrix_compose
import matrix_py

CLI = {"docker 28": "KFP_CREDS_DOCKER_CLI_28", "docker 20.10": "KFP_CREDS_DOCKER_CLI_20"}
COMPOSE = "KFP_CREDS_DOCKER_COMPOSE"
MAGIC = ("metadata.google.internal", "metadata", "metadata.goog")
OURS = ("GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT", "CPL_MACHINE_IS_GCE", "NO_PROXY", "no_proxy",
        "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_QUOTA_PROJECT")


def shown(value):
    """Bytes as text, or what they are known by."""
    if not isinstance(value, bytes):
        return str(value)
    if len(value) < 65536 and all(byte >= 9 for byte in value):
        return value.decode(errors="replace")
    return f"{len(value)} bytes {hashlib.sha256(value).hexdigest()}!"


class Lane:
    """One client at one socket: its names, its scratch folder, what it saw."""

    def __init__(self, stand, client, column, socket):
        self.stand, self.client, self.column, self.socket = stand, client, column, socket
        self.network, self.image = stand.network, stand.image
        # Of one length, because tables are as wide as their longest name.
        self.name = f"kcm{stand.stamp}{len(stand.lanes):02}"
        self.place = os.path.join(stand.place, self.name)
        os.makedirs(self.place)
        self.seen, self.errors, self.seconds = {}, {}, {}
        stand.lanes.append(self)

    def named(self, word):
        return f"{self.name}-{word}"

    def environment(self):
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        # No probing of metadata by any library on the host, and no plug-ins or settings of the developer's.
        kept |= {"NO_GCE_CHECK": "true", "GCE_METADATA_HOST": "127.0.0.1:9", "GCE_METADATA_IP": "127.0.0.1:9"}
        return kept | {"HOME": self.place, "DOCKER_HOST": f"unix://{self.socket}", "TERM": "dumb"}

    def show(self, value):
        """`value` as text in which nothing is left that differs between two honest runs."""
        if isinstance(value, bytes):
            value = shown(value)
        if not isinstance(value, str):
            value = json.dumps(value, indent=1, sort_keys=True, default=shown)
        return self.plain(value)

    def plain(self, text):
        text = text.replace(self.socket, "<socket>").replace(self.place, "<place>").replace(self.name, "<lane>")
        text = text.replace(self.image, "<image>").replace(self.network, "<network>")
        text = re.sub(r"\b(sha256:)?[0-9a-f]{64}\b(?!!)", "<id>", text)
        # How many of an image's layers go with it depends on what other lanes have at that moment.
        text = re.sub(r"(Deleted: <id>\n)+", "Deleted: <id>\n", text)
        text = re.sub(r"\b[0-9a-f]{12}\b", "<short id>", text)
        text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?[+-]\d\d:?\d\d [A-Z]{3}|Z)?", "<time>", text)
        text = re.sub(r"\b(?:\d{1,3}\.){3}\d{1,3}\b(/\d+)?", "<address>", text)
        text = re.sub(r"\bexecDuration=\d+", "execDuration=<seconds>", text)
        text = re.sub(r'("IPPrefixLen": )\d+', r"\1<bits>", text)
        text = re.sub(r"\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b", "<mac>", text)
        text = re.sub(r"\b(About |Less than )?(an?|\d+) (second|minute|hour)s?( ago)?\b *", "<ago> ", text)
        return text

    def verb(self, name, work):
        """Runs one verb. What it raises is what was seen: a client's own error differs or does not."""
        began = time.monotonic()
        try:
            self.seen[name] = self.show(work(self))
        except Exception as error:  # every failure is a row of the table
            self.seen[name] = self.plain(f"{type(error).__name__}: {error}")
            self.errors[name] = traceback.format_exc()
        self.seconds[name] = round(time.monotonic() - began, 1)
        if self.stand.loud:
            print(f"{self.client:13} {self.column:9} {self.seconds[name]:5} s  {name}", file=sys.stderr)

    def lines_of(self, stream, container):
        """What a stream of events brings, line by line, from when it is known to live.

        A stream that has been asked for hears nothing until the engine has it on its list, so `container` is nudged until
        the first line comes; the nudges themselves are left out."""
        alive = threading.Event()

        def nudge():
            client = docker.DockerClient(base_url=f"unix://{self.stand.engine}", timeout=60)
            while not alive.wait(0.1):
                client.api.exec_create(container, "nudge")
            client.close()

        nudges = threading.Thread(target=nudge, daemon=True)
        nudges.start()
        try:
            for line in stream:
                if not alive.is_set():
                    alive.set()
                    nudges.join()
                    yield None
                if "nudge" not in str(line):
                    yield line
        finally:
            alive.set()

    def without_ours(self, inspected):
        """The inspected container without what the session added; a difference that is left is a fault."""
        if self.column != "attached":
            return inspected
        config, host = inspected["Config"], inspected["HostConfig"]
        added = [entry for entry in config["Env"] if entry.split("=")[0] in OURS]
        if not {"GCE_METADATA_HOST", "GCE_METADATA_IP"} <= {entry.split("=")[0] for entry in added}:
            raise AssertionError("this column is for containers that are attached")
        config["Env"] = [entry for entry in config["Env"] if entry not in added]
        for label in ("kfp-creds.session", "kfp-creds.mode", "kfp-creds.role"):
            config["Labels"].pop(label)
        host["ExtraHosts"] = [entry for entry in host["ExtraHosts"] if entry.split(":")[0].rstrip(".") not in MAGIC] or None
        host["CapDrop"] = [name for name in host["CapDrop"] if name != "NET_RAW"] or None
        networks = inspected["NetworkSettings"]["Networks"]
        for name in [name for name in networks if name.startswith("kfp-creds")]:
            del networks[name]
        return inspected


class Stand:
    """What all lanes share: the image, the network, the folder."""

    def __init__(self, engine, loud):
        self.engine, self.lanes, self.loud = engine, [], loud
        self.stamp = f"{os.getpid() % 1000:03}"
        self.place = tempfile.mkdtemp(prefix="kcm-")
        self.client = docker.DockerClient(base_url=f"unix://{engine}", timeout=120)
        self.image, self.network = f"kfp-creds-matrix:{self.stamp}", f"kcm{self.stamp}net"
        self.data = hashlib.shake_256(b"kfp-creds").digest(20 << 20)

    def raise_up(self):
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            archive.add("/bin/busybox", "bin/busybox")
            applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, check=True, text=True).stdout
            for applet in applets.split():
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                if applet != "busybox":
                    archive.addfile(link)
            for folder in ("tmp", "data", "etc"):
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o777
                archive.addfile(entry)
        repository, tag = self.image.split(":")
        self.client.api.import_image_from_data(
            tar.getvalue(), repository, tag, changes=["ENV PATH=/bin", 'CMD ["true"]'])
        self.client.networks.create(self.network, internal=True)

    def tear_down(self):
        """Only what carries this run's names."""
        def quietly(work, *args, **kwargs):
            try:
                work(*args, **kwargs)
            except docker.errors.APIError:
                pass

        mine = f"kcm{self.stamp}"
        for found in self.client.api.containers(all=True, filters={"name": mine}):
            quietly(self.client.api.remove_container, found["Id"], force=True, v=True)
        for network in self.client.networks.list(names=[mine]):
            quietly(network.remove)
        for volume in self.client.volumes.list(filters={"name": mine}):
            quietly(volume.remove)
        for image in self.client.images.list():
            for tag in image.tags:
                if tag.startswith(mine) or tag == self.image:
                    quietly(self.client.images.remove, tag, force=True)
        self.client.close()
        shutil.rmtree(self.place, ignore_errors=True)


def clients():
    """Every client with its version and its verbs; exits when one is missing."""
    found, missing = {}, []
    for name, variable in CLI.items():
        program = os.environ.get(variable)
        if not program or not shutil.which(program):
            missing.append(variable)
            continue
        version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"version (\S+?),", version).group(1)
        if not version.startswith(name.split()[1]):
            missing.append(f"{variable} (is {version})")
        found[name] = (version, matrix_cli.verbs(program))
    found["docker-py 7"] = (docker.__version__, matrix_py.verbs())
    program = os.environ.get(COMPOSE)
    if program and shutil.which(program):
        version = subprocess.run([program, "version", "--short"], capture_output=True, text=True).stdout.strip()
        found["compose 1.29"] = (version, matrix_compose.verbs(program))
    else:
        missing.append(COMPOSE)
    if missing:
        print(f"missing clients: {', '.join(missing)}", file=sys.stderr)
        sys.exit(2)
    return found


def column(text):
    name, _, socket = text.partition("=")
    return name, socket


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--column", type=column, action="append", required=True, metavar="NAME=SOCKET")
    options.add_argument("--only", help="verbs whose name holds this text")
    options.add_argument("--client", help="clients whose name holds this text")
    options.add_argument("--parallel", type=int, default=8)
    options.add_argument("--loud", action="store_true", help="a line for each verb, on stderr")
    given = options.parse_args()
    # What was made is removed however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    columns = dict(given.column)
    found = {name: entry for name, entry in clients().items() if (given.client or "") in name}
    stand = Stand(columns["direct"], given.loud)

    stopped = threading.Event()

    def walk(lane, verbs):
        for name, work in verbs:
            if (given.only or "") in name and not stopped.is_set():
                lane.verb(name, work)

    try:
        stand.raise_up()
        lanes = [(Lane(stand, client, name, socket), verbs)
                 for client, (_, verbs) in found.items() for name, socket in columns.items()]
        with concurrent.futures.ThreadPoolExecutor(given.parallel) as pool:
            try:
                for done in [pool.submit(walk, *lane) for lane in lanes]:
                    done.result()
            finally:
                stopped.set()
    finally:
        stand.tear_down()
    rows = [row(client, name, stand.lanes) for client, (_, verbs) in found.items() for name, _ in verbs
            if (given.only or "") in name]
    print(json.dumps({"clients": {name: version for name, (version, _) in found.items()}, "rows": rows}, indent=1))


def row(client, verb, lanes):
    seen = {lane.column: lane.seen[verb] for lane in lanes if lane.client == client}
    errors = [f"{lane.column}: {lane.errors[verb]}" for lane in lanes if lane.client == client and verb in lane.errors]
    digest = {column: hashlib.sha256(text.encode()).hexdigest() for column, text in seen.items()}
    seconds = {lane.column: lane.seconds[verb] for lane in lanes if lane.client == client}
    return {"client": client, "verb": verb, "hashes": digest, "seen": seen, "errors": errors, "seconds": seconds}


if __name__ == "__main__":
    main()
