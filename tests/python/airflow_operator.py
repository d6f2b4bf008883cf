"""Airflow's DockerOperator, executed without a scheduler: what its task returns, what it logs, how it fails. Prints one JSON object, so
that a run through kfp-creds can be compared with one at the engine itself.

  DOCKER_HOST=unix://… AIRFLOW_HOME=FOLDER python airflow_operator.py IMAGE [NETWORK-MODE]
"""

import json
import logging
import os
import sys

os.environ.update(AIRFLOW__CORE__UNIT_TEST_MODE="False", AIRFLOW__CORE__LOAD_EXAMPLES="False", AIRFLOW__DATABASE__SQL_ALCHEMY_CONN="sqlite://")

from airflow.providers.docker.operators.docker import DockerOperator  # noqa: E402

image, mode = sys.argv[1], (sys.argv[2:] or [None])[0]
results = {}


class Kept(logging.Handler):
    """What the operator logs of the container's output."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def executed(name, command, **more):
    operator = DockerOperator(task_id=name, image=image, command=command, docker_url=os.environ["DOCKER_HOST"], network_mode=mode,
                              mount_tmp_dir=False, auto_remove="force", retrieve_output=False, tty=False, **more)
    kept = Kept()
    operator.log.addHandler(kept)
    try:
        returned = operator.execute({})
    except Exception as error:  # noqa: BLE001  how a task fails is what is looked at
        returned = f"{type(error).__name__}: {error}"
    finally:
        operator.log.removeHandler(kept)
    results[name] = [returned, [line for line in kept.lines if line.startswith(("out", "err"))]]


executed("good", ["sh", "-c", "echo out 1; echo out 2"])
executed("all", ["sh", "-c", "echo out 1; echo out 2"], xcom_all=True)
executed("streams", ["sh", "-c", "echo out; sleep 1; echo err >&2"])
executed("code-3", ["sh", "-c", "echo out before; exit 3"])
executed("environment", ["sh", "-c", "echo out $OWN"], environment={"OWN": "1"})
executed("skipped", ["sh", "-c", "exit 99"], skip_on_exit_code=99)
if not mode:
    script = "import google.auth; print('out', google.auth.default()[1])"
    executed("identity", ["python3", "-c", script])
print(json.dumps(results))
