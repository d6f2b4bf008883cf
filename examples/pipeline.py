"""A pipeline that queries BigQuery from its containers, with no key anywhere (kfp >= 2.16: ParallelFor).

    kfp-creds run -- python examples/pipeline.py --project my-project

Its components say `bigquery.Client()` and nothing about credentials: in the cloud and under `kfp-creds` alike,
Google's library finds the metadata server. With BIGQUERY_EMULATOR_HOST in the environment the components talk to
that engine instead, with the same credentials.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from typing import List

from kfp import dsl, local

IMAGE = os.environ.get("KFP_CREDS_TASK_IMAGE", "python:3.11")
component = dsl.component(base_image=IMAGE, packages_to_install=["google-cloud-bigquery"])


@component
def extract(project: str, endpoint: str, dataset: str) -> List[str]:
    """Makes a table of orders; returns the cities in it."""
    from google.cloud import bigquery

    client = bigquery.Client(project=project or None, client_options={"api_endpoint": endpoint} if endpoint else None)
    client.create_dataset(dataset, exists_ok=True)
    client.query(f"""
        CREATE OR REPLACE TABLE {dataset}.orders AS
        SELECT id, CASE WHEN MOD(id, 7) < 3 THEN 'Lima' WHEN MOD(id, 7) < 5 THEN 'Oslo' ELSE 'Pune' END AS city,
               MOD(id * 37, 101) AS amount
        FROM UNNEST(GENERATE_ARRAY(1, 300)) AS id""").result()
    rows = client.query(f"SELECT DISTINCT city FROM {dataset}.orders ORDER BY city").result()
    return [row.city for row in rows]


@component
def transform(project: str, endpoint: str, dataset: str, city: str) -> int:
    """Sums up one city, in a table of its own."""
    from google.cloud import bigquery

    client = bigquery.Client(project=project or None, client_options={"api_endpoint": endpoint} if endpoint else None)
    client.query(f"""
        CREATE OR REPLACE TABLE {dataset}.sum_{city} AS
        SELECT city, COUNT(*) AS orders, SUM(amount) AS amount
        FROM {dataset}.orders WHERE city = '{city}' GROUP BY city""").result()
    (row,) = client.query(f"SELECT amount FROM {dataset}.sum_{city}").result()
    return row.amount


@component
def load(project: str, endpoint: str, dataset: str, cities: List[str], amounts: List[int]) -> List[dict]:
    """Puts the cities' tables together and checks them against what the iterations returned."""
    from google.cloud import bigquery

    client = bigquery.Client(project=project or None, client_options={"api_endpoint": endpoint} if endpoint else None)
    union = " UNION ALL ".join(f"SELECT * FROM {dataset}.sum_{city}" for city in cities)
    client.query(f"CREATE OR REPLACE TABLE {dataset}.report AS {union}").result()
    rows = [dict(row) for row in client.query(f"SELECT * FROM {dataset}.report ORDER BY amount DESC").result()]
    if sum(row["amount"] for row in rows) != sum(amounts):
        raise ValueError(f"the report {rows} does not add up to {amounts}")
    return rows


@dsl.pipeline(name="city-sales")
def city_sales(project: str, endpoint: str, dataset: str = "city_sales") -> List[dict]:
    extracted = extract(project=project, endpoint=endpoint, dataset=dataset)
    with dsl.ParallelFor(extracted.output) as city:
        summed = transform(project=project, endpoint=endpoint, dataset=dataset, city=city)
    loaded = load(project=project, endpoint=endpoint, dataset=dataset, cities=extracted.output,
                  amounts=dsl.Collected(summed.output))
    return loaded.output


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--project", default="", help="default: the one that the credentials name")
    options.add_argument("--endpoint", default=os.environ.get("BIGQUERY_EMULATOR_HOST", ""))
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="city-sales-", ignore_cleanup_errors=True) as outputs:
        local.init(local.DockerRunner(max_concurrent_pip_installs=2), pipeline_root=outputs)
        # kfp writes its log to stdout; the result alone belongs there.
        with contextlib.redirect_stdout(sys.stderr):
            run = city_sales(project=given.project, endpoint=given.endpoint)
        for row in run.output:
            # Not `print`: kfp replaces it while tasks run, and sometimes leaves its own there after parallel ones.
            sys.stdout.write(f"{row['city']:<8}{row['orders']:>6.0f} orders {row['amount']:>8.0f}\n")


if __name__ == "__main__":
    main()
