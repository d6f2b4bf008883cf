"""What stands for AWS and Azure: moto, which checks signatures and session tokens, and azurite, which takes tokens of
Microsoft Entra over TLS. Both listen where they are told, and end with `stop`.

moto is set up before it checks anybody: a person who may assume the role `kfp-loader` and do nothing else, and that role, which may
use S3. So whoever reads the bucket is the role. azurite does not check a token's signature; its issuer, audience and times it does.
"""

import ctypes
import json
import os
import pathlib
import re
import signal
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).parents[3]
WORK = pathlib.Path(os.environ.get("KFP_CREDS_CLIENTS") or ROOT / ".work/clients")
MOTO = WORK / "venv-clouds/bin/moto_server"
AZURITE = WORK / "node-clouds/node_modules/azurite/dist/src/blob/main.js"
AWS_ACCOUNT, REGION, ROLE = "123456789012", "eu-west-1", "kfp-loader"
# May be assumed by nobody.
FORBIDDEN = "kfp-forbidden"
BLOB_ACCOUNT, BUCKET = "devstoreaccount1", "data"
# Azure Resource Manager, whose subscriptions az lists when it logs in.
RESOURCE_MANAGER = "management.azure.com"
# How long either may take to start on a busy machine.
PATIENCE = 60
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def role_arn(name):
    return f"arn:aws:iam::{AWS_ACCOUNT}:role/{name}"


def free_port(host):
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def certificate(folder, address):
    """A certificate authority of this run (`ca.pem`) and a certificate for the address (`server.pem`, `.key`)."""
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=made for one test run",
            "-days", "2", "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", f"/CN={address}")
    (folder / "extensions").write_text(
        f"subjectAltName=IP:{address},DNS:*.blob.localhost,DNS:{RESOURCE_MANAGER}\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n", encoding="ascii")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", "server.pem", "-days", "2", "-extfile", "extensions")


def end_with_us():
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: none outlives a killed parent


