"""A reverse proxy that lets nobody through without a valid bearer token.

It stands in front of an engine that asks no questions (BigQuery, Storage), so that a pipeline which gets an
answer has proved that its container was given a token of its own. A token is an ES256 JWT; it is checked for
signature (against a JWKS), expiry, scope, and its `container` claim (64 hex digits), which must name a container
that runs right now when an engine's socket is given. One JSON line per request is logged; never a token.
"""

import argparse
import base64
import http.client
import http.server
import json
import re
import socket
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request

import jwt

PREFIX = "https://www.googleapis.com/auth/"
SCOPES = {
    "bigquery": {PREFIX + "cloud-platform", PREFIX + "bigquery"},
    "storage": {PREFIX + "cloud-platform"}
    | {PREFIX + "devstorage." + name for name in ("read_only", "read_write", "full_control")},
}
HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
# No proxy variable of the environment may carry a token's verification elsewhere.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Refused(Exception):
    """Why a request does not pass; the text holds nothing of the token."""

    def __init__(self, why, status=401):
        super().__init__(why)
        self.status = status


class Keys:
    """A JWKS from a URL or a file; read again (at most once a second) when a key id is unknown."""

    def __init__(self, place):
        self.place = place
        self.lock = threading.Lock()
        self.keys = {}
        self.read_at = None

    def find(self, kid):
        with self.lock:
            stale = self.read_at is None or time.monotonic() - self.read_at > 1
            if kid not in self.keys and stale:
                self.keys = self.read()
                self.read_at = time.monotonic()
            if kid not in self.keys:
                raise Refused("signed with a key that is not in the JWKS")
            return self.keys[kid]

    def read(self):
        if self.place.startswith(("http://", "https://")):
            with DIRECT.open(self.place, timeout=5) as reply:
                document = json.load(reply)
        else:
            with open(self.place, encoding="utf-8") as file:
                document = json.load(file)
        return {key["kid"]: jwt.PyJWK(key, algorithm="ES256").key for key in document["keys"]}


