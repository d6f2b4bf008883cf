"""Iterations that take a minute each, for Ctrl-C in a ParallelFor (kfp >= 2.16).

Prints {"started": true} when the first container runs, so that a test knows when to interrupt.
"""

import os
import threading
import time

from kfp import dsl

from common import IMAGE, log_to_stderr, report, start


@dsl.container_component
def sleeps(mark: dsl.OutputPath(str), number: int):
    # `exec`: the sleep is process 1 and ends on SIGKILL alone, as badly behaved programs do.
    script = 'mkdir -p "$(dirname "$0")"; : >"$0"; exec sleep 60'
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-c", script, mark, number])


@dsl.pipeline(name="long")
def long():
    with dsl.ParallelFor([1, 2, 3, 4, 5, 6]) as number:
        sleeps(number=number)


def announce(root):
    while not any(files for _, _, files in os.walk(root)):
        time.sleep(0.05)
    report(started=True)


if __name__ == "__main__":
    root = start()
    threading.Thread(target=announce, args=(root,), daemon=True).start()
    with log_to_stderr():
        long()
    report(finished=True)
