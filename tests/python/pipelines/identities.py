"""Two components of one pipeline, to be run as two identities by rules on `reader` and `writer`. kfp from 2.7 on."""

from typing import NamedTuple

from kfp import dsl

from common import CLAIMS, IMAGE, decoded, log_to_stderr, report, start

SAVE = CLAIMS + 'mkdir -p "$(dirname "$0")"; printf %s "$payload" >"$0"'


@dsl.container_component
def reader(payload: dsl.OutputPath(str)):
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-c", SAVE, payload])


@dsl.container_component
def writer(payload: dsl.OutputPath(str)):
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-c", SAVE, payload])


@dsl.pipeline(name="identities")
def identities() -> NamedTuple("Said", reader=str, writer=str):
    read, wrote = reader(), writer()
    return NamedTuple("Said", reader=str, writer=str)(read.output, wrote.output)


if __name__ == "__main__":
    start()
    with log_to_stderr():
        run = identities()
    report(reader=decoded(run.outputs["reader"]), writer=decoded(run.outputs["writer"]))
