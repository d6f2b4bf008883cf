"""Sizes, times and memory of an installed wheel, as a table; run by scripts/newcomer with an engine in DOCKER_HOST.

    python newcomer.py UV WHEEL
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile

UV, WHEEL = sys.argv[1], pathlib.Path(sys.argv[2])
#: What the project set itself: the most, and its unit.
GOALS = {
    "the wheel": (6.5, "MB"),
    "the program in it, without the relays that it carries": (9.0, "MB"),
    "the relay's image": (3.0, "MB"),
    "memory (RSS) of the relay": (3.0, "MiB"),
}
rows = []


def row(what, value, unit, digits=2, more=""):
    goal = GOALS.get(what)
    assert goal is None or goal[1] == unit
    verdict = "none" if goal is None else f"≤ {goal[0]:g} {unit}: {'met' if value <= goal[0] else 'MISSED'}"
    rows.append((what, f"{value:.{digits}f} {unit}{more}", verdict))


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def timed(*command, rounds=1, **options):
    """The median, and the first, in milliseconds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run(*command, **options)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times[1:] or times), times[0]


def resident(pid):
    fields = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def served(program, *arguments, **options):
    """A session that is ready, its ready line, and the milliseconds until then."""
    began = time.perf_counter()
    command = [program, "serve", "--json", "--stdin", "--offline", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, text=True, **pipes, **options)
    ready = json.loads(process.stdout.readline())
    return process, ready, (time.perf_counter() - began) * 1000


def ended(process):
    process.stdin.close()
    assert process.wait(30) == 0


def sizes(program, folder):
    row("the wheel", WHEEL.stat().st_size / 1e6, "MB")
    size = pathlib.Path(program).stat().st_size
    carried = 0
    for arch in ("amd64", "arm64"):
        image = folder / f"relay-{arch}.tar"
        made = subprocess.run([program, "relay-image", "--arch", arch, str(image)], capture_output=True, check=False)
        if made.returncode == 0:
            carried += image.stat().st_size
            row("the relay's image", image.stat().st_size / 1e6, "MB", more=f" ({arch})")
        else:
            rows.append((f"the relay's image ({arch})", "not in this wheel", "none"))
    row("the program in it, without the relays that it carries", (size - carried) / 1e6, "MB", more=f" of {size / 1e6:.2f} MB")
    with zipfile.ZipFile(WHEEL) as wheel:
        packed = sum(one.compress_size for one in wheel.infolist() if not one.filename.endswith("/scripts/kfp-creds"))
    row("what else is in the wheel, packed", packed / 1000, "kB", 0)


def starts(program, python, folder):
    environment = {**os.environ, "UV_CACHE_DIR": str(folder / "uv"), "UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_PYTHON": python}
    uvx = [UV, "tool", "run", "--from", str(WHEEL), "kfp-creds"]
    warm, first = timed(*uvx, "--version", rounds=8, env=environment)
    row("`uvx kfp-creds --version`, warm", warm, "ms", 0, f", the first time {first:.0f}")
    row("`kfp-creds --version`", timed(program, "--version", rounds=20)[0], "ms", 1)
    row("`python -m kfp_creds --version`", timed(python, "-m", "kfp_creds", "--version", rounds=10)[0], "ms", 0)
    environment["XDG_RUNTIME_DIR"] = str(folder)
    warm, first = timed(*uvx, "run", "--offline", "--quiet", "--", "true", rounds=6, env=environment)
    row("`uvx kfp-creds run -- true`: a session from start to end, warm", warm, "ms", 0, f", the first time {first:.0f}")


def sessions(program, folder):
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    for what, arguments in (("`serve --listen`", ["--listen", "127.0.0.1:0"]), ("`serve`, relay image present", [])):
        times = []
        for _ in range(8):
            process, ready, took = served(program, *arguments, env=environment)
            times.append(took)
            if len(times) < 8:
                ended(process)
        row(f"start to ready of {what}", statistics.median(times[1:]), "ms", 0)
        time.sleep(1)
        row(f"memory (RSS) of the host process of {what.split(',')[0]}, idle", resident(process.pid), "MiB", 1)
        if not arguments:
            label = f"label=kfp-creds.session={ready['session']}"
            relay = run("docker", "ps", "-q", "--filter", label).split()[0]
            row("memory (RSS) of the relay", resident(run("docker", "inspect", "-f", "{{.State.Pid}}", relay).strip()), "MiB", 1)
        ended(process)


with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    began = time.perf_counter()
    run(sys.executable, "-m", "venv", str(folder / "venv"))
    made = time.perf_counter()
    python, program = str(folder / "venv/bin/python"), str(folder / "venv/bin/kfp-creds")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", str(WHEEL))
    row("`pip install` into a fresh environment", time.perf_counter() - made, "s", 1, f", making it {made - began:.1f}")
    sizes(program, folder)
    starts(program, python, folder)
    sessions(program, folder)

print("| figure | value | goal |\n|---|---|---|")
for one in rows:
    print("| " + " | ".join(one) + " |")
