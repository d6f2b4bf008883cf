"""Attachment by events, as a tool without a proxy has to do it: how often does a container's first request come too soon?

A server stands on an internal network of this script's own. Containers are created and started back to back, as
`kfp.local` does, on another internal network, and ask the server with their first instruction. In the first round a
listener connects each container when the engine announces its creation; in the second the creator connects it before
it starts. Prints one JSON object with what was missed in either round. Nothing here can leave the machine.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import sys
import threading
import time
import uuid

import docker

SERVER = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, h.ThreadingHTTPServer, port=80)"


@contextlib.contextmanager
def networks(client, name):
    made = []
    try:
        for part in ("own", "ours"):
            made.append(client.networks.create(f"{name}-{part}", internal=True))
        yield made
    finally:
        for network in made:
            remove(network)


def remove(network):
    """An engine that connected a container while it went counts an endpoint that is none, and keeps the network for it."""
    for _ in range(20):
        try:
            return network.remove()
        except docker.errors.APIError as error:
            if error.status_code != 403:
                raise
            time.sleep(0.5)
    print(f"{network.name} stays: the engine counts endpoints that nobody has", file=sys.stderr)


def serve(client, image, network, name):
    server = client.containers.run(image, ["python3", "-c", SERVER], network=network.name, name=name, detach=True,
                                   labels={"event-attach-server": name})
    for _ in range(100):
        probe = server.exec_run(["curl", "-s", "-o", "/dev/null", "http://127.0.0.1/"])
        if probe.exit_code == 0:
            break
    server.reload()
    return server, server.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]


def listen(client, label, network, stop):
    for event in client.events(decode=True, filters={"type": "container", "event": "create", "label": label}):
        if stop.is_set():
            return
        with contextlib.suppress(docker.errors.APIError):  # gone before we came
            network.connect(event["id"])


def one(image, label, own, ours, address):
    """Whether the container's first request was answered."""
    client = docker.from_env(timeout=60)
    try:
        container = client.containers.create(
            image, ["curl", "-s", "-m", "1", "-o", "/dev/null", f"http://{address}/"], network=own.name, labels=[label])
        try:
            if ours is not None:
                ours.connect(container.id)
            container.start()
            return container.wait()["StatusCode"] == 0
        finally:
            try:
                container.remove(force=True)
            except docker.errors.APIError:  # Podman's clean-up of a connected network fails at times; it is removed all the same
                pass
    finally:
        client.close()


def missed(given, label, own, ours, address):
    with concurrent.futures.ThreadPoolExecutor(given.parallel) as pool:
        jobs = [pool.submit(one, given.image, label, own, ours, address) for _ in range(given.containers)]
        return sum(not job.result() for job in jobs)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("-n", "--containers", type=int, default=30)
    options.add_argument("-p", "--parallel", type=int, default=6)
    options.add_argument("--image", default=os.environ.get("KFP_CREDS_TASK_IMAGE"))
    given = options.parse_args()
    name = "event-attach-" + uuid.uuid4().hex[:8]
    client = docker.from_env(timeout=60)
    with networks(client, name) as (own, ours):
        server, address = serve(client, given.image, ours, name)
        try:
            stop = threading.Event()
            threading.Thread(target=listen, args=(docker.from_env(), name, ours, stop), daemon=True).start()
            by_events = missed(given, name, own, None, address)
            stop.set()
            before_start = missed(given, name + "-2", own, ours, address)
        finally:
            server.remove(force=True)
    print(json.dumps({"containers": given.containers, "parallel": given.parallel,
                      "by_events": {"missed": by_events}, "before_start": {"missed": before_start}}))


if __name__ == "__main__":
    main()
