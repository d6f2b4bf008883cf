"""One component that reads what was mounted for it. Any kfp from 2.7 on."""

from kfp import dsl

from common import component, log_to_stderr, report, start


@component
def reader() -> str:
    """Says what the mounted file holds; a write has to fail."""
    try:
        open("/mnt/data/new.txt", "w").close()
    except OSError:
        return open("/mnt/data/data.txt").read()
    raise RuntimeError("the mount is writable")


@dsl.pipeline(name="mounted")
def mounted() -> str:
    return reader().output


if __name__ == "__main__":
    start()
    with log_to_stderr():
        run = mounted()
    report(read=run.output)
