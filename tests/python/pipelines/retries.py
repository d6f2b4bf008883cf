"""A task that fails once and is tried again: a new container, a new lease, a token of its own (kfp >= 2.17)."""

from kfp import dsl

from common import component, log_to_stderr, report, start, whoami

ask = component(whoami)


@component
def second_time(note: str, marks: dsl.Output[dsl.Artifact]) -> dict:
    """Leaves a mark beside its output and fails; the next attempt finds the mark."""
    import os
    import socket

    mark = os.path.join(os.path.dirname(marks.path), "mark")
    if not os.path.exists(mark):
        os.makedirs(os.path.dirname(mark), exist_ok=True)
        with open(mark, "w", encoding="utf-8") as file:
            file.write(socket.gethostname())
        raise SystemExit(7)
    with open(mark, encoding="utf-8") as file:
        return {"first": file.read(), "second": socket.gethostname()}


@dsl.pipeline(name="retries")
def retries() -> dict:
    said = second_time(note="retry").set_retry(num_retries=2)
    ask(note="after").after(said)
    return said.outputs["Output"]


if __name__ == "__main__":
    start()
    with log_to_stderr():
        run = retries()
    report(**run.output)
