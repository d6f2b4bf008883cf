"""A task and a runner that set environment of their own: kept, and merged where it must be (kfp >= 2.17)."""

from kfp import dsl

from common import component, log_to_stderr, report, start, whoami

ask = component(whoami)


@component
def environment() -> dict:
    """What the container sees; no variable of ours holds a secret."""
    import os

    wanted = ("FROM_TASK", "FROM_RUNNER", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_QUOTA_PROJECT", "GCE_METADATA_HOST",
              "GCE_METADATA_IP", "GCE_METADATA_ROOT", "NO_PROXY", "no_proxy")
    return {name: os.environ.get(name) for name in wanted}


@dsl.pipeline(name="own-env")
def own_env() -> dict:
    said = environment()
    said.set_env_variable("FROM_TASK", "task")
    said.set_env_variable("GOOGLE_CLOUD_PROJECT", "set-by-the-task")
    said.set_env_variable("NO_PROXY", "registry.example.com")
    ask().set_env_variable("FROM_TASK", "task").after(said)
    return said.output


if __name__ == "__main__":
    start(environment={"FROM_RUNNER": "runner"})
    with log_to_stderr():
        run = own_env()
    report(environment=run.output)
