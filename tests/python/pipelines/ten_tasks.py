"""Ten small tasks in a row with kfp.local's DockerRunner, from an engine at DOCKER_HOST; prints the seconds.

For `scripts/bench --only attach`: a first run, which is not counted, loads kfp and the image."""

import os
import sys
import tempfile
import time

from kfp import dsl, local

IMAGE = os.environ["KFP_CREDS_TASK_IMAGE"]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def step(number: int) -> int:
    return number + 1


@dsl.pipeline
def ten():
    last = step(number=0)
    for _ in range(9):
        last = step(number=last.output)


@dsl.pipeline
def one():
    step(number=0)


root = tempfile.mkdtemp(dir=os.environ.get("KFP_CREDS_BENCH_ROOT"))
local.init(runner=local.DockerRunner(), pipeline_root=root, raise_on_error=True)
one()
began = time.perf_counter()
ten()
print(f"seconds {time.perf_counter() - began:.3f}", file=sys.stderr)
