"""One client, one condition, one network namespace of its own: everything that the client can reach is here.

Started by `clients.py` as the first process of new network, mount and PID namespaces; it refuses to run anywhere
else. It gives the loopback device 169.254.169.254, answers DNS, serves Google's APIs behind a certificate made for
this run, starts the program under test, puts `faults.py` in front of it, runs the client and judges what the client
says it found. The last line of stdout is one JSON object.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import jwt

from apis import Apis, serve_grpc, serve_tls
from faults import METADATA, Faults
from names import serve_dns

PROJECT, AUDIENCE = "own-project", "https://service.example/path?a=b"
EMAIL = "runner@own-project.iam.gserviceaccount.com"
UNIVERSE = {"universe": "cloud.example"}
PROGRAM_AT, REST_AT, GRPC_AT = ("127.0.0.1", 8174), ("127.0.0.1", 443), ("127.0.0.2", 443)
# Nobody here can be reached from anywhere else, so none of these leads out of the namespace.
ADDRESSES = {"metadata.google.internal": METADATA[0], "metadata": METADATA[0], "metadata.goog": METADATA[0],
             "bigquerystorage.googleapis.com": GRPC_AT[0], "*.googleapis.com": REST_AT[0],
             "accounts.google.com": REST_AT[0]}


def alone():
    """Only a loopback device, still down, and no route: a namespace that was made for us."""
    devices = [name for _, name in socket.if_nameindex()]
    with open("/proc/net/route", encoding="ascii") as routes:
        ways = routes.read().splitlines()[1:]
    if os.getpid() != 1 or devices != ["lo"] or ways:
        sys.exit(f"not in a namespace of its own (pid {os.getpid()}, devices {devices}, {len(ways)} routes)")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


def mount_over(text, path, folder):
    own = folder / path.strip("/").replace("/", "-")
    own.write_text(text, encoding="utf-8")
    subprocess.run(["mount", "--bind", own, os.path.realpath(path)], check=True)


def furnish(folder, certificates):
    # All of 127.0.0.0/8 is there with the device.
    ip("address", "add", f"{METADATA[0]}/32", "dev", "lo")
    ip("link", "set", "lo", "up")
    mount_over("nameserver 127.0.0.1\noptions timeout:1 attempts:2\n", "/etc/resolv.conf", folder)
    mount_over("127.0.0.1 localhost\n::1 localhost\n", "/etc/hosts", folder)
    bundle = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
    if bundle.exists():
        mount_over((certificates / "ca.pem").read_text(encoding="ascii"), str(bundle), folder)


def hide(*tools):
    """Tools of the machine that a library would run and believe rather than look for itself."""
    for tool in tools:
        found = shutil.which(tool)
        if found:
            subprocess.run(["mount", "--bind", "/dev/null", os.path.realpath(found)], check=True)


def bridge(port, way_out, host="127.0.0.1"):
    """What is asked of this port goes to a socket that leads out of this network: to the fake Google of the test, at its own port."""
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with socket.socket(socket.AF_UNIX) as out:
                out.connect(way_out)
                back = threading.Thread(target=carry, args=(out, self.request), daemon=True)
                back.start()
                carry(self.request, out)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    threading.Thread(target=Server((host, port), Handler).serve_forever, daemon=True).start()


def carry(from_one, to_other):
    try:
        while piece := from_one.recv(65536):
            to_other.sendall(piece)
        to_other.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def program(path, folder, universe, source):
    """`serve --listen` of the program under test, and where its public keys are. With a source, a credential file
    and the fake Google that takes it, there are none."""
    config = f'project = "{PROJECT}"\nemail = "{EMAIL}"\n'
    flags, environment, sign = ["--offline"], {}, "export KFP_CREDS_JWKS_URL="
    if universe:
        config += f'[endpoints]\nuniverse = "{UNIVERSE["universe"]}"\n'
    if source:
        config += f'[endpoints]\ntoken = "http://127.0.0.1:{source["port"]}/token"\n'
        flags, environment = [], {"GOOGLE_APPLICATION_CREDENTIALS": source["credential"]}
        sign = "export GCE_METADATA_HOST="
    # The user's own file: one beside a project may name no endpoints.
    file = folder / "kfp-creds.toml"
    file.write_text(config, encoding="utf-8")
    at = "{}:{}".format(*PROGRAM_AT)
    child = subprocess.Popen(
        [path, "serve", "--listen", at, "--open", *flags, "--config", file],
        cwd=folder, env={"HOME": str(folder), "PATH": os.environ["PATH"], **environment}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=open(folder / "program.log", "wb"), text=True)
    for line in child.stdout:
        if line.startswith(sign):
            break
    else:
        sys.exit(f"the program ended at its start: {(folder / 'program.log').read_text()}")
    threading.Thread(target=child.stdout.read, daemon=True).start()
    keys = None if source else line.split("=", 1)[1].strip()
    until = time.monotonic() + 5
    while True:
        try:
            socket.create_connection(PROGRAM_AT, 1).close()
            return keys
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


class Judge:
    """Whether what the client says it found is what there is to find."""

    def __init__(self, faults, apis, keys, universe):
        self.faults, self.apis = faults, apis
        self.universe = UNIVERSE["universe"] if universe else "googleapis.com"
        self.keys = keys and self.fetched(keys)
        self.before = 0

    @staticmethod
    def fetched(keys):
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(keys, timeout=5) as answer:
            return {key["kid"]: jwt.PyJWK(key) for key in json.load(answer)["keys"]}

    def claims(self, token, audience=None):
        key = self.keys[jwt.get_unverified_header(token)["kid"]]
        claims = jwt.decode(token, key.key, algorithms=["ES256"], audience=audience)
        if claims["email"] != EMAIL:
            raise ValueError(f"made for {claims['email']}")
        return claims

    def step(self, step, value):
        """Raises when `value` is not what `step` has to find. The client waits meanwhile, so what was fetched since
        the last one was fetched for this one."""
        fetched, self.before = self.faults.tokens - self.before, self.faults.tokens
        name = step.split("@")[0]
        if name == "identity":
            self.claims(value, AUDIENCE)
        elif name in ("token", "refresh", "again", "use"):
            if value not in self.faults.handed_out:
                raise ValueError("a token that was not handed out")
            # A Google's access token says nothing by itself.
            if self.keys:
                self.claims(value)
        elif name.startswith("api"):
            if value != self.apis.CONTENT:
                raise ValueError(f"the answer was {str(value)[:100]!r}")
            if not self.apis.let_in or self.apis.refused:
                raise ValueError(f"{self.apis.let_in} calls with a token, without: {self.apis.refused}")
        else:
            expected = {"detect": True, "project": PROJECT, "universe": self.universe, "email": EMAIL}[name]
            if value != expected:
                raise ValueError(f"{value!r} instead of {expected!r}")
            if name == "universe" and not any("/universe/" in request["path"] for request in self.faults.asked):
                raise ValueError("it says so without having asked")
        if name in ("refresh", "api-refresh") and fetched < 1:
            raise ValueError("no token was fetched anew")
        return fetched


def environment(folder, certificates):
    ca, trusted = str(certificates / "ca.pem"), {}
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE",
                 "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE"):
        trusted[name] = ca
    return {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "TMPDIR": str(folder / "home"),
            "LANG": "C.UTF-8", "AUDIENCE": AUDIENCE, "CA": ca, **trusted}


def run(command, env, judge, limit):
    """The client's lines, judged as they come: step -> what became of it."""
    began = time.monotonic()
    child = subprocess.Popen(command, env=env, cwd=env["HOME"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, start_new_session=True)
    late = threading.Timer(limit, lambda: os.killpg(child.pid, signal.SIGKILL))
    late.start()
    complaint = []
    reader = threading.Thread(target=lambda: complaint.append(child.stderr.read()), daemon=True)
    reader.start()
    steps = {}
    for line in child.stdout:
        try:
            said = json.loads(line)
            step = said["step"]
        except (ValueError, TypeError, KeyError):
            complaint.append(line)
            continue
        outcome = {"after": round(time.monotonic() - began, 2)}
        if "error" in said:
            outcome["error"] = str(said["error"])[:300]
            judge.before = judge.faults.tokens
        else:
            try:
                outcome["fetched"] = judge.step(step, said["value"])
            except Exception as error:
                outcome["error"] = f"{type(error).__name__}: {error}"[:300]
        steps[step] = outcome
        try:
            child.stdin.write("\n")
            child.stdin.flush()
        except BrokenPipeError:
            pass
    code = child.wait()
    late.cancel()
    reader.join(1)
    return {"steps": steps, "code": code, "said": "".join(complaint)[-2000:]}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--program", required=True)
    options.add_argument("--certificates", required=True, type=pathlib.Path)
    options.add_argument("--condition", required=True)
    options.add_argument("--limit", type=float, default=60)
    options.add_argument("--source", type=json.loads, help="JSON: credential, port and socket of a Google")
    options.add_argument("--environment", default="{}", help="JSON: variables for the client")
    options.add_argument("command", nargs="+")
    given = options.parse_args()
    alone()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kcc-"))
    (folder / "home").mkdir()
    try:
        furnish(folder, given.certificates)
        serve_dns(ADDRESSES)
        if given.source:
            bridge(given.source["port"], given.source["socket"])
        keys = program(given.program, folder, given.condition == "universe", given.source)
        faults = Faults(PROGRAM_AT, given.condition)
        faults.serve()
        apis = Apis(faults.handed_out, PROJECT)
        serve_tls(REST_AT, given.certificates, apis)
        if "GCLOUD" not in given.environment:
            hide("gcloud", "gsutil", "bq")
        if "GRPC" in given.environment:
            serve_grpc(GRPC_AT, given.certificates, apis)
        env = {**environment(folder, given.certificates), **json.loads(given.environment)}
        seen = run(given.command, env, Judge(faults, apis, keys, given.condition == "universe"), given.limit)
        seen.update(asked=faults.asked, called=apis.called, log=(folder / "program.log").read_text())
        print(json.dumps(seen))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
