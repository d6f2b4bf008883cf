"""What kfp does with a task's container, many times: create with auto_remove, start, logs to their end, wait.

Every container writes two lines that only it writes, one on each stream, and ends at once with a code of its own. Prints
one JSON object that says how each step went, by what the client saw; exits 0 when no code was lost:

    codes   right | wrong: GOT for WANTED | <status>: why
    logs    whole | short: what came | 404 (or another status of the logs request) | inspect 404 (docker-py looks for a tty)
"""

import argparse
import collections
import concurrent.futures
import json
import os
import random
import sys

import docker


def one(given, number, code):
    client = docker.from_env(timeout=120)
    try:
        container = client.containers.create(
            given.image,
            ["sh", "-c", 'echo "out $0"; echo "err $0" >&2; exit "$1"', str(number), str(code)],
            auto_remove=True,
            detach=True,
            network=given.network,
            labels={"kfp-creds-test": given.label},
        )
        container.start()
        return logs_of(client, container, number), code_of(container, code)
    finally:
        client.close()


def logs_of(client, container, number):
    try:
        text = b"".join(container.logs(stream=True)).decode()
    except docker.errors.APIError as error:
        asked = "inspect " if error.response.url.endswith("/json") else ""
        return f"{asked}{error.status_code}"
    return "whole" if sorted(text.splitlines()) == [f"err {number}", f"out {number}"] else f"short: {text!r}"


def code_of(container, code):
    try:
        answer = container.wait()
        return "right" if answer["StatusCode"] == code else f"wrong: {answer} for {code}"
    except docker.errors.APIError as error:
        return f"{error.status_code}: {error.explanation}"


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("-n", "--containers", type=int, choices=range(1, 2001), default=100, metavar="N")
    options.add_argument("-p", "--parallel", type=int, choices=range(1, 17), default=6, metavar="N")
    options.add_argument("--image", default=os.environ.get("KFP_CREDS_TASK_IMAGE"))
    options.add_argument("--network", required=True, help="an internal network")
    given = options.parse_args()
    given.label = f"auto-removed-{os.getpid()}"
    client = docker.from_env()
    if not client.networks.get(given.network).attrs["Internal"]:
        sys.exit("--network must name an internal network")
    dice = random.Random(0)
    work = [(number, dice.randrange(1, 120)) for number in range(given.containers)]
    try:
        with concurrent.futures.ThreadPoolExecutor(given.parallel) as pool:
            done = list(pool.map(lambda pair: one(given, *pair), work))
    finally:
        for left in client.containers.list(all=True, filters={"label": f"kfp-creds-test={given.label}"}):
            try:
                left.remove(force=True)
            except docker.errors.APIError:  # its removal is under way
                pass
    logs, codes = (dict(collections.Counter(column)) for column in zip(*done))
    print(json.dumps({"containers": given.containers, "parallel": given.parallel, "logs": logs, "codes": codes}))
    sys.exit(codes != {"right": given.containers})


if __name__ == "__main__":
    main()
