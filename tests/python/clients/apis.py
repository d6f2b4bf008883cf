"""Google's APIs as far as a client goes that reads one object, one dataset list or one table: everything else is a
404 in Google's form. Who brings no token that the program handed out, or one that was said to be over, gets a 401."""

import http.server
import json
import re
import ssl
import threading
import time
import urllib.parse


class Apis:
    CONTENT = "read with a real token ok"

    def __init__(self, tokens, project):
        self.tokens, self.project = tokens, project
        self.lock = threading.Lock()
        self.let_in, self.over, self.refused, self.called = 0, 0, [], []

    def admits(self, authorization, place):
        """Whether the header names a token that was handed out; notes it."""
        scheme, _, token = (authorization or "").partition(" ")
        until = self.tokens.get(token.strip()) if scheme.lower() == "bearer" else None
        good = until is not None and time.monotonic() < until
        with self.lock:
            self.called.append(place)
            if good:
                self.let_in += 1
            elif until is not None:
                self.over += 1
            else:
                self.refused.append(f"{place} ({'no header' if not authorization else 'another token'})")
        return good

    def reply(self, host, target):
        """(status, content type, body) of an admitted request."""
        path, _, query = target.partition("?")
        path, query = urllib.parse.unquote(path), urllib.parse.parse_qs(query)
        content = self.CONTENT.encode()
        if host.startswith("storage.") or path.startswith(("/storage/", "/download/storage/")):
            # Storage's JSON API, its XML API, and JSON with the prefix of downloads.
            if re.fullmatch(r"(/download)?/storage/v1/b/bucket/o/object", path):
                return (200, "text/plain", content) if query.get("alt") == ["media"] else done(self.object())
            if path == "/storage/v1/b/bucket/o":
                return done({"kind": "storage#objects", "items": [self.object()]})
            if path == "/storage/v1/b/bucket":
                return done({"kind": "storage#bucket", "name": "bucket", "id": "bucket", "location": "US"})
            if path == "/storage/v1/b":
                return done({"kind": "storage#buckets", "items": [{"name": "bucket", "id": "bucket"}]})
            if path == "/bucket/object":
                return 200, "text/plain", content
        if path == f"/bigquery/v2/projects/{self.project}/datasets":
            reference = {"projectId": self.project, "datasetId": "dataset"}
            one = {"kind": "bigquery#dataset", "id": f"{self.project}:dataset", "datasetReference": reference}
            return done({"kind": "bigquery#datasetList", "datasets": [one]})
        error = {"code": 404, "message": "Not found here", "status": "NOT_FOUND",
                 "errors": [{"reason": "notFound", "domain": "global", "message": "Not found here"}]}
        return 404, "application/json; charset=UTF-8", json.dumps({"error": error}).encode()

    def object(self):
        return {"kind": "storage#object", "id": "bucket/object/1", "name": "object", "bucket": "bucket",
                "generation": "1", "metageneration": "1", "contentType": "text/plain", "size": str(len(self.CONTENT)),
                "storageClass": "STANDARD", "timeCreated": "2026-01-01T00:00:00.000Z",
                "updated": "2026-01-01T00:00:00.000Z", "etag": "CAE=",
                "mediaLink": "https://storage.googleapis.com/download/storage/v1/b/bucket/o/object?alt=media"}


def done(value):
    return 200, "application/json; charset=UTF-8", json.dumps(value).encode()


def serve_tls(at, certificates, apis):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            host = self.headers.get("Host", "")
            if apis.admits(self.headers.get("Authorization"), f"{host}{self.path.partition('?')[0]}"):
                status, kind, body = apis.reply(host, self.path)
            else:
                error = {"code": 401, "message": "Invalid Credentials", "status": "UNAUTHENTICATED"}
                status, kind, body = 401, "application/json", json.dumps({"error": error}).encode()
            first, wanted = 0, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            total = len(body)
            if status == 200 and kind == "text/plain" and wanted:
                first = int(wanted.group(1))
                last = min(int(wanted.group(2) or total - 1), total - 1)
                status, body = 206, body[first:last + 1]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{total}")
            if kind == "text/plain":
                self.send_header("ETag", '"CAE="')
                self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
                self.send_header("x-goog-generation", "1")
                self.send_header("x-goog-stored-content-length", str(total))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_POST = do_PUT = do_GET

        def log_message(self, *_):
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.set_alpn_protocols(["http/1.1"])

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def finish_request(self, request, address):
            # The handshake on the connection's own thread: one that hangs keeps nobody waiting.
            try:
                with context.wrap_socket(request, server_side=True) as secured:
                    super().finish_request(secured, address)
            except OSError:
                pass

        def handle_error(self, *_):
            pass

    server = Server(at, Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def serve_grpc(at, certificates, apis):
    """BigQuery's storage API: a read session, empty but for its name."""
    import concurrent.futures

    import grpc

    class Any(grpc.GenericRpcHandler):
        def service(self, details):
            given = dict(details.invocation_metadata).get("authorization")

            def answer(_, context):
                if not apis.admits(given, f"bigquerystorage.googleapis.com{details.method}"):
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid Credentials")
                # ReadSession { name = CONTENT }: field 1, a string.
                return b"\x0a" + bytes([len(apis.CONTENT)]) + apis.CONTENT.encode()

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), handlers=(Any(),))
    pair = ((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())
    server.add_secure_port("{}:{}".format(*at), grpc.ssl_server_credentials([pair]))
    server.start()
    apis.grpc = server
