"""Clients of AWS and Azure under every condition, in one network namespace; prints what came of it as JSON.

    .work/venv/bin/python tests/python/clients/clouds.py --program PATH [--only TEXT] [--condition NAME] [--loud]

The namespace has a loopback device and nothing else, so no client can reach a metadata service of this machine. In it
are the program under test, moto and azurite (`cloud_parts.py`), and between each client and the program a proxy that
makes faults (`cloud_faults.py`). A client gets the variables that `serve --listen` printed, with that proxy in place
of the program, and where moto and azurite are.

What a cloud that the identity does not have looks like is tried at 169.254.169.254, where clients look by themselves.
"""

import argparse
import concurrent.futures
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time

from cloud_faults import CloudFaults
from cloud_parts import AWS_ACCOUNT, BLOB_ACCOUNT, FORBIDDEN, REGION, RESOURCE_MANAGER, ROLE, Clouds, role_arn
from cloud_table import ADDRESS, CLIENTS, CONTAINER, IMDS
from faults import METADATA
from names import serve_dns
from stage import alone, carry, ip, mount_over
from table import PROGRAMS

CONDITIONS = ("normal", "503", "slow", "near", "refused", "absent")
CONTENT, STORAGE, MANAGEMENT = "written and read", "https://storage.azure.com", "https://management.core.windows.net"
RESOURCE_MANAGER_AT = ("127.0.0.3", 443)
ASSUMED = re.compile(rf"arn:aws:sts::{AWS_ACCOUNT}:assumed-role/{ROLE}/[\w+=,.@-]{{2,64}}")
# Most of the time clients sleep; with more at a time those with short time-outs would feel it.
PARALLEL = 6
PATIENCE = 60


def cloud_of(client):
    return "aws" if client["form"] in (CONTAINER, IMDS) and "zure" not in client["name"] else "azure"


def way_in(folder, to):
    """A socket by whose path another network namespace reaches `to`."""
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with socket.create_connection(to) as inner:
                back = threading.Thread(target=carry, args=(inner, self.request), daemon=True)
                back.start()
                carry(self.request, inner)
                back.join()

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    path = tempfile.mktemp(prefix="way-", dir=folder)
    threading.Thread(target=Server(path, Handler).serve_forever, daemon=True).start()
    return path


class Ended(Exception):
    """The program ended at its start: whose, its exit code and what it said."""


