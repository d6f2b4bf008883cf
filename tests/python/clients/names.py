"""A DNS server that knows a handful of names and nothing else."""

import socket
import struct
import threading

A, AAAA, NO_SUCH_NAME = 1, 28, 3


def address(name, known):
    """Of the name itself, or of the wildcard that it falls under."""
    return known.get(name) or known.get("*." + name.partition(".")[2])


def answer(query, known):
    """A for what is known, an empty answer for its AAAA, otherwise that there is no such name."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode("ascii").lower())
        at += 1 + query[at]
    question = query[12:at + 5]
    (kind,) = struct.unpack("!H", query[at + 1:at + 3])
    found = address(".".join(labels), known)
    record = b""
    if found and kind == A:
        record = b"\xc0\x0c" + struct.pack("!HHIH", A, 1, 1, 4) + socket.inet_aton(found)
    # Response, recursion desired and available.
    flags = 0x8180 | (0 if found else NO_SUCH_NAME)
    return query[:2] + struct.pack("!HHHHH", flags, 1, 1 if record else 0, 0, 0) + question + record


def serve_dns(known, at=("127.0.0.1", 53)):
    """Answers on a thread of its own; the socket is bound when this returns."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(at)

    def loop():
        while True:
            query, client = server.recvfrom(4096)
            try:
                server.sendto(answer(query, known), client)
            except (IndexError, UnicodeDecodeError, struct.error):
                pass

    threading.Thread(target=loop, daemon=True).start()
