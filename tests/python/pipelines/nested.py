"""One component, used twice, in a nested pipeline, and, from kfp 2.16 on, under a condition and in a loop. `--compile FILE` only compiles it."""

import sys

from kfp import compiler, dsl

from common import VERSION, component, log_to_stderr, report, start


@component
def who(note: str) -> str:
    return note


@dsl.pipeline(name="inner")
def inner():
    who(note="inner")


@dsl.pipeline(name="nested")
def nested():
    first = who(note="first")
    second = who(note="second").after(first)
    inner().after(second)
    if VERSION >= (2, 16):
        with dsl.If(first.output == "first"):
            who(note="under a condition")
        with dsl.ParallelFor(["a", "b"]) as item:
            who(note=item)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compile"]:
        compiler.Compiler().compile(nested, sys.argv[2])
        sys.exit()
    start()
    with log_to_stderr():
        nested()
    report()
