"""Container components, with an output and without one (which says nothing of its pipeline). Any kfp from 2.7 on."""

from kfp import dsl

from common import CLAIMS, IMAGE, decoded, log_to_stderr, report, start


@dsl.container_component
def with_output(payload: dsl.OutputPath(str)):
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["sh", "-c", CLAIMS + 'mkdir -p "$(dirname "$0")"; printf %s "$payload" >"$0"', payload],
    )


@dsl.container_component
def without_output():
    # `wants a token` fails the task when none is there; the exit code is the report.
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-c", CLAIMS + "exit 0"])


@dsl.pipeline(name="containers")
def containers() -> str:
    said = with_output()
    without_output().after(said)
    return said.output


if __name__ == "__main__":
    start()
    with log_to_stderr():
        run = containers()
    report(with_output=decoded(run.output), without_output="ran")
