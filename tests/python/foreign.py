"""A program and a relay for another architecture, run by an emulator: both have to answer; run by scripts/wheel in a network of its own.

    python foreign.py PROGRAM RELAY EMULATOR...
"""

import http.client
import json
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

PROGRAM, RELAY, *EMULATOR = sys.argv[1:]
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
HEADERS, SETTINGS, PING, END_STREAM, END_HEADERS, ACK = 1, 4, 6, 1, 4, 1
ANSWER = b'{"access_token":"of the tunnel"}'


def said(*words):
    return subprocess.run([*EMULATOR, *words], check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def exactly(stream, length):
    found = stream.read(length)
    assert len(found) == length, "the relay ended"
    return found


def host(process, callers):
    """The host's end of the tunnel: HTTP/2 (RFC 9113) that gives every request the same answer."""

    def send(kind, flags, stream, payload=b""):
        process.stdin.write(struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload)
        process.stdin.flush()

    assert exactly(process.stdout, 24) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    send(SETTINGS, 0, 0)
    while True:
        head = process.stdout.read(9)
        if len(head) < 9:
            return
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        stream = int.from_bytes(head[5:], "big")
        payload = exactly(process.stdout, length)
        if kind in (SETTINGS, PING) and not flags & ACK:
            send(kind, ACK, 0, payload if kind == PING else b"")
        if kind == HEADERS:
            callers.append(payload)
            send(HEADERS, END_HEADERS, stream, b"\x88")  # :status 200, by its number in HPACK's table
            send(0, END_STREAM, stream, ANSWER)


def asked(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def relay_answers():
    process = subprocess.Popen([*EMULATOR, RELAY, "relay", "127.0.0.1"], **PIPES)
    callers = []
    threading.Thread(target=host, args=(process, callers), daemon=True).start()
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", 80), 5).close()
            break
        except OSError:
            assert time.monotonic() < until and process.poll() is None, "the relay does not listen"
            time.sleep(0.1)
    assert asked(80, "/computeMetadata/v1/instance/id") == (200, ANSWER)
    assert callers
    process.kill()
    process.wait(30)


def program_serves():
    with tempfile.TemporaryDirectory() as folder:
        command = [*EMULATOR, PROGRAM, "serve", "--json", "--stdin", "--offline", "--listen", "127.0.0.1:0"]
        environment = {"HOME": folder, "XDG_RUNTIME_DIR": folder, "NO_GCE_CHECK": "true", "PATH": "/usr/bin:/bin"}
        process = subprocess.Popen(command, text=True, env=environment, **PIPES)
        ready = json.loads(process.stdout.readline())
        at = urllib.parse.urlsplit("//" + ready["environment"]["GCE_METADATA_HOST"])
        path = f"{at.path}/computeMetadata/v1/instance/service-accounts/default/token"
        status, body = asked(at.port, path)
        assert status == 200 and json.loads(body)["token_type"] == "Bearer", body
        # The relay's program asks the same.
        said(RELAY, "probe", "127.0.0.1", "--port", str(at.port), "--below", at.path)
        process.stdin.close()
        assert process.wait(60) == 0


version = said(PROGRAM, "--version")
assert version.startswith("kfp-creds "), version
with tempfile.TemporaryDirectory() as folder:
    for arch in ("amd64", "arm64"):
        image = pathlib.Path(folder) / f"{arch}.tar"
        said(PROGRAM, "relay-image", "--arch", arch, str(image))
        assert 500_000 < image.stat().st_size <= 3_000_000, (arch, image.stat().st_size)
relay_answers()
program_serves()
print(f"installed     {version} under {pathlib.Path(EMULATOR[0]).name}: program and relay answer", file=sys.stderr)
