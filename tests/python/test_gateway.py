"""The gateways refuse everything but a valid token of a container; keys are made when the tests run."""

import base64
import http.client
import http.server
import json
import os
import socketserver
import tempfile
import threading
import time
import unittest
import uuid

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from gateway import PREFIX, AwsJudge, AzureJudge, Engine, Gateway, Judge, Keys, Log, Refused, jwk_of

CONTAINER = "0123456789abcdef" * 4
OTHER = "f" * 64


class Upstream(http.server.BaseHTTPRequestHandler):
    """An engine that asks no questions and remembers what it was sent."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, dict(self.headers), body))
        self.send_response(200)
        self.send_header("Location", f"http://{self.headers['Host']}/upload/next")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class DockerApi(http.server.BaseHTTPRequestHandler):
    """Knows two containers: one runs, one has ended."""

    def do_GET(self):
        known = {CONTAINER: True, OTHER: False}
        container = self.path.split("/")[2]
        body = json.dumps({"State": {"Running": known.get(container)}}).encode()
        self.send_response(200 if container in known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def get_request(self):
        request, _ = super().get_request()
        return request, ("local", 0)


def serve(server):
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class GatewayTest(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        place = self.directory.name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.jwk = jwk_of(self.key.public_key())
        self.jwks = os.path.join(place, "jwks.json")
        self.publish(self.jwk)
        self.upstream = serve(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream))
        self.upstream.seen = []
        self.docker = serve(UnixServer(os.path.join(place, "docker.sock"), DockerApi))
        self.log = os.path.join(place, "gateway.jsonl")
        self.lines = Log(self.log)
        self.gateway = self.open("bigquery")

    def tearDown(self):
        self.gateway.close()
        self.lines.close()
        for server in (self.upstream, self.docker):
            server.shutdown()
            server.server_close()
        self.directory.cleanup()

    def publish(self, *keys):
        with open(self.jwks, "w", encoding="utf-8") as file:
            json.dump({"keys": keys}, file)

    def open(self, kind):
        judge = Judge(kind, Keys(self.jwks), Engine(os.path.join(self.directory.name, "docker.sock")))
        return Gateway(kind, "http://127.0.0.1:%d" % self.upstream.server_address[1], judge, self.lines)

    def token(self, key=None, kid=None, also=(), **changes):
        now = int(time.time())
        claims = {
            "iss": "kfp-creds offline", "sub": "runner@example.iam.gserviceaccount.com", "jti": str(uuid.uuid4()),
            "iat": now, "exp": now + 600, "scope": PREFIX + "cloud-platform", "container": CONTAINER, **changes, **dict(also),
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, key or self.key, "ES256", headers={"kid": kid or self.jwk["kid"]})

    def ask(self, authorization, gateway=None):
        address = (gateway or self.gateway).address
        connection = http.client.HTTPConnection(address, timeout=10)
        headers = {"Authorization": authorization} if authorization is not None else {}
        connection.request("POST", "/bigquery/v2/projects/p/jobs?x=1", b'{"sql": 1}', headers)
        reply = connection.getresponse()
        body = reply.read()
        connection.close()
        return reply, body

    def assert_refused(self, authorization, status=401, gateway=None):
        before = len(self.upstream.seen)
        reply, body = self.ask(authorization, gateway)
        self.assertEqual(reply.status, status, body)
        self.assertEqual(json.loads(body)["error"]["code"], status)
        self.assertEqual(len(self.upstream.seen), before, "a refused request reached the engine")
        if status == 401:
            self.assertTrue(reply.headers["WWW-Authenticate"].startswith("Bearer"))

    def test_valid_token_passes_and_stays_here(self):
        token = self.token()
        reply, body = self.ask(f"Bearer {token}")
        self.assertEqual((reply.status, body), (200, b'{"sql": 1}'))
        path, headers, sent = self.upstream.seen[0]
        self.assertEqual((path, sent), ("/bigquery/v2/projects/p/jobs?x=1", b'{"sql": 1}'))
        self.assertNotIn("Authorization", headers)
        self.assertEqual(reply.headers["Location"], f"http://{self.gateway.address}/upload/next")
        with open(self.log, encoding="utf-8") as file:
            text = file.read()
        self.assertNotIn(token, text)
        self.assertNotIn(token.split(".")[2], text)
        line = json.loads(text)
        self.assertEqual((line["verdict"], line["container"]), ("passed", CONTAINER[:12]))

    def judge(self, kind):
        return kind("s3", Keys(self.jwks), Engine(os.path.join(self.directory.name, "docker.sock")))

    def test_sessions_of_aws_name_their_key_and_container(self):
        def headers(key="its-key", **changes):
            token = self.token(**{"aud": "sts.amazonaws.com", "also": {"key": "its-key"}, **changes})
            signed = f"AWS4-HMAC-SHA256 Credential={key}/20260101/r/s3/aws4_request, SignedHeaders=host, Signature=0"
            return {"X-Amz-Security-Token": token, "Authorization": signed}

        judge = self.judge(AwsJudge)
        self.assertEqual(judge.of(headers())["container"], CONTAINER)
        only = headers()
        del only["Authorization"]
        for what in ({}, only, headers(key="another"), headers(aud="https://storage.azure.com"), headers(also={}),
                     headers(container=OTHER), headers(container=None), headers(exp=int(time.time()) - 60),
                     headers(aud=None)):
            with self.subTest(headers=sorted(what)), self.assertRaises(Refused):
                judge.of(what)

    def test_tokens_of_azure_are_for_storage(self):
        def headers(**changes):
            claims = {"aud": "https://storage.azure.com", "oid": CONTAINER, "appid": "client", "container": None}
            return {"Authorization": "Bearer " + self.token(**{**claims, **changes})}

        judge = self.judge(AzureJudge)
        claims = judge.of(headers())
        self.assertEqual((claims["container"], claims["sub"]), (CONTAINER, "client"))
        for what in ({}, headers(aud="https://vault.azure.net"), headers(oid=OTHER), headers(oid=None),
                     headers(aud=None), {"Authorization": "Bearer x"}):
            with self.subTest(headers=sorted(what)), self.assertRaises(Refused):
                judge.of(what)

    def test_missing_and_garbage(self):
        for header in (None, "", "Bearer", "Bearer ", "Bearer x", "Bearer a.b.c", "Basic dTpw", self.token()):
            with self.subTest(header=header):
                self.assert_refused(header)

    def test_expired(self):
        self.assert_refused("Bearer " + self.token(exp=int(time.time()) - 1))

    def test_without_expiry(self):
        self.assert_refused("Bearer " + self.token(exp=None))

    def test_foreign_key_with_and_without_our_key_id(self):
        foreign = ec.generate_private_key(ec.SECP256R1())
        self.assert_refused("Bearer " + self.token(key=foreign))
        self.assert_refused("Bearer " + self.token(key=foreign, kid="theirs"))

    def test_changed_payload(self):
        head, _, signature = self.token().split(".")
        payload = self.token(container="a" * 64).split(".")[1]
        self.assert_refused(f"Bearer {head}.{payload}.{signature}")

    def test_other_algorithms(self):
        head = {"alg": "none", "typ": "JWT", "kid": self.jwk["kid"]}
        part = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()  # noqa: E731
        payload = self.token().split(".")[1]
        self.assert_refused(f"Bearer {part(head)}.{payload}.")
        # The public key as an HMAC secret: the classic confusion of algorithms.
        hmac = jwt.encode({"sub": "x"}, self.jwk["x"] * 2, "HS256", headers={"kid": self.jwk["kid"]})
        self.assert_refused(f"Bearer {hmac}")

    def test_scope(self):
        for scope in (None, "", PREFIX + "devstorage.read_only", PREFIX + "bigquery.insertdata", ["x"]):
            with self.subTest(scope=scope):
                self.assert_refused("Bearer " + self.token(scope=scope), 403)
        narrow = self.token(scope=f"{PREFIX}userinfo.email {PREFIX}bigquery")
        self.assertEqual(self.ask(f"Bearer {narrow}")[0].status, 200)

    def test_storage_has_scopes_of_its_own(self):
        storage = self.open("storage")
        try:
            self.assert_refused("Bearer " + self.token(scope=PREFIX + "bigquery"), 403, storage)
            token = self.token(scope=PREFIX + "devstorage.read_only")
            self.assertEqual(self.ask(f"Bearer {token}", storage)[0].status, 200)
        finally:
            storage.close()

    def test_container(self):
        for container in (None, "", "short", CONTAINER.upper(), "e" * 64, OTHER, "../" + CONTAINER):
            with self.subTest(container=container):
                self.assert_refused("Bearer " + self.token(container=container))

    def test_identity_token_is_no_access_token(self):
        self.assert_refused("Bearer " + self.token(aud="https://example.com"))

    def test_new_key_is_found(self):
        self.assertEqual(self.ask("Bearer " + self.token())[0].status, 200)
        key = ec.generate_private_key(ec.SECP256R1())
        jwk = jwk_of(key.public_key())
        self.publish(jwk)
        self.gateway.judge.keys.read_at -= 2  # as if the second had passed
        self.assertEqual(self.ask("Bearer " + self.token(key=key, kid=jwk["kid"]))[0].status, 200)

    def test_no_jwks_lets_nobody_in(self):
        os.remove(self.jwks)
        self.assert_refused("Bearer " + self.token(), 503)

    def test_no_engine_lets_nobody_in(self):
        self.gateway.judge.engine.path += ".gone"
        self.assert_refused("Bearer " + self.token(), 503)


if __name__ == "__main__":
    unittest.main()
