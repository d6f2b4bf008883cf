"""A component that ends with an exit code in under 50 ms, many times: kfp has to hear of every failure.

Reports how often it did not. Exits 1 when the last run failed, as a user's script does. Any kfp from 2.7 on.
"""

import argparse
import sys

from kfp import dsl

from common import IMAGE, log_to_stderr, report, start


@dsl.container_component
def fails_at_once(code: int):
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-c", 'exit "$0"'], args=[code])


@dsl.pipeline(name="fails")
def fails(code: int):
    fails_at_once(code=code)


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--times", type=int, default=20)
    options.add_argument("--code", type=int, default=3)
    given = options.parse_args()
    start()
    lost, said = 0, ""
    for _ in range(given.times):
        try:
            with log_to_stderr():
                fails(code=given.code)
            lost += 1
        except RuntimeError as error:
            said = str(error)
    report(times=given.times, lost=lost, error=said)
    sys.exit(0 if lost == given.times else 1)
