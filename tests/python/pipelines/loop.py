"""A ParallelFor whose iterations each ask for a token, two at a time (kfp >= 2.16)."""

from typing import List

from kfp import dsl

from common import component, log_to_stderr, report, start, whoami

ask = component(whoami)


@component
def gather(said: List[dict]) -> List[dict]:
    return said


@dsl.pipeline(name="loop")
def loop() -> List[dict]:
    with dsl.ParallelFor(["a", "b", "c", "d"]) as note:
        said = ask(note=note)
    return gather(said=dsl.Collected(said.output)).output


if __name__ == "__main__":
    start(max_concurrent_pip_installs=2)
    with log_to_stderr():
        run = loop()
    report(iterations=run.output)
