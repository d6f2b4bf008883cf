"""What the pipelines of the tests share: how they start, what a component says about itself, how they report.

Each pipeline is a script that prints one JSON object on stdout (kfp's own log goes to stderr) and exits like any
user's script would. Run them under `kfp-creds run --offline`; an unattached container asks nobody for a token.
"""

import atexit
import contextlib
import json
import os
import shutil
import sys
import tempfile

import kfp
from kfp import dsl, local

IMAGE = os.environ["KFP_CREDS_TASK_IMAGE"]
VERSION = tuple(int(part) for part in kfp.__version__.split(".")[:2])


def whoami(note: str = "") -> dict:
    """Runs in a container: asks for a token and an identity token, returns their claims, never the tokens."""
    import base64
    import json
    import os
    import socket
    import urllib.request

    if "GCE_METADATA_HOST" not in os.environ:
        raise RuntimeError("this container was not attached")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    account = f"http://{os.environ['GCE_METADATA_HOST']}/computeMetadata/v1/instance/service-accounts/default/"

    def ask(path):
        request = urllib.request.Request(account + path, headers={"Metadata-Flavor": "Google"})
        with direct.open(request, timeout=10) as reply:
            return reply.read().decode()

    def claims(token):
        payload = token.split(".")[1]
        return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))

    answer = json.loads(ask("token"))
    access, identity = claims(answer["access_token"]), claims(ask("identity?audience=https://example.com&format=full"))
    return {
        "note": note,
        "container": access["container"],
        "email": access.get("email", access.get("sub")),
        "scope": access["scope"],
        "expires_in": int(answer["expires_in"]),
        "hostname": socket.gethostname(),
        "audience": identity["aud"],
        "identity_container": identity.get("container"),
    }


def start(root=None, **runner):
    """Initialises local execution; returns the pipeline root, which goes when the script ends."""
    if root is None:
        root = tempfile.mkdtemp(prefix="pipeline-root-")
        atexit.register(shutil.rmtree, root, ignore_errors=True)
    local.init(local.DockerRunner(**runner), pipeline_root=root)
    return root


def component(function):
    return dsl.component(base_image=IMAGE)(function)


@contextlib.contextmanager
def log_to_stderr():
    with contextlib.redirect_stdout(sys.stderr):
        yield


def report(**result):
    # Not `print`: kfp replaces it while tasks run, and after parallel ones it stays replaced (2.17: lines are indented).
    # Nor `sys.stdout`: `log_to_stderr` replaces it in all threads.
    sys.__stdout__.write(json.dumps({"kfp": kfp.__version__, **result}) + "\n")
    sys.__stdout__.flush()


# For container components: prints the claims of the token, that is the middle part alone, so that no log holds a token.
CLAIMS = (
    '[ -n "$GCE_METADATA_HOST" ] || { echo "this container was not attached" >&2; exit 90; }; '
    "payload=$(curl -sSf --noproxy '*' --max-time 10 -H 'Metadata-Flavor: Google' "
    '"http://$GCE_METADATA_HOST/computeMetadata/v1/instance/service-accounts/default/token" '
    """| sed -n 's/.*"access_token": *"[^.]*\\.\\([^.]*\\)\\..*/\\1/p'); [ -n "$payload" ] || exit 91; """
)


def decoded(payload):
    """The claims of a token's middle part."""
    import base64

    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
