"""google-auth, google-cloud-bigquery, google-cloud-storage and curl in containers, with default credentials only.

Run it beside `emulators.py`, whose gateways refuse what brings no valid token. kfp from 2.7 on.
"""

import os
from typing import NamedTuple

from kfp import dsl

from common import component, log_to_stderr, report, start


@component
def auth() -> dict:
    import os

    import google.auth
    import google.auth.transport.requests

    # Google's libraries would ask the magic address by default: an unattached container asks nobody.
    if "GCE_METADATA_HOST" not in os.environ:
        raise RuntimeError("this container was not attached")
    credentials, project = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    credentials.refresh(google.auth.transport.requests.Request())
    return {"kind": type(credentials).__module__, "project": project, "account": credentials.service_account_email,
            "valid": credentials.valid}


@component
def bigquery(endpoint: str) -> dict:
    import os

    from google.cloud import bigquery

    if "GCE_METADATA_HOST" not in os.environ:
        raise RuntimeError("this container was not attached")
    client = bigquery.Client(client_options={"api_endpoint": endpoint})
    (row,) = client.query("SELECT 6 * 7 AS answer").result()
    return {"answer": row.answer, "project": client.project}


@component
def storage(endpoint: str) -> dict:
    import os

    from google.cloud import storage

    if "GCE_METADATA_HOST" not in os.environ:
        raise RuntimeError("this container was not attached")
    client = storage.Client(client_options={"api_endpoint": endpoint})
    bucket = client.create_bucket("clients-" + os.urandom(4).hex())
    # One piece, and pieces: the second is a resumable upload, which follows a Location header.
    bucket.blob("small").upload_from_string("written without a key")
    large = bucket.blob("large", chunk_size=256 * 1024)
    large.upload_from_string(b"x" * 600_000)
    return {
        "small": bucket.blob("small").download_as_text(),
        "large": len(bucket.blob("large").download_as_bytes()),
        "names": sorted(blob.name for blob in client.list_blobs(bucket)),
    }


@component
def curl(endpoint: str) -> dict:
    """The token as a shell script would use it; and what the gateway says without one."""
    import json
    import os
    import subprocess

    if "GCE_METADATA_HOST" not in os.environ:
        raise RuntimeError("this container was not attached")
    script = """
        account=http://$GCE_METADATA_HOST/computeMetadata/v1/instance/service-accounts/default
        token=$(curl -sSf --noproxy '*' -H 'Metadata-Flavor: Google' $account/token |
            sed -n 's/.*"access_token": *"\\([^"]*\\)".*/\\1/p')
        url=$0/bigquery/v2/projects/p/datasets
        with=$(curl -sS -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $token" $url)
        without=$(curl -sS -o /dev/null -w '%{http_code}' $url)
        echo "{\\"with\\": $with, \\"without\\": $without}"
    """
    done = subprocess.run(["sh", "-ec", script, endpoint], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@dsl.pipeline(name="clients")
def clients(big: str, store: str) -> NamedTuple("Said", auth=dict, bigquery=dict, storage=dict, curl=dict):
    said = auth(), bigquery(endpoint=big), storage(endpoint=store), curl(endpoint=big)
    return NamedTuple("Said", auth=dict, bigquery=dict, storage=dict, curl=dict)(*(task.output for task in said))


if __name__ == "__main__":
    start()
    with log_to_stderr():
        run = clients(big=os.environ["BIGQUERY_EMULATOR_HOST"], store=os.environ["STORAGE_EMULATOR_HOST"])
    report(**{name: run.outputs[name] for name in ("auth", "bigquery", "storage", "curl")})
