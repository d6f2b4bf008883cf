"""Three components, each of another cloud and each with its own library: BigQuery, S3, Blob Storage. Then what somebody
gets who copies the environment of a container.

Run it beside `emulators.py --clouds`, with CLOUD_CLIENTS: where the clients of AWS and Azure are in a container. Prints a report
for a person; the exit code is 0 when everything was as it should be.
"""

import os
import sys
from typing import NamedTuple

import docker
from kfp import dsl

from common import IMAGE, component, log_to_stderr, start

AWS, AZURE = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "IDENTITY_HEADER"


@component
def query_bigquery(endpoint: str) -> dict:
    import os

    from google.cloud import bigquery

    client = bigquery.Client(client_options={"api_endpoint": endpoint})
    (row,) = client.query("SELECT 6 * 7 AS answer").result()
    others = sorted(name for name in os.environ if name.startswith(("AWS_", "IDENTITY_")))
    return {"said": f"6 * 7 = {row.answer:.0f}", "others": others}


@component
def write_s3(endpoint: str, clients: str) -> dict:
    import os
    import sys

    sys.path.insert(0, clients)
    import boto3

    s3 = boto3.client("s3", endpoint_url=endpoint)
    s3.put_object(Bucket="data", Key="orders.csv", Body=b"id,amount\n1,42\n")
    size = len(s3.get_object(Bucket="data", Key="orders.csv")["Body"].read())
    others = sorted(name for name in os.environ if name.startswith(("GCE_METADATA", "IDENTITY_")))
    return {"said": f"s3://data/orders.csv has {size} bytes", "others": others}


@component
def write_blob(endpoint: str, clients: str, authority: str) -> dict:
    import os
    import sys

    sys.path.insert(0, clients)
    with open("/tmp/authority.pem", "w") as file:
        file.write(authority)
    from azure.identity import DefaultAzureCredential
    from azure.storage.blob import BlobServiceClient

    service = BlobServiceClient(endpoint, credential=DefaultAzureCredential(), connection_verify="/tmp/authority.pem")
    blob = service.get_blob_client("data", "orders.csv")
    blob.upload_blob(b"id,amount\n1,42\n", overwrite=True)
    size = len(blob.download_blob().readall())
    others = sorted(name for name in os.environ if name.startswith(("GCE_METADATA", "AWS_")))
    return {"said": f"data/orders.csv in Blob Storage has {size} bytes", "others": others}


@dsl.pipeline(name="three-clouds")
def three_clouds(big: str, s3: str, blob: str, clients: str,
                 authority: str) -> NamedTuple("Said", bigquery=dict, s3=dict, blob=dict):
    said = (query_bigquery(endpoint=big), write_s3(endpoint=s3, clients=clients),
            write_blob(endpoint=blob, clients=clients, authority=authority))
    return NamedTuple("Said", bigquery=dict, s3=dict, blob=dict)(*(task.output for task in said))


def with_a_copied_environment():
    """Statuses: of the container itself, of a neighbour in the session with the same identity, and of a stranger."""
    session = docker.from_env()
    engine = docker.DockerClient(os.environ["KFP_CREDS_TEST_ENGINE"])
    kept, hold = [], ["sleep", "120"]
    status = ("curl -s -o /dev/null --noproxy '*' --connect-timeout 3 --max-time 8 -w '%{http_code}' "
              "-H \"X-IDENTITY-HEADER: $SECRET\" \"$URL\" || true")

    def answers(container, environment):
        urls = [f"{environment['IDENTITY_ENDPOINT']}?api-version=2019-08-01&resource=https://storage.azure.com"]
        if AWS in environment:
            urls.insert(0, f"http://169.254.170.2{environment[AWS]}")
        said = []
        for url in urls:
            ran = engine.containers.get(container.id).exec_run(
                ["sh", "-c", status], environment={"URL": url, "SECRET": environment[AZURE]})
            said.append(ran.output.decode().strip())
        return said

    try:
        for client in (session, session, engine):
            kept.append(client.containers.run(IMAGE, hold, detach=True, labels={"who": "owner"}))
        owner, neighbour, stranger = kept
        variables = engine.containers.get(owner.id).attrs["Config"]["Env"]
        environment = dict(line.split("=", 1) for line in variables)
        return [answers(container, environment) for container in (owner, neighbour, stranger)]
    finally:
        for container in kept:
            engine.containers.get(container.id).remove(force=True)


def main():
    start()
    with open(os.environ["BLOB_CA"], encoding="ascii") as file:
        authority = file.read()
    with log_to_stderr():
        run = three_clouds(big=os.environ["BIGQUERY_EMULATOR_HOST"], s3=os.environ["S3_ENDPOINT"],
                           blob=os.environ["BLOB_ENDPOINT"], clients=os.environ["CLOUD_CLIENTS"], authority=authority)
    faults, lines = [], []
    for name in ("bigquery", "s3", "blob"):
        task = run.outputs[name]
        lines.append(f"{name:<34}{task['said']}")
        if task["others"]:
            faults.append(f"{name} has variables of other clouds: {task['others']}")
    owner, neighbour, stranger = with_a_copied_environment()
    told = ("the container itself", owner), ("another container of the session", neighbour), ("a stranger", stranger)
    for who, statuses in told:
        lines.append(f"{who:<34}{' '.join('no answer' if status == '000' else status for status in statuses)}")
    if set(owner) != {"200"} or "200" in neighbour or set(stranger) != {"000"}:
        faults.append("credentials went to somebody else, or not to their owner")
    # Not `print`: kfp replaces it while tasks run.
    sys.__stdout__.write("".join(f"{line}\n" for line in lines))
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
