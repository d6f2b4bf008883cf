"""A metadata server as one writes it first: run as `python3 -c THIS` in a container of a test.

It has a fixed number of workers for all callers together, as servers have that know no callers apart; it takes heads
and bodies as they come, waits as long as it is asked to, and believes a header that says who calls, as servers behind
a proxy do.
"""

import json
import queue
import socket
import threading

WORKERS = 64
CALLER = (b"kfp-creds-caller", b"x-real-ip")


def head_of(stream):
    """The head and what came with it, however long it is and however long it takes."""
    pieces, tail = [], b""
    while b"\r\n\r\n" not in tail:
        piece = stream.recv(65536)
        if not piece:
            raise ConnectionError("closed before the end of the head")
        pieces.append(piece)
        tail = tail[-3:] + piece
    return b"".join(pieces).split(b"\r\n\r\n", 1)


def serve(stream, at):
    head, rest = head_of(stream)
    line, *fields = head.split(b"\r\n")
    headers = dict((name.strip().lower(), value.strip()) for name, _, value in (f.partition(b":") for f in fields))
    caller = next((headers[name].decode() for name in CALLER if name in headers), at[0])
    if b"content-length" in headers or b"transfer-encoding" in headers:
        while stream.recv(65536):  # a body, to its end
            pass
    if b"wait_for_change=true" in line:
        stream.recv(1)  # until the caller leaves
    body = json.dumps({"access_token": "of " + caller}).encode()
    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)


def work(accepted):
    while True:
        stream, at = accepted.get()
        with stream:
            try:
                serve(stream, at)
            except OSError:
                pass


def main():
    listener = socket.create_server(("0.0.0.0", 80), backlog=4096)
    accepted = queue.Queue(WORKERS)
    for _ in range(WORKERS):
        threading.Thread(target=work, args=(accepted,), daemon=True).start()
    print("serving", flush=True)
    while True:
        accepted.put(listener.accept())


main()