class Program:
    """`serve --listen` of the program under test with one identity; `environment` is what it printed."""

    def __init__(self, path, folder, name, clouds, identity, *flags):
        place = folder / name
        place.mkdir()
        parts = set(re.findall(r"identity\.default\.(\w+)\]", identity))
        # Not `offline`: that would make AWS's sessions here, too, and moto would know none of them.
        (place / "token.json").write_text(json.dumps({
            "version": 1, "success": True, "token_type": "urn:ietf:params:oauth:token-type:access_token",
            "access_token": "of-no-cloud-and-of-the-right-length", "expiration_time": int(time.time()) + 3600}))
        config = (f'credentials = {{ exec = ["cat", "{place}/token.json"] }}\nproject = "own-project"\n[endpoints]\n'
                  f'aws_sts = "http://{clouds.environment["S3"]}"\n'
                  + (f'[aws]\ncredentials = "environment"\nregion = "{REGION}"\n' if "aws" in parts else "")
                  + ('[azure]\ncredentials = "offline"\n' if "azure" in parts else "") + identity)
        # The user's own file: one beside a project may name no endpoints.
        (place / "kfp-creds.toml").write_text(config, encoding="utf-8")
        self.log = place / "program.log"
        self.child = subprocess.Popen(
            [path, "serve", "--listen", "127.0.0.1:0", "--json", *flags, "--config", "kfp-creds.toml"], cwd=place,
            env={"HOME": str(place), "PATH": os.environ["PATH"], **clouds.keys}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=open(self.log, "wb"), text=True)
        line = self.child.stdout.readline()
        if not line:
            self.stop()
            raise Ended(name, self.child.returncode, self.log.read_text())
        self.environment = json.loads(line)["environment"]

    @property
    def address(self):
        """Where it listens, said by any of the variables."""
        for value in self.environment.values():
            if found := re.match(r"(?:http://)?127\.0\.0\.1:(\d+)(?:/|$)", value):
                return "127.0.0.1", int(found.group(1))
        log = self.log.read_text()
        return "127.0.0.1", int(re.search(r"127\.0\.0\.1:(\d+)", log).group(1))

    def stop(self):
        self.child.terminate()
        try:
            self.child.wait(5)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class Stage:
    """Everything that a client can reach."""

    def __init__(self, program, folder):
        self.folder = folder
        self.clouds = Clouds(folder)
        aws = f'[identity.default.aws]\nrole = "{role_arn(ROLE)}"\n'
        azure = f'[identity.default.azure]\nresources = ["{STORAGE}", "{MANAGEMENT}"]\n'
        both = aws + azure
        vault = '[identity.default.azure]\nresources = ["https://vault.azure.net"]\n'
        serve_resource_manager(folder)
        self.programs = []

        def start(name, *more):
            self.programs.append(Program(program, folder, name, self.clouds, *more))
            return self.programs[-1]

        try:
            self.guarded, self.open = start("guarded", both), start("open", both, "--open")
            self.refused, self.refused_open = start("refused", aws + vault), start("refused-open", aws + vault, "--open")
            self.google = start("google", "", "--open")
            self.no_google = start("no-google", "[identity.default]\ngoogle = false\n" + both, "--open")
        except BaseException:
            self.stop()
            raise
        # At the address of all clouds stands one program after the other.
        self.address = CloudFaults(self.google.address, "absent")
        self.address.serve()

    def stop(self):
        for part in (*self.programs, self.clouds):
            part.stop()

    def variables(self, client, condition):
        """What leads the client to a program, and the proxy in between."""
        if condition == "absent":
            # Whoever has no region does not even look for credentials.
            return {"AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION}, self.address
        refused = condition == "refused"
        guarded, open_ = (self.refused, self.refused_open) if refused else (self.guarded, self.open)
        program = open_ if client["form"] in (IMDS, ADDRESS) else guarded
        proxy = CloudFaults(program.address, condition)
        proxy.at = proxy.serve(("127.0.0.1", 0))
        at = "{}:{}".format(*proxy.at)
        if client["form"] == ADDRESS:
            return {}, proxy
        told = {name: value.replace("{}:{}".format(*program.address), at)
                for name, value in program.environment.items()}
        if client["form"] == IMDS and cloud_of(client) == "azure":
            # The form of App Service would be preferred; this variable is for tests of this kind.
            del told["IDENTITY_ENDPOINT"], told["IDENTITY_HEADER"]
            told["AZURE_POD_IDENTITY_AUTHORITY_HOST"] = f"http://{at}"
        return told, proxy

    def run(self, client, condition, steps):
        told, proxy = self.variables(client, condition)
        home = pathlib.Path(tempfile.mkdtemp(prefix="home-", dir=self.folder))
        env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home), "LANG": "C.UTF-8",
               **self.clouds.environment, **told, **client.get("env", {})}
        patience = client.get("patience", PATIENCE) if condition in ("refused", "absent") else client.get("limit", PATIENCE)
        command = [shutil.which(str(client["command"][0])), *client["command"][1:], *steps]
        if client["form"] == ADDRESS and condition != "absent":
            ways = [(*METADATA, proxy.at), (*self.clouds.s3, self.clouds.s3), (*self.clouds.blobs, self.clouds.blobs)]
            ways = json.dumps([(host, port, way_in(self.folder, to)) for host, port, to in ways])
            command = ["unshare", "--net", sys.executable, PROGRAMS.parent / "at_address.py", ways, *command]
        seen = converse(command, env, proxy, patience)
        seen.update(asked=asked(proxy, told), refusal=proxy.said)
        shutil.rmtree(home, ignore_errors=True)
        return seen


