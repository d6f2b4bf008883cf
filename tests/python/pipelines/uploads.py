"""Container components without outputs, beside a component that shows whose task it is. `--compile FILE` only compiles it.

What they are given is in their commands, so that only the compiled pipeline tells them apart. Any kfp from 2.7 on.
"""

import sys

from kfp import compiler, dsl

from common import IMAGE, component, log_to_stderr, report, start


@component
def prepare() -> str:
    return "prepared"


@dsl.container_component
def upload(what: str):
    return dsl.ContainerSpec(image=IMAGE, command=["echo", "upload"], args=["--what", what, "to here"])


@dsl.container_component
def look(what: str):
    return dsl.ContainerSpec(image=IMAGE, command=["echo", "look"], args=["--what", what])


@dsl.pipeline(name="uploads")
def uploads(what: str = "a thing"):
    prepared = prepare()
    uploaded = upload(what=prepared.output)
    look(what=what).after(uploaded)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compile"]:
        compiler.Compiler().compile(uploads, sys.argv[2])
        sys.exit()
    start()
    with log_to_stderr():
        uploads()
    report()
