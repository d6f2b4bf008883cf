"""Many short containers, each asking for its token with its first instruction; counts what went wrong.

Creates, starts, reads logs of and waits for containers just as `kfp.local` does (docker-py, auto_remove, a client per
container), at the engine or proxy that DOCKER_HOST names. Half of them are task `reader`, half `writer` of a pipeline
`stress`, so that rules can give them two identities. Each ends with an exit code of its own.

Prints one JSON object; exits 0 when nothing was missed, wrong or lost, else 1:

    missed          containers whose first request returned no token
    wrong_identity  tokens that name another container, or the account of the other task
    lost_codes      waits that did not answer with the container's exit code
    lost_logs       logs that did not hold what the container wrote
    errors          whatever else failed, by kind

`--token address` is for attachment by events, where no environment says whom to ask: only on an internal network.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time

import docker

TASKS = ("reader", "writer")
LABEL = "kfp-creds-stress"
PATH = "computeMetadata/v1/instance/service-accounts/default/token"
# The first instruction asks; what is kept of the token is its claims alone. $0 output file, $1 exit code. As in kfp
# nobody makes the output's directory before the task runs: an existing one says that its task was there before.
ASK = (
    """claims=$(curl -s --noproxy '*' --max-time 5 -H 'Metadata-Flavor: Google' "http://%s/""" + PATH + """" """
    """| sed -n 's/.*"access_token": *"[^.]*\\.\\([^.]*\\)\\..*/\\1/p'); mkdir -p "${0%%/*}"; echo "$claims" >"$0"; """
)
SCRIPTS = {
    # Without its environment a container is not attached, and asks nobody.
    "environment": '[ -n "$GCE_METADATA_HOST" ] && ' + ASK % "$GCE_METADATA_HOST",
    "address": ASK % "169.254.169.254",
    "none": "",
}
END = 'echo "$1"; exit "$1"'


def decoded(payload):
    import base64

    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


class Run:
    def __init__(self, given):
        self.given = given
        self.root = tempfile.mkdtemp(prefix="stress-root-")
        stamp = time.strftime("%Y-%m-%d-%H-%M-%S") + f"-{random.randrange(10**6):06}"
        self.day, micros = stamp.rsplit("-", 1)
        self.first = int(micros)
        self.label = stamp
        dice = random.Random(given.seed)
        # Not 0, and below what engines and shells use themselves.
        self.codes = [dice.randrange(1, 120) for _ in range(given.containers)]
        self.script = SCRIPTS[given.token] + END
        self.options = {"network": given.network} if given.network else {}

    def one(self, number):
        """The faults of one container, as names of counters."""
        task, code = TASKS[number % 2], self.codes[number]
        # A run of its own for each, so that no two write to the same task's directory.
        stamp = f"{self.day}-{(self.first + number) % 10**6:06}"
        output = os.path.join(self.root, f"stress-{stamp}", task, "claims")
        client = docker.from_env(timeout=120)
        try:
            began = time.monotonic()
            container = client.containers.create(
                self.given.image,
                ["sh", "-c", self.script, output, str(code)],
                volumes={self.root: {"bind": self.root, "mode": "rw"}},
                auto_remove=True,
                detach=True,
                labels={LABEL: self.label},
                **self.options,
            )
            created = time.monotonic() - began
            container.start()
            faults = []
            if not self.log_is_whole(container, code):
                faults.append("lost_logs")
            if self.code_of(container) != code:
                faults.append("lost_codes")
            if self.given.token != "none":
                faults += self.token_faults(output, task, container.id)
            return faults, created
        finally:
            client.close()

    def log_is_whole(self, container, code):
        try:
            return b"".join(container.logs(stream=True)).strip() == str(code).encode()
        except docker.errors.APIError as error:
            if error.status_code in (404, 409):  # removed before we asked
                return False
            raise

    def code_of(self, container):
        try:
            return container.wait()["StatusCode"]
        except docker.errors.NotFound:
            return None  # kfp takes this for success

    def token_faults(self, output, task, container):
        with open(output, encoding="utf-8") if os.path.exists(output) else open(os.devnull) as file:
            payload = file.read().strip()
        if not payload:
            return ["missed"]
        claims = decoded(payload)
        wanted = self.given.expect.get(task)
        right = claims.get("container") == container and (wanted is None or claims.get("email") == wanted)
        return [] if right else ["wrong_identity"]

    def sweep(self):
        """Removes what the run left, and what an interrupted one did."""
        # Containers write as root; a user who is not root leaves these few bytes behind.
        shutil.rmtree(self.root, ignore_errors=True)
        client = docker.from_env()
        for container in client.containers.list(all=True, filters={"label": f"{LABEL}={self.label}"}):
            try:
                container.remove(force=True)
            except docker.errors.APIError:
                pass
        client.close()


def assert_internal(network):
    """Nothing that is not attached may ask that address where a packet could leave the machine."""
    client = docker.from_env()
    if not network or not client.networks.get(network).attrs["Internal"]:
        sys.exit("--token address needs --network with an internal network")
    client.close()


def identity(text):
    task, _, account = text.partition("=")
    if task not in TASKS or not account:
        raise argparse.ArgumentTypeError(f"want reader=ACCOUNT or writer=ACCOUNT, not {text!r}")
    return task, account


def bounded(least, most):
    def number(text):
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{least} to {most}")
        return value

    return number


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("-n", "--containers", type=bounded(1, 5000), default=200)
    options.add_argument("-p", "--parallel", type=bounded(1, 64), default=6)
    options.add_argument("--image", default=os.environ.get("KFP_CREDS_TASK_IMAGE"))
    options.add_argument("--token", choices=sorted(SCRIPTS), default="environment")
    options.add_argument("--network", help="the containers' own network; default: the engine's bridge")
    options.add_argument("--expect", type=identity, action="append", default=[], metavar="TASK=ACCOUNT")
    options.add_argument("--seed", type=int, default=random.randrange(2**32))
    given = options.parse_args()
    if not given.image:
        options.error("no image: set KFP_CREDS_TASK_IMAGE")
    if given.token == "address":
        assert_internal(given.network)
    given.expect = dict(given.expect)
    run, counts, errors, creates = Run(given), collections.Counter(), collections.Counter(), []
    began = time.monotonic()
    try:
        with concurrent.futures.ThreadPoolExecutor(given.parallel) as pool:
            for done in concurrent.futures.as_completed([pool.submit(run.one, n) for n in range(given.containers)]):
                try:
                    faults, created = done.result()
                    counts.update(faults)
                    creates.append(created)
                except Exception as error:  # counted, so that one container never hides the others
                    status, said = getattr(error, "status_code", ""), getattr(error, "explanation", None) or error
                    errors[re.sub("[0-9a-f]{12,}", "<id>", f"{type(error).__name__} {status} {said}")[:200]] += 1
    finally:
        run.sweep()
    seconds = time.monotonic() - began
    creates.sort()
    result = {name: counts[name] for name in ("missed", "wrong_identity", "lost_codes", "lost_logs")}
    print(json.dumps({
        "containers": given.containers, "parallel": given.parallel, "seed": given.seed, **result, "errors": errors,
        "seconds": round(seconds, 1), "create_p50_ms": round(creates[len(creates) // 2] * 1e3, 1) if creates else None,
    }))
    sys.exit(1 if errors or any(result[name] for name in ("missed", "wrong_identity", "lost_codes")) else 0)


if __name__ == "__main__":
    main()