class Engine:
    """Asks the Docker engine whether a container runs."""

    def __init__(self, path):
        self.path = path

    def runs(self, container):
        connection = http.client.HTTPConnection("localhost", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.sock.settimeout(5)
            connection.sock.connect(self.path)
            connection.request("GET", f"/containers/{container}/json")
            reply = connection.getresponse()
            body = reply.read()
            return reply.status == 200 and json.loads(body)["State"]["Running"]
        finally:
            connection.close()


class Judge:
    """Decides on one `Authorization` header; returns the claims of a token that passes."""

    def __init__(self, kind, keys, engine=None, leeway=0):
        self.scopes = SCOPES.get(kind, set())
        self.keys = keys
        self.engine = engine
        self.leeway = leeway

    def of(self, headers):
        return self.claims(headers.get("Authorization"))

    def claims(self, authorization):
        token = self.bearer(authorization)
        claims = self.decoded(token, {"verify_aud": False})
        if "aud" in claims:
            raise Refused("an identity token, not an access token")
        self.check_scope(claims)
        self.check_container(claims)
        return claims

    @staticmethod
    def bearer(authorization):
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Refused("no bearer token")
        return token

    def decoded(self, token, options, audience=None):
        """The claims, verified with the JWKS; tokens of Google carry no audience, those that do open nothing there."""
        try:
            head = jwt.get_unverified_header(token)
            if head.get("alg") != "ES256":
                raise Refused("not signed with ES256")
            return jwt.decode(
                token,
                self.keys.find(head.get("kid")),
                algorithms=["ES256"],
                audience=audience,
                leeway=self.leeway,
                options={"require": ["exp", "iat", "iss", "sub"], **options},
            )
        except jwt.ExpiredSignatureError:
            raise Refused("expired") from None
        except jwt.PyJWTError as error:
            raise Refused(f"not a valid token ({type(error).__name__})") from None

    def check_scope(self, claims):
        scope = claims.get("scope")
        if not isinstance(scope, str) or not self.scopes & set(scope.split()):
            raise Refused("insufficient authentication scopes", 403)

    def check_container(self, claims):
        container = claims.get("container")
        if not isinstance(container, str) or not re.fullmatch("[0-9a-f]{64}", container):
            raise Refused("names no container")
        if self.engine and not self.engine.runs(container):
            raise Refused("its container does not run")


class AwsJudge(Judge):
    """Of a request that is signed for AWS with a session of the offline source: the session token is a JWT that names the key
    id. The signature itself is not checked: its key is known to the source alone."""

    def of(self, headers):
        token = headers.get("X-Amz-Security-Token")
        key = re.match(r"AWS4-HMAC-SHA256 Credential=([^/]+)/", headers.get("Authorization") or "")
        if not token or not key:
            raise Refused("no session of AWS", 403)
        claims = self.decoded(token, {}, audience="sts.amazonaws.com")
        if claims.get("key") != key.group(1):
            raise Refused("a session token of another key", 403)
        self.check_container(claims)
        return claims


class AzureJudge(Judge):
    """Of a request with a token of the offline source for Azure's storage; its `oid` is the container."""

    def of(self, headers):
        claims = self.decoded(self.bearer(headers.get("Authorization")), {}, audience="https://storage.azure.com")
        claims = {**claims, "container": claims.get("oid"), "sub": claims.get("appid")}
        self.check_container(claims)
        return claims


class Log:
    """One JSON object per line, whole lines only."""

    def __init__(self, path):
        self.file = open(path, "a", encoding="utf-8", buffering=1) if path else None
        self.lock = threading.Lock()

    def line(self, **fields):
        if self.file:
            with self.lock:
                self.file.write(json.dumps(fields) + "\n")

    def close(self):
        if self.file:
            self.file.close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def handle_any(self):
        gateway, body = self.server.gateway, self.body()
        path = urllib.parse.urlsplit(self.path).path
        try:
            claims = gateway.judge.of(self.headers)
        except Refused as refused:
            gateway.log.line(api=gateway.kind, method=self.command, path=path, verdict="refused", why=str(refused))
            self.refuse(refused)
            return
        except Exception as error:  # a JWKS or an engine that does not answer lets nobody in
            why = f"cannot be checked ({type(error).__name__})"
            gateway.log.line(api=gateway.kind, method=self.command, path=path, verdict="refused", why=why)
            self.refuse(Refused(why, 503))
            return
        status = self.forward(body)
        gateway.log.line(
            api=gateway.kind, method=self.command, path=path, verdict="passed", status=status,
            container=claims["container"][:12], account=claims.get("email", claims["sub"]),
        )

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = handle_any

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def refuse(self, refused):
        reason = "PERMISSION_DENIED" if refused.status == 403 else "UNAUTHENTICATED"
        message = f"Request refused: {refused}."
        body = json.dumps({
            "error": {
                "code": refused.status, "message": message, "status": reason,
                "errors": [{"message": message, "domain": "global", "reason": "authError"}],
            }
        }).encode()
        self.send_response(refused.status)
        if refused.status == 401:
            self.send_header("WWW-Authenticate", 'Bearer realm="https://accounts.google.com/"')
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.finish_reply(body)

    def forward(self, body):
        """The engine sees neither the token nor our address, and answers with ours in place of its own."""
        gateway = self.server.gateway
        secured, hidden = gateway.secured, {"content-length", "host"} | ({"authorization"} if gateway.hides else set())
        upstream = (http.client.HTTPSConnection(gateway.upstream, timeout=120, context=secured) if secured
                    else http.client.HTTPConnection(gateway.upstream, timeout=120))
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP | hidden
        }
        headers["Host"] = gateway.upstream
        try:
            upstream.request(self.command, self.path, body, headers)
            reply = upstream.getresponse()
            content = reply.read()
            fields, status = reply.getheaders(), reply.status
        except OSError as error:
            fields, status = [("Content-Type", "text/plain")], 502
            content = f"the engine behind this gateway does not answer ({type(error).__name__})".encode()
        finally:
            upstream.close()
        self.send_response(status)
        for name, value in fields:
            if name.lower() not in HOP_BY_HOP | {"content-length", "date", "server"}:
                self.send_header(name, value.replace(f"//{gateway.upstream}", f"//{gateway.address}"))
        self.finish_reply(content)
        return status

    def finish_reply(self, content):
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        """The request line may hold what does not belong on a terminal; `Log` has what is needed."""


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A container that ends takes its connections with it; anything else is a bug worth its traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Gateway:
    """Listens at once (port 0: any), serves until `close`. With `tls`, a pair of files with certificate and key, over TLS, and
    so to an upstream of https. An engine that checks tokens itself is not kept from seeing them (`hides`)."""

    def __init__(self, kind, upstream, judge, log, host="127.0.0.1", port=0, tls=None, hides=True):
        self.kind, self.judge, self.log, self.hides = kind, judge, log, hides
        parts = urllib.parse.urlsplit(upstream)
        self.upstream, self.secured = parts.netloc, None
        if parts.scheme == "https":
            # On loopback, with a certificate of the test's own.
            self.secured = ssl._create_unverified_context()
        self.server = Server((host, port), Handler)
        self.server.gateway = self
        self.address = "{}:{}".format(*self.server.server_address)
        self.url = f"http://{self.address}"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            # The handshake is the connection's own thread's, with its first read.
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
            self.url = f"https://{self.address}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def jwk_of(public_key):
    """A JWK (RFC 7517) of an EC P-256 public key, with a key id; for tests and probes."""
    numbers = public_key.public_numbers()
    field = lambda n: base64.urlsafe_b64encode(n.to_bytes(32, "big")).rstrip(b"=").decode()  # noqa: E731
    x, y = field(numbers.x), field(numbers.y)
    return {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": x[:16], "x": x, "y": y}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kind", choices=sorted(SCOPES), required=True)
    options.add_argument("--upstream", required=True, metavar="URL")
    options.add_argument("--jwks", required=True, metavar="URL-OR-FILE")
    options.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    options.add_argument("--docker-socket", metavar="PATH", help="tokens must name a container that runs here")
    options.add_argument("--log", metavar="FILE")
    given = options.parse_args()
    host, _, port = given.listen.rpartition(":")
    engine = Engine(given.docker_socket) if given.docker_socket else None
    judge = Judge(given.kind, Keys(given.jwks), engine)
    gateway = Gateway(given.kind, given.upstream, judge, Log(given.log), host, int(port))
    print(gateway.url, flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        gateway.close()


if __name__ == "__main__":
    main()
