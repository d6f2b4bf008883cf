"""The clients of AWS and Azure: how each is started, in which form it asks, and why a verdict is not yes (`table.py` has
Google's)."""

import json

from table import PROGRAMS, WORK, said, there

PYTHON = WORK / "venv-clouds/bin/python"
NODE = WORK / "node-clouds"
# How credentials are asked for.
CONTAINER, IMDS, APP_SERVICE = "container credentials", "IMDS", "App Service"

# Reasons that several share.
ONCE = "it asks once and waits for 1 s"
ANONYMOUS = "it goes on without credentials"
NEW_ONE = "its credentials cannot be reached: a new client asks again"


def python(name, library, package, form, steps, family="Python", **more):
    version = f"import importlib.metadata as m; print(m.version('{package}'))"
    return {"name": name, "family": family, "form": form,
            "command": [PYTHON, PROGRAMS / "python_clouds.py", library],
            "version": lambda: said(PYTHON, "-c", version), "missing": there(PYTHON), "steps": steps, **more}


def node(name, library, package, form, steps, **more):
    def version():
        file = NODE / "node_modules" / package / "package.json"
        return f"{json.loads(file.read_text(encoding='utf-8'))['version']} (Node {said('node', '--version')[1:]})"

    def missing():
        return there("node")() or (None if NODE.exists() else "its packages are not installed")

    return {"name": name, "family": "Node", "form": form, "command": ["node", PROGRAMS / "node_clouds.mjs", library],
            "env": {"NODE_PACKAGES": str(NODE)}, "version": version, "missing": missing, "steps": steps, **more}


AWS = ["identity", "region", "refresh", "api"]
# Those that show no identity and use the store at once.
STORE = ["api", "refresh"]
REGION = ["api", "region", "refresh"]
AZURE = ["identity", "refresh", "api"]

CLIENTS = [
    python("boto3", "boto3", "boto3", CONTAINER, AWS),
    python("boto3", "boto3", "boto3", IMDS, AWS),
    python("aiobotocore", "aiobotocore", "aiobotocore", CONTAINER, AWS),
    python("s3fs", "s3fs", "s3fs", CONTAINER, STORE),
    node("@aws-sdk", "aws", "@aws-sdk/client-sts", CONTAINER, AWS),
    node("@aws-sdk", "aws", "@aws-sdk/client-sts", IMDS, AWS),
    python("pyarrow S3", "pyarrow-s3", "pyarrow", CONTAINER, REGION, family="C++"),
    python("pyarrow S3", "pyarrow-s3", "pyarrow", IMDS, REGION, family="C++"),
    python("obstore S3", "obstore-s3", "obstore", IMDS, STORE, family="Rust"),
    python("minio", "minio", "minio", CONTAINER, STORE),
    python("minio", "minio", "minio", IMDS, STORE),
    python("azure-identity", "azure-identity", "azure-identity", APP_SERVICE, AZURE),
    python("azure-identity", "azure-identity", "azure-identity", IMDS, AZURE),
    node("@azure/identity", "azure", "@azure/identity", APP_SERVICE, ["identity", "api"]),
    node("@azure/identity", "azure", "@azure/identity", IMDS, ["identity", "api"]),
    python("adlfs", "adlfs", "adlfs", APP_SERVICE, STORE, patience=15),
    python("pyarrow Azure", "pyarrow-azure", "pyarrow", APP_SERVICE, STORE, family="C++"),
    python("obstore Azure", "obstore-azure", "obstore", APP_SERVICE, STORE, family="Rust"),
]
