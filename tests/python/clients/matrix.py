"""Every client library under every condition, each run in a namespace of its own; prints what came of it as JSON.

    .work/venv/bin/python tests/python/clients/matrix.py --program PATH [--only TEXT] [--condition NAME] [--loud]

With `--source` some clients alone are run, in front of a program that has a real credential, and what each step
brought is printed as it is.

What is installed where is told by the environment (`scripts/setup --clients`). A client that is not there is listed
with the reason, and it is the caller's business whether it has to be there.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from table import CLIENTS, CONDITIONS

HERE = pathlib.Path(__file__).parent
# Most of the time clients sleep; with more at a time those with short time-outs would feel it.
PARALLEL = 8


def certificates(folder):
    """A certificate authority of this run, and a certificate for Google's APIs."""
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=made for one test run",
            "-days", "2", "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=googleapis.com")
    (folder / "extensions").write_text(
        "subjectAltName=DNS:*.googleapis.com,DNS:accounts.google.com\nextendedKeyUsage=serverAuth\n"
        "basicConstraints=CA:FALSE\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n", encoding="ascii")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", "server.pem", "-days", "2", "-extfile", "extensions")


def stage(program, client, condition, steps, folder, *more):
    """One run in its own namespaces; they end with their first process, and that with us."""
    # Without root, as root of a user namespace.
    apart = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]),
             "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [*apart, sys.executable, HERE / "stage.py", "--program", program, "--certificates", folder,
               "--condition", condition, "--environment", json.dumps(client.get("env", {})), *more, "--",
               *client["command"], *steps]
    began = time.monotonic()
    ran = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False)
    if ran.returncode:
        raise RuntimeError(f"{client['name']}, {condition}: the stage broke:\n{ran.stderr[-3000:]}")
    seen = json.loads(ran.stdout.splitlines()[-1])
    seen["seconds"] = round(time.monotonic() - began, 1)
    return seen


def steps_of(client, condition):
    """What the client is told to do, or None where this condition says nothing about it."""
    first = client["first"]
    of = "api-" if first == "api" else ""
    return {
        "normal": client["steps"],
        "universe": ["universe"] if "universe" in client["steps"] and first == "token" else None,
        "503": [first, f"{of}again@{client.get('pause', 3.5)}"],
        "all-503": [first, f"{of}again@{client.get('pause', 3.5)}"],
        "slow": [first],
        "near": [first, f"{of}use@0.3", f"{of}use@0.4"],
        "short": [first, f"{of}use@3.5"],
    }[condition]


def good(seen, step):
    return step in seen["steps"] and "error" not in seen["steps"][step]


def fetched(seen, steps):
    return sum(seen["steps"][step]["fetched"] for step in steps)


def verdict(client, condition, seen, steps):
    """One word or two, and what a person wants to know when it is not what it was."""
    first, *later = steps
    if condition in ("503", "all-503"):
        return "yes" if good(seen, first) else "at the next call" if good(seen, later[0]) else "no"
    if condition == "near":
        if not all(good(seen, step) for step in steps):
            return "no"
        if seen["steps"][later[1]]["fetched"]:
            return "asks each time"
        return "asks again" if fetched(seen, steps) > 1 else "keeps it"
    if condition == "short":
        return "yes" if all(good(seen, step) for step in steps) and fetched(seen, steps) > 1 else "no"
    return "yes" if good(seen, first) else "no"


def row(client, runs):
    """The cells of one client."""
    cells = {}
    for step in ("detect", "token", "refresh", "identity", "project", "universe", "email", "api"):
        names = [name for name in (step, f"api-{step}") if name in client["steps"]]
        if names and "normal" in runs:
            cells[step] = "yes" if good(runs["normal"], names[0]) else "no"
        elif not names:
            cells[step] = "-"
    if "universe" in runs and cells["universe"] == "yes" and not good(runs["universe"], "universe"):
        cells["universe"] = "no"
    for condition in ("503", "all-503", "slow", "near", "short"):
        if condition in runs:
            cells[condition] = verdict(client, condition, runs[condition], steps_of(client, condition))
    errors = {condition: {step: said["error"] for step, said in seen["steps"].items() if "error" in said}
              for condition, seen in runs.items()}
    asked = []
    for request in runs.get("normal", {"asked": []})["asked"]:
        path = request["path"].removeprefix("/computeMetadata/v1")
        if path not in asked:
            asked.append(path)
    return {"name": client["name"], "family": client["family"], "version": client["version"](), "cells": cells,
            "notes": client.get("notes", {}), "remarks": client.get("remarks", []), "asked": asked,
            "errors": {condition: of for condition, of in errors.items() if of},
            "silent": {condition: seen["said"] for condition, seen in runs.items()
                       if len(seen["steps"]) < len(set(steps_of(client, condition)))},
            "seconds": {condition: seen["seconds"] for condition, seen in runs.items()}}


def with_source(given, folder):
    """Each of the named clients, until it has a token or its patience is over."""
    clients = [client for client in CLIENTS if client["name"] in given.client]
    steps = ["detect", "token", "again@3.5", "again@4", "again@4.5"]

    def run(client):
        missing = client["missing"]()
        if missing:
            return {"name": client["name"], "missing": missing}
        seen = stage(given.program, client, "normal", steps, folder, "--source", json.dumps(given.source))
        return {"name": client["name"], **seen}

    return [run(client) for client in clients]


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--program", required=True)
    options.add_argument("--only", default="")
    options.add_argument("--condition", choices=CONDITIONS)
    options.add_argument("--parallel", type=int, default=PARALLEL)
    options.add_argument("--source", type=json.loads, help="as of stage.py")
    options.add_argument("--client", action="append", default=[], help="with --source: whom to run, by name")
    options.add_argument("--loud", action="store_true", help="everything of each run, on stderr")
    given = options.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kcc-ca-"))
    rows, absent, work = [], [], []
    try:
        certificates(folder)
        if given.source:
            print(json.dumps(with_source(given, folder)))
            return
        with concurrent.futures.ThreadPoolExecutor(given.parallel) as pool:
            for client in (client for client in CLIENTS if given.only in client["name"]):
                missing = client["missing"]()
                if missing:
                    absent.append({"name": client["name"], "family": client["family"], "why": missing})
                    continue
                runs = {}
                for condition in CONDITIONS:
                    steps = steps_of(client, condition)
                    if steps and given.condition in (None, condition):
                        runs[condition] = pool.submit(stage, given.program, client, condition, steps, folder)
                work.append((client, runs))
            for client, runs in work:
                done = {condition: run.result() for condition, run in runs.items()}
                if given.loud:
                    print(client["name"], json.dumps(done, indent=1), file=sys.stderr)
                rows.append(row(client, done))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"rows": rows, "absent": absent}, indent=1))


if __name__ == "__main__":
    main()
