"""Python's libraries, one of them by name: python_google.py LIBRARY STEP..."""

import datetime
import os
import sys

from said import run

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
URL = "https://storage.googleapis.com/storage/v1/b/bucket/o/object?alt=media"


class Auth:
    """google-auth itself."""

    made = None

    def default(self):
        if self.made is None:
            import google.auth
            self.made = google.auth.default(scopes=[SCOPE])
        return self.made

    def credentials(self):
        return self.default()[0]

    def request(self):
        import google.auth.transport.requests
        return google.auth.transport.requests.Request()

    def detect(self):
        return type(self.credentials()).__module__ == "google.auth.compute_engine.credentials"

    def project(self):
        return self.default()[1]

    def universe(self):
        return self.credentials().universe_domain

    def email(self):
        return self.credentials().service_account_email

    def token(self):
        """As before each call: what is there, if the library takes it for good."""
        headers = {}
        self.credentials().before_request(self.request(), "GET", URL, headers)
        return headers["authorization"].removeprefix("Bearer ")

    again = use = token

    def refresh(self):
        self.credentials().refresh(self.request())
        return self.credentials().token

    def identity(self):
        from google.oauth2 import id_token
        return id_token.fetch_id_token(self.request(), os.environ["AUDIENCE"])

    def api(self):
        from google.auth.transport.requests import AuthorizedSession
        answer = AuthorizedSession(self.credentials()).get(URL)
        answer.raise_for_status()
        return answer.text


class Library(Auth):
    """One that uses google-auth; `client` makes and keeps its client."""

    kept = None

    def client(self):
        if self.kept is None:
            self.kept = self.make()
        return self.kept

    def credentials(self):
        return self.client()._credentials

    def project(self):
        return self.client().project

    def universe(self):
        return self.client().universe_domain

    def api_refresh(self):
        # As an hour later.
        self.credentials().expiry = datetime.datetime(2020, 1, 1)
        return self.api()


class Storage(Library):
    def make(self):
        from google.cloud import storage
        return storage.Client()

    def api(self):
        return self.client().bucket("bucket").blob("object").download_as_text()


class BigQuery(Library):
    def make(self):
        from google.cloud import bigquery
        return bigquery.Client()

    def universe(self):
        # The client compares this with its own before its first call.
        return self.credentials().universe_domain

    def api(self):
        [found] = self.client().list_datasets()
        return "read with a real token ok" if found.dataset_id == "dataset" else found.dataset_id


class BigQueryStorage(Library):
    def make(self):
        from google.cloud import bigquery_storage
        return bigquery_storage.BigQueryReadClient()

    def credentials(self):
        return self.client().transport._credentials

    def api_refresh(self):
        # Its channel has a copy of the credentials that cannot be reached; a new one asks again.
        self.kept = None
        return self.api()

    def api(self):
        from google.cloud.bigquery_storage import types
        session = self.client().create_read_session(
            parent="projects/own-project", read_session=types.ReadSession(table="t"), max_stream_count=1)
        return session.name


class Gcsfs(Library):
    def make(self):
        import gcsfs
        return gcsfs.GCSFileSystem(token="google_default", skip_instance_cache=True, use_listings_cache=False)

    def credentials(self):
        return self.client().credentials.credentials

    def project(self):
        return self.client().project

    def api(self):
        return self.client().cat("bucket/object").decode()


class Kfp:
    """kfp.client.auth: access tokens only."""

    def token(self):
        from kfp.client import auth
        token = auth.get_gcp_access_token()
        if token is None:
            raise ValueError("get_gcp_access_token() returned None")
        return token

    # It keeps nothing between calls.
    refresh = again = use = token


class Arrow:
    """pyarrow's GcsFileSystem: google-cloud-cpp."""

    kept = None

    def api(self):
        from pyarrow import fs
        if self.kept is None:
            self.kept = fs.GcsFileSystem(retry_time_limit=datetime.timedelta(seconds=20))
        with self.kept.open_input_stream("bucket/object") as stream:
            return stream.read().decode()

    def api_refresh(self):
        # It has no way to be told; a new one asks again.
        self.kept = None
        return self.api()


KINDS = {"google-auth": Auth, "storage": Storage, "bigquery": BigQuery, "bigquery-storage": BigQueryStorage,
         "gcsfs": Gcsfs, "kfp": Kfp, "pyarrow": Arrow}

if __name__ == "__main__":
    kind = KINDS[sys.argv[1]]()
    names = ("detect", "project", "universe", "email", "token", "refresh", "again", "use", "identity", "api")
    found = {name: getattr(kind, name) for name in names if hasattr(kind, name)}
    found["api-use"] = found["api-again"] = found.get("api")
    found["api-refresh"] = getattr(kind, "api_refresh", found.get("api"))
    run(sys.argv[2:], found)
