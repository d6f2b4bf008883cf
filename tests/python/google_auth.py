"""Google's own library against the server that the environment names: prints what it found, never a token.

In a container and on this machine alike. It asks nobody unless it is told whom: without these two variables the
library would look for a metadata server of its own accord.
"""

import base64
import datetime
import json
import os
import sys

if not {"GCE_METADATA_HOST", "GCE_METADATA_IP"} <= os.environ.keys():
    sys.exit("GCE_METADATA_HOST and GCE_METADATA_IP have to say whom to ask")

import google.auth
import google.auth.transport.requests
from google.oauth2 import id_token


def claims(token):
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


def left(credentials):
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    return (credentials.expiry - now).total_seconds()


request = google.auth.transport.requests.Request()
credentials, project = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
credentials.refresh(request)
first = claims(credentials.token)
# The second time the library goes by the e-mail that it was told.
credentials.refresh(request)
second = claims(credentials.token)
report = {
    "kind": type(credentials).__module__,
    "project": project,
    "account": credentials.service_account_email,
    "universe": credentials.universe_domain,
    "valid": credentials.valid,
    "left": left(credentials),
    "first": first,
    "second": second,
    "identity": claims(id_token.fetch_id_token(request, "https://service.example/path?a=b")),
}
json.dump(report, sys.stdout)
