"""Two lightweight components, one after the other: two containers, two tokens. Any kfp from 2.7 on."""

from typing import NamedTuple

from kfp import dsl

from common import component, log_to_stderr, report, start, whoami

first = component(whoami)


@component
def second(before: dict) -> dict:
    """Hands on what it was given, with its own host name."""
    import socket

    return {"before": before["container"], "hostname": socket.gethostname()}


@dsl.pipeline(name="lightweight")
def lightweight() -> NamedTuple("Said", first=dict, second=dict):
    said = first(note="first")
    after = second(before=said.output)
    return NamedTuple("Said", first=dict, second=dict)(said.output, after.output)


if __name__ == "__main__":
    start()
    with log_to_stderr():
        run = lightweight()
    report(first=run.outputs["first"], second=run.outputs["second"])