class Part:
    """A process of ours, in its own session; what it says goes to a file."""

    def __init__(self, command, folder, name, environment):
        self.log = folder / f"{name}.log"
        self.name = name
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                preexec_fn=end_with_us, env={"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), **environment})

    def wait_for(self, address):
        until = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(address, 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    sys.exit(f"{self.name} did not start: {self.log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Clouds:
    """Both parts, ready. `environment` is what a client needs to find them, `keys` those of the person. With
    `checks=False` moto takes any key: somebody before it checks."""

    def __init__(self, folder, host="127.0.0.1", checks=True):
        self.folder, self.parts, self.checks = folder, [], checks
        certificate(folder, host)
        self.s3 = (host, free_port(host))
        self.blobs = (host, free_port(host))
        try:
            self.start(host)
        except BaseException:
            self.stop()
            raise

    def start(self, host):
        self.start_moto(host, self.setup_of_aws())
        self.start_azurite(host)

    def start_moto(self, host, setup):
        unchecked = {"INITIAL_NO_AUTH_ACTION_COUNT": str(len(setup))} if self.checks else {}
        moto = Part([MOTO, "-H", host, "-p", str(self.s3[1])], self.folder, "moto", {**unchecked, "NO_PROXY": "*"})
        self.parts.append(moto)
        moto.wait_for(self.s3)
        self.keys = {}
        for service, method, path, form in setup:
            answer = self.ask_aws(service, method, path, form)
            for name, tag in (("AWS_ACCESS_KEY_ID", "AccessKeyId"), ("AWS_SECRET_ACCESS_KEY", "SecretAccessKey")):
                if found := re.search(f"<{tag}>([^<]+)</{tag}>", answer):
                    self.keys[name] = found.group(1)

    def start_azurite(self, host):
        azurite = Part(
            [shutil.which("node"), AZURITE, "--blobHost", host, "--blobPort", str(self.blobs[1]), "--oauth", "basic",
             "--cert", "server.pem", "--key", "server.key", "--silent",
             "--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence"], self.folder, "azurite", {})
        self.parts.append(azurite)
        azurite.wait_for(self.blobs)
        self.make_blob_container()

    @staticmethod
    def setup_of_aws():
        """Each a call: how many there are is how many moto lets pass unchecked."""
        def policy(action, resource, **more):
            statement = {"Effect": "Allow", "Action": action, **({"Resource": resource} if resource else {}), **more}
            return json.dumps({"Version": "2012-10-17", "Statement": [statement]})

        def iam(action, **form):
            return "iam", "POST", "/", {"Action": action, "Version": "2010-05-08", **form}

        assumed_by = {"Principal": {"AWS": f"arn:aws:iam::{AWS_ACCOUNT}:user/person"}}
        return [
            iam("CreateUser", UserName="person"),
            iam("CreateAccessKey", UserName="person"),
            iam("PutUserPolicy", UserName="person", PolicyName="assume",
                PolicyDocument=policy("sts:AssumeRole", role_arn(ROLE))),
            iam("CreateRole", RoleName=ROLE, AssumeRolePolicyDocument=policy("sts:AssumeRole", None, **assumed_by)),
            iam("PutRolePolicy", RoleName=ROLE, PolicyName="objects",
                PolicyDocument=policy(["s3:*", "sts:GetCallerIdentity"], "*")),
            ("s3", "PUT", f"/{BUCKET}", None),
        ]

    def ask_aws(self, service, method, path, form):
        """Unsigned, but for the form of a signature: by it moto knows which service is meant."""
        scope = f"nobody/20260101/us-east-1/{service}/aws4_request"
        request = urllib.request.Request(
            "http://{}:{}{}".format(*self.s3, path), method=method,
            data=urllib.parse.urlencode(form).encode() if form else b"",
            headers={"Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"})
        try:
            with DIRECT.open(request, timeout=PATIENCE) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            sys.exit(f"moto: {method} {form or path}: {error.code} {error.read().decode()[:500]}")

    def make_blob_container(self):
        """As somebody with a token that azurite takes."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        request = urllib.request.Request(
            f"{self.blobs_url}/{BUCKET}?restype=container", method="PUT", data=b"",
            headers={"Authorization": f"Bearer {entra_token()}", "x-ms-version": "2023-11-03"})
        try:
            opener.open(request, timeout=PATIENCE).close()
        except urllib.error.HTTPError as error:
            sys.exit(f"azurite: {error.code} {error.read().decode()[:500]}")

    @property
    def blobs_url(self):
        return "https://{}:{}/{}".format(*self.blobs, BLOB_ACCOUNT)

    @property
    def environment(self):
        ca = str(self.folder / "ca.pem")
        return {"S3": "{}:{}".format(*self.s3), "AWS_ENDPOINT_URL": "http://{}:{}".format(*self.s3),
                "BLOBS": self.blobs_url, "CA": ca, "SSL_CERT_FILE": ca, "REQUESTS_CA_BUNDLE": ca,
                "NODE_EXTRA_CA_CERTS": ca, "CURL_CA_BUNDLE": ca}

    def stop(self):
        for part in self.parts:
            part.stop()


def entra_token():
    """In the form of Microsoft Entra, signed by nobody's key."""
    import jwt
    now, tenant = int(time.time()), "00000000-0000-0000-0000-000000000000"
    return jwt.encode({"iss": f"https://sts.windows.net/{tenant}/", "aud": "https://storage.azure.com", "iat": now,
                       "nbf": now, "exp": now + 600}, os.urandom(32), "HS256")


def on_loopback(to):
    """Passes connections on: a session asks no token service over plain HTTP but on its own machine. Returns the address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source, target):
        try:
            while piece := source.recv(1 << 16):
                target.sendall(piece)
        except OSError:
            pass
        finally:
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def accept():
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(to)
            for pair in ((near, far), (far, near)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return "http://{}:{}".format(*listener.getsockname())


def main():
    """For containers: on the engine's default bridge, until stdin ends. Prints one JSON object when both are ready."""
    sys.path.insert(0, str(ROOT / "tests/python"))
    from emulators import bridge_address
    engine = os.environ.get("KFP_CREDS_TEST_ENGINE", "unix:///var/run/docker.sock").removeprefix("unix://")
    with tempfile.TemporaryDirectory(prefix="kcc-") as folder, bridge_address(engine) as host:
        clouds = Clouds(pathlib.Path(folder), host)
        try:
            print(json.dumps({"environment": clouds.environment, "keys": clouds.keys, "role": role_arn(ROLE), "sts": on_loopback(clouds.s3),
                              "refused": role_arn(FORBIDDEN)}), flush=True)
            sys.stdin.read()
        finally:
            clouds.stop()


if __name__ == "__main__":
    main()
