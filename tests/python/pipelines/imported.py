"""Components that read what importers and an argument name in Cloud Storage. kfp 2.16 and later."""

import sys

from kfp import dsl

from common import IMAGE, component, log_to_stderr, report, start

BUCKET = sys.argv[1]


@component
def reader(data: dsl.Input[dsl.Dataset], model: dsl.Input[dsl.Model]) -> dict:
    """Says what is below /gcs, and whether anything can be written there."""
    import os

    seen = {}
    for top, _, files in os.walk("/gcs"):
        for name in files:
            path = os.path.join(top, name)
            seen[path] = open(path).read()
    writable = []
    for path in (data.path, os.path.join(model.path, "new"), os.path.dirname(data.path)):
        try:
            open(path, "a").close()
            writable.append(path)
        except OSError:
            pass
    return {"path": data.path, "data": open(data.path).read(), "model": sorted(os.listdir(model.path)),
            "seen": seen, "writable": writable, "uid": os.getuid()}


# kfp.local gives `data.path` of an importer to container components as it gives `data.uri`; an argument is one here.
@dsl.container_component
def container(path: str, said: dsl.OutputPath(str)):
    script = 'mkdir -p "$(dirname "$1")" && cat "$0" >"$1"'
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-c", script], args=[path, said])


@dsl.pipeline(name="imported")
def imported() -> dict:
    data = dsl.importer(artifact_uri=f"gs://{BUCKET}/dir/data.csv", artifact_class=dsl.Dataset, reimport=False)
    model = dsl.importer(artifact_uri=f"gs://{BUCKET}/model", artifact_class=dsl.Model, reimport=False)
    container(path=f"/gcs/{BUCKET}/dir/data.csv")
    return reader(data=data.output, model=model.output).output


if __name__ == "__main__":
    start()
    with log_to_stderr():
        run = imported()
    report(reader=run.output)