def serve_resource_manager(folder):
    """A person without subscriptions, for whoever brings a token."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.headers.get("Authorization", "").startswith("Bearer ") and self.path.startswith("/subscriptions?")
            body = b'{"value": []}' if known else b'{"error": {"code": "AuthenticationFailed", "message": "no token"}}'
            self.send_response(200 if known else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(RESOURCE_MANAGER_AT, Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def asked(proxy, told):
    """Paths, each once, without the secret."""
    secret = told.get("IDENTITY_HEADER", "")
    paths = []
    for request in proxy.asked:
        path = request["path"].replace(f"/{secret}/", "/") if secret else request["path"]
        if path not in paths:
            paths.append(path)
    return paths


def judged(step, value, proxy, before):
    """Raises when the value is not what the step has to find."""
    name = step.partition("@")[0]
    if name == "region":
        if value != REGION:
            raise ValueError(f"{value!r} instead of {REGION!r}")
    elif value == CONTENT or ASSUMED.fullmatch(str(value)) or value in proxy.handed_out:
        if name == "refresh" and proxy.tokens == before:
            raise ValueError("nothing was fetched anew")
    else:
        raise ValueError(f"{str(value)[:100]!r}")


def converse(command, env, proxy, patience=PATIENCE):
    """The client's lines, judged as they come: step -> what became of it."""
    began = time.monotonic()
    child = subprocess.Popen(command, env=env, cwd=env["HOME"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, start_new_session=True)
    late = threading.Timer(patience, lambda: os.killpg(child.pid, signal.SIGKILL))
    late.start()
    complaint = []
    reader = threading.Thread(target=lambda: complaint.append(child.stderr.read()), daemon=True)
    reader.start()
    steps, before = {}, 0
    for line in child.stdout:
        try:
            said = json.loads(line)
            step = said["step"]
        except (ValueError, TypeError, KeyError):
            complaint.append(line)
            continue
        outcome = {"after": round(time.monotonic() - began, 2), "fetched": proxy.tokens - before}
        if "error" in said:
            outcome["error"] = str(said["error"])
        else:
            try:
                judged(step, said["value"], proxy, before)
            except ValueError as error:
                outcome["error"] = f"not what it should be: {error}"
        before = proxy.tokens
        steps[step] = outcome
        try:
            child.stdin.write("\n")
            child.stdin.flush()
        except BrokenPipeError:
            pass
    child.wait()
    late.cancel()
    reader.join(1)
    return {"steps": steps, "said": "".join(complaint), "killed": child.returncode == -signal.SIGKILL}


def steps_of(client, condition):
    first = client["steps"][0]
    return {"normal": client["steps"], "503": [first, "again@3.5"], "slow": [first, "again@0.1"], "refused": [first],
            "near": [first, "use@0.3", "use@0.4"], "absent": [first]}[condition]


def good(seen, step):
    return step in seen["steps"] and "error" not in seen["steps"][step]


def verdict(client, condition, seen, steps):
    first, *later = steps
    if condition in ("503", "slow"):
        if condition in client.get("by_chance", ()) and good(seen, later[0]):
            return "by chance"
        return "yes" if good(seen, first) else "at the next call" if good(seen, later[0]) else "no"
    if condition == "near":
        if not all(good(seen, step) for step in steps):
            return "no"
        fetched = [seen["steps"][step]["fetched"] for step in steps]
        return "asks each time" if fetched[2] else "asks again" if sum(fetched) > 1 else "keeps it"
    if condition in ("refused", "absent"):
        if seen["killed"]:
            return "tries on"
        error = seen["steps"][first].get("error")
        if error is None:
            return "no error"
        return "shown" if seen["refusal"] and seen["refusal"] in error else "not shown"
    return "yes" if good(seen, first) else "no"


def text_of(seen, step):
    """What a person reads: the refusal with what stands around it, or how the error begins. Without what differs from
    run to run."""
    error = seen["steps"].get(step, {}).get("error", "")
    at = error.find(seen["refusal"] or "\0")
    if at >= 0:
        begin, end = max(0, at - 60), at + len(seen["refusal"])
        error = "…" * (begin > 0) + error[begin:end] + "…" * (end < len(error))
    elif len(error) > 160:
        error = error[:160] + "…"
    # What moto says to the anonymous differs from time to time.
    error = re.sub(r"AWS Error .*", "AWS Error …", re.sub(r"object-[0-9a-f]+", "OBJECT", error))
    error = re.sub(r"127\.0\.0\.1:\d+(/[0-9A-Za-z_-]{20,})?", "HOST", error)
    return re.sub(r"\b[\d.]+(ms|µs|s)\b", "TIME", re.sub(r"\s+", " ", error)).replace("`", "'")


def row(client, runs):
    cells = {}
    for step in ("identity", "region", "refresh", "api"):
        cells[step] = "-"
        if step in client["steps"] and "normal" in runs:
            cells[step] = "yes" if good(runs["normal"], step) else "no"
    for condition in CONDITIONS[1:]:
        if condition in runs:
            cells[condition] = verdict(client, condition, runs[condition], steps_of(client, condition))
    errors = {condition: {step: said["error"] for step, said in seen["steps"].items() if "error" in said}
              for condition, seen in runs.items()}
    after = {condition: max((said["after"] for said in runs[condition]["steps"].values()), default=None)
             for condition in ("refused", "absent") if condition in runs}
    return {"name": client["name"], "family": client["family"], "form": client["form"], "cloud": cloud_of(client),
            "version": client["version"](), "cells": cells, "notes": client.get("notes", {}),
            "asked": runs.get("normal", {}).get("asked", []), "errors": {c: of for c, of in errors.items() if of},
            "seconds": after,
            "texts": {condition: text_of(runs[condition], client["steps"][0])
                      for condition in ("refused", "absent") if condition in runs},
            "silent": {condition: seen["said"][-2000:] for condition, seen in runs.items()
                       if len(seen["steps"]) < len(steps_of(client, condition)) and not seen["killed"]}}


def without_google(stage):
    """google-auth at the address of a container that has AWS and Azure and no Google."""
    stage.address.upstream = stage.no_google.address
    command = [sys.executable, PROGRAMS / "python_clouds.py", "google-auth", "identity"]
    home = pathlib.Path(tempfile.mkdtemp(prefix="home-", dir=stage.folder))
    seen = converse(command, {"PATH": "/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}, stage.address)
    return seen["steps"].get("identity", {"said": seen["said"]})


def with_a_forbidden_role(stage, program):
    """How the program ends that cannot have the session it is asked for."""
    identity = f'[identity.default.aws]\nrole = "{role_arn(FORBIDDEN)}"\n'
    try:
        Program(program, stage.folder, "forbidden", stage.clouds, identity).stop()
    except Ended as ended:
        _, code, said = ended.args
        return {"code": code, "said": said}
    return {"code": None, "said": "it started"}


def apart(arguments):
    """This again as the first process of namespaces of its own, which end with it, and that with us."""
    # Without root, as root of a user namespace.
    command = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net", "--mount", "--pid", "--fork",
               "--kill-child", "--mount-proc", sys.executable, __file__, "--inside", *arguments]
    sys.exit(subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode)


def furnish(folder):
    alone()
    ip("address", "add", f"{METADATA[0]}/32", "dev", "lo")
    ip("link", "set", "lo", "up")
    mount_over("nameserver 127.0.0.1\noptions timeout:1 attempts:2\n", "/etc/resolv.conf", folder)
    mount_over(f"127.0.0.1 localhost {BLOB_ACCOUNT}.blob.localhost\n::1 localhost\n", "/etc/hosts", folder)
    serve_dns({"metadata.google.internal": METADATA[0], "metadata": METADATA[0], RESOURCE_MANAGER: RESOURCE_MANAGER_AT[0]})


def trust(folder):
    """For libraries that read no variable: the machine's bundle is ours in here."""
    bundle = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
    if bundle.exists():
        mount_over((folder / "ca.pem").read_text(encoding="ascii"), str(bundle), folder)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--program", required=True)
    options.add_argument("--only", default="")
    options.add_argument("--condition", choices=CONDITIONS)
    options.add_argument("--parallel", type=int, default=PARALLEL)
    options.add_argument("--loud", action="store_true", help="everything of each run, on stderr")
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if not given.inside:
        apart(sys.argv[1:])
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kcc-"))
    rows, absent, work = [], [], []
    try:
        furnish(folder)
        stage = Stage(given.program, folder)
        trust(folder)
        with concurrent.futures.ThreadPoolExecutor(given.parallel) as pool:
            for client in (client for client in CLIENTS if given.only in client["name"]):
                missing = client["missing"]()
                if missing:
                    absent.append({"name": client["name"], "family": client["family"], "form": client["form"],
                                   "why": missing})
                    continue
                runs = {condition: pool.submit(stage.run, client, condition, steps_of(client, condition))
                        for condition in CONDITIONS if given.condition in (None, condition)}
                work.append((client, runs))
            for client, runs in work:
                done = {condition: run.result() for condition, run in runs.items()}
                if given.loud:
                    print(client["name"], json.dumps(done, indent=1), file=sys.stderr)
                rows.append(row(client, done))
        google, forbidden = without_google(stage), with_a_forbidden_role(stage, given.program)
        stage.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"rows": rows, "absent": absent, "google": google, "forbidden": forbidden}, indent=1))


if __name__ == "__main__":
    main()
