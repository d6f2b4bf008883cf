"""Writes one engine's column of docs/internals/engines.md from what its test run reported (JUnit, as cargo-nextest writes it).

    python tests/python/engines.py NAME VERSION docs/internals/engines.md target/nextest/default/junit.xml

Of several reports the later one counts for a test that is in both. Columns of other engines stay as their own last runs left them. A group of tests that did not run is a dash.
"""

import collections
import pathlib
import re
import sys
import xml.etree.ElementTree

NAMES = ["docker-20", "docker-26", "docker-28", "docker-28-rootless", "podman-5.4", "podman-5", "podman-5-rootless"]

# What a user calls it, and the modules below tests/it/engine/ that show it.
FEATURES = [
    ("identity from the first instruction on, `check`, nothing left", "basics"),
    ("kfp pipelines, newest and oldest kfp", "kfp unknown"),
    ("sessions: several at once, killed, swept", "sessions names leaving runs interrupts"),
    ("a fixed socket, service managers, the Python package, the image", "named python_package jupyterlab quickstarts deploy"),
    ("exit codes and output, `run --rm` too", "outputs exit_codes"),
    ("stop, start, restart, restart policies", "starts"),
    ("events that come late or in another order", "order"),
    ("`network.attach`: each mode, and strangers on its network", "alone::attaching"),
    ("a container's end, its last token, a dead relay", "alone::death"),
    ("what fails, and what recovers by itself: [failures](failures.md)", "alone::failing"),
    ("the engine restarts under a session; faults at random", "alone::restart alone::soak"),
    ("engines on tcp with TLS and behind ssh; `serve --tls`", "far tls"),
    ("an engine with files of its own (in a VM): binds, volumes, loads", "alone::vm"),
    ("hundreds of containers, none missed", "stress"),
    ("`isolation = \"network\"`", "cells"),
    ("interfaces and addresses in the container", "interfaces eth0"),
    ("containers on the host's network", "host_network"),
    ("mounts of the config", "mounts"),
    ("inputs of tasks in Cloud Storage, at `/gcs`", "inputs"),
    ("key guard: mounts, variables, builds, loads", "guard builds"),
    ("config read again", "reload"),
    ("attacks on neighbours and on what is ours", "attacks floods baselines joins cloud_attacks"),
    ("requests read in two ways", "smuggling"),
    ("docker CLI, docker-py, compose through the proxy", "proxy streams matrix visible python_clients"),
    ("client libraries in containers", "clients node_clients conforming libraries alone::libraries"),
    ("what is said, logged and measured", "seeing terminal leaks page"),
    ("sources, stand-ins, recorded relay", "sources denied stand_ins golden_relay"),
    ("images of older builds go", "alone::images"),
    ("the relay as a program of its own, from a folder and by its digest", "relay_program"),
    ("Podman's own API", "podman"),
]


def read(reports):
    """{module: [names of passed tests, names of failed tests]}"""
    last = {}
    for report in reports:
        for case in xml.etree.ElementTree.parse(report).getroot().iter("testcase"):
            match = re.match(r"engine::((?:alone::)?\w+)::(.+)", case.get("name"))
            if match:
                last[match.groups()] = case.find("failure") is not None or case.find("error") is not None
    found = collections.defaultdict(lambda: ([], []))
    for (module, test), failed in last.items():
        found[module][failed].append(test)
    return found


def cell(found, modules):
    passed = sum(len(found[module][0]) for module in modules.split() if module in found)
    failed = [name for module in modules.split() if module in found for name in found[module][1]]
    if failed:
        return f"{passed} of {passed + len(failed)}"
    return f"ok ({passed})" if passed else "–"


def rows(text):
    """The cells of the table of a document, without the line below its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return table[:1] + table[2:]


def written(text, name, version, found):
    old = rows(text)
    columns = {column.split(" ")[0]: (column, {row[0]: row[at] for row in old[1:]})
               for at, column in enumerate(old[0]) if at >= 2} if old else {}
    columns[name] = (f"{name} {version}", {feature: cell(found, modules) for feature, modules in FEATURES})
    head = ["feature", "tests"] + [columns.get(known, (known, {}))[0] for known in NAMES]
    table = [head, ["---"] * len(head)]
    for feature, modules in FEATURES:
        table.append([feature, modules] + [columns.get(known, ("", {}))[1].get(feature, "–") for known in NAMES])
    lines = ["| " + " | ".join(row) + " |" for row in table]
    kept = text.splitlines()
    first = next(at for at, line in enumerate(kept) if line.startswith("|"))
    last = max(at for at, line in enumerate(kept) if line.startswith("|"))
    return "\n".join(kept[:first] + lines + kept[last + 1:]) + "\n"


def main():
    name, version, document, *reports = sys.argv[1:]
    document = pathlib.Path(document)
    found = read(reports)
    unknown = set(found) - {module for _, modules in FEATURES for module in modules.split()}
    if unknown:
        sys.exit(f"no feature names these tests: {', '.join(sorted(unknown))}")
    document.write_text(written(document.read_text(), name, version, found))
    for module, (_, failed) in sorted(found.items()):
        for test in failed:
            print(f"{name} {version}: failed: {module}::{test}", file=sys.stderr)


if __name__ == "__main__":
    main()
