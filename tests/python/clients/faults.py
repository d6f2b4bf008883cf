"""What stands at 169.254.169.254 in front of the program: passes bytes on, notes what is asked, makes faults.

Requests and replies go through as they are, but for the condition of the run:

    normal, universe   nothing is changed
    503                for 3 s from the first of them, requests for a token get what the program says when Google
                       cannot be reached: 503, and 404 for an ID token
    all-503            the same for every request, as for a container that has no identity yet
    slow               every token takes 2 s, the longest that the program holds a request
    near               the first token has 200 s left, later ones 600 s, the least that is served from an hour's token
    short              the first token has 3 s left, later ones what they have
"""

import json
import re
import socket
import socketserver
import threading
import time

METADATA = ("169.254.169.254", 80)
OUTAGE, LATENCY = 3.0, 2.0
LEFT = {"near": (200, 600), "short": (3, None)}


class Faults:
    def __init__(self, upstream, condition):
        self.upstream, self.condition = upstream, condition
        self.lock = threading.Lock()
        self.began = time.monotonic()
        self.asked = []
        # Each with the time until which its holder was told that it is good.
        self.handed_out = {}
        self.tokens = 0
        self.first = None

    def serve(self, at=METADATA):
        """Listens at once; returns the address."""
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with socket.create_connection(outer.upstream) as upstream:
                    upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    try:
                        outer.carry(self.request, upstream)
                    except (OSError, EOFError):
                        pass

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True
            request_queue_size = 128

        server = Server(at, Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server.server_address

    def carry(self, client, upstream):
        from_client, from_upstream = client.makefile("rb"), upstream.makefile("rb")
        while True:
            request = head(from_client)
            method = request.split(b" ", 1)[0]
            kind = self.kind_of(request)
            with self.lock:
                self.asked.append({"at": round(time.monotonic() - self.began, 2), **asked(request)})
            reply = self.instead(kind)
            if reply is None:
                upstream.sendall(request + from_client.read(length(request)))
                top = head(from_upstream)
                body = from_upstream.read(0 if method == b"HEAD" else length(top))
                reply = self.changed(kind, top, body)
            client.sendall(reply)
            if b"\r\nconnection: close" in (request + reply.split(b"\r\n\r\n")[0]).lower():
                return

    @staticmethod
    def kind_of(request):
        """What is asked for, where a fault is about it."""
        path = request.split(b" ", 2)[1].decode("latin-1").partition("?")[0].rstrip("/")
        return next((kind for kind in ("token", "identity") if path.endswith("/" + kind)), None)

    def instead(self, kind):
        """A reply of our own; None lets the request through."""
        if self.condition == "slow" and kind:
            time.sleep(LATENCY)
        if not (self.condition == "all-503" or (self.condition == "503" and kind)):
            return None
        with self.lock:
            self.first = self.first or time.monotonic()
            if time.monotonic() - self.first >= OUTAGE:
                return None
        # As in tests/golden/metadata/token-transient.http and identity-transient.http.
        status = "404 Not Found" if kind == "identity" and self.condition == "503" else "503 Service Unavailable"
        body = "the token endpoint does not answer: try again"
        return (f"HTTP/1.1 {status}\r\nMetadata-Flavor: Google\r\nContent-Type: text/plain; charset=utf-8\r\n"
                f"Server: Metadata Server for VM\r\nContent-Length: {len(body)}\r\nX-XSS-Protection: 0\r\n"
                f"X-Frame-Options: SAMEORIGIN\r\n\r\n{body}").encode("ascii")

    def changed(self, kind, top, body):
        if kind != "token" or b" 200 " not in top.split(b"\r\n", 1)[0]:
            return top + body
        token = json.loads(body)
        with self.lock:
            self.tokens += 1
            first, later = LEFT.get(self.condition, (None, None))
            left = (first if self.tokens == 1 else later) or token["expires_in"]
            self.handed_out[token["access_token"]] = time.monotonic() + left
        body = re.sub(rb'"expires_in":\s*\d+', b'"expires_in":%d' % left, body)
        return re.sub(rb"(?i)(\r\ncontent-length: *)\d+", rb"\g<1>%d" % len(body), top) + body


def head(stream):
    lines = []
    while not lines or lines[-1] not in (b"\r\n", b"\n"):
        lines.append(stream.readline(65536))
        if not lines[-1]:
            raise EOFError
    return b"".join(lines)


def length(top):
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", top)
    return int(found.group(1)) if found else 0


def asked(request):
    """For the record: the path, with the host where it is not the address, and without values of parameters."""
    path, _, query = request.split(b" ", 2)[1].decode("latin-1").partition("?")
    names = "&".join(sorted(pair.partition("=")[0] for pair in query.split("&"))) if query else ""
    host = re.search(rb"(?i)\r\nhost: *([^\r]*)", request)
    return {"path": path + (f"?{names}" if names else ""), "host": host.group(1).decode("latin-1") if host else ""}
