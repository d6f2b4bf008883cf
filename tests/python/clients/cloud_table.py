"""The clients of AWS and Azure: how each is started, in which form it asks, and why a verdict is not yes (`table.py` has
Google's)."""

import json
import sys

from table import PROGRAMS, WORK, debian, said, there

PYTHON = WORK / "venv-clouds/bin/python"
NODE = WORK / "node-clouds"
GO, AZIDENTITY = WORK / "go-clouds/go_clouds", WORK / "go-azidentity/go_azidentity"
AWS_CLI, AZ = WORK / "bin/aws", WORK / "venv-az/bin/az"
# How credentials are asked for. Some know IMDS at its own address alone, whatever the environment says.
CONTAINER, IMDS, APP_SERVICE, ADDRESS = "container credentials", "IMDS", "App Service", "IMDS at its address"

# Reasons that several share.
STORE_ONLY = "it reads and writes objects, and shows nothing of its credentials"
BOTO_503 = "its three tries take 2 s"
BOTO_NEAR = "with less than 15 minutes left it asks before every call"
BOTO_ABSENT = "boto says `Unable to locate credentials` whatever the reason"
ONE_TRY = "it asks IMDS once, and waits for 1 s"
ANEW = "each process asks for its own"
GO_RANDOM = "its tries have waits of random length"
GO_TRIES = "its three tries take 3 s at most"
ONCE = "it asks once"
GO_1 = "it says that no provider has credentials, and not why"
JS_SILENT = "it says that no provider has credentials, and not why"
ANONYMOUS = "it goes on without credentials, and what a person reads is the answer of S3"
STATUS_ONLY = "it shows the status and not the text"
BY_CHANCE = "its ten tries have waits of random length, 2 s and more in all"
BOTO = {"503": BOTO_503, "near": BOTO_NEAR, "absent": BOTO_ABSENT}


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


def newer(package, folder="newer"):
    """A version of Debian's, from the packages that `newer_packages` unpacked."""
    def version():
        lines = (WORK / folder / "packages").read_text(encoding="ascii").splitlines()
        return next(line.split()[1] for line in lines if line.split()[0] == package) + " (Debian)"

    return version


def go(name, library, package, form, steps, **more):
    return {"name": name, "family": "Go", "form": form, "command": [GO, library], "version": newer(package),
            "missing": there(GO), "steps": steps, **more}


def azidentity(form, **more):
    return {"name": "azidentity", "family": "Go", "form": form, "command": [AZIDENTITY, "azure"],
            "version": newer("golang-github-azure-azure-sdk-for-go-dev", "newest"), "missing": there(AZIDENTITY),
            "steps": AZURE, "notes": {"503, slow": "`DefaultAzureCredential` waits for its first token for 1 s"}, **more}


def tool(name, which, program, version, family, form, steps, **more):
    return {"name": name, "family": family, "form": form, "command": [sys.executable, PROGRAMS / "cloud_tools.py", which],
            "env": {"TOOL": str(program)}, "missing": there(program), "version": version, "steps": steps, **more}


def version_of_az():
    return said(AZ.parent / "python", "-c", "import importlib.metadata as m; print(m.version('azure-cli'))")


AWS = ["identity", "region", "refresh", "api"]
# Those that show no identity and use the store at once.
STORE = ["api", "refresh"]
REGION = ["api", "region", "refresh"]
AZURE = ["identity", "refresh", "api"]

CLIENTS = [
    python("boto3", "boto3", "boto3", CONTAINER, AWS, notes=BOTO),
    python("boto3", "boto3", "boto3", IMDS, AWS, notes={"503, slow": ONE_TRY, "refused, absent": BOTO_ABSENT}),
    python("aiobotocore", "aiobotocore", "aiobotocore", CONTAINER, AWS, notes=BOTO),
    python("s3fs", "s3fs", "s3fs", CONTAINER, STORE, notes={**BOTO, "identity, region": STORE_ONLY}),
    node("@aws-sdk", "aws", "@aws-sdk/client-sts", CONTAINER, AWS, notes={"refused, absent": JS_SILENT}),
    node("@aws-sdk", "aws", "@aws-sdk/client-sts", IMDS, AWS,
         notes={"503, slow": ONE_TRY, "refused, absent": JS_SILENT}),
    python("pyarrow S3", "pyarrow-s3", "pyarrow", CONTAINER, REGION, family="C++",
           notes={"identity": STORE_ONLY, "503, refused, absent": ANONYMOUS}),
    python("pyarrow S3", "pyarrow-s3", "pyarrow", IMDS, REGION, family="C++",
           notes={"identity": STORE_ONLY, "503, refused, absent": ANONYMOUS}),
    python("obstore S3", "obstore-s3", "obstore", IMDS, STORE, family="Rust", by_chance=["503"],
           notes={"identity, region": STORE_ONLY, "503": BY_CHANCE,
                  "refused": "it reads no `Code` and misses a field"}),
    python("minio", "minio", "minio", CONTAINER, STORE,
           notes={"identity, region": STORE_ONLY, "refused, absent": STATUS_ONLY}),
    python("minio", "minio", "minio", IMDS, STORE, notes={"identity, region": STORE_ONLY, "absent": STATUS_ONLY}),
    python("azure-identity", "azure-identity", "azure-identity", APP_SERVICE, AZURE),
    python("azure-identity", "azure-identity", "azure-identity", IMDS, AZURE),
    node("@azure/identity", "azure", "@azure/identity", APP_SERVICE, ["identity", "api"],
         notes={"refresh": "a process keeps its token and has no means to discard it"}),
    node("@azure/identity", "azure", "@azure/identity", IMDS, ["identity", "api"],
         notes={"refresh": "a process keeps its token and has no means to discard it"}),
    python("adlfs", "adlfs", "adlfs", APP_SERVICE, STORE, patience=10,
           notes={"identity": STORE_ONLY, "refused, absent": "its storage client repeats this for more than a minute, and "
                                                             "logs the text each time"}),
    python("pyarrow Azure", "pyarrow-azure", "pyarrow", APP_SERVICE, STORE, family="C++",
           notes={"identity": STORE_ONLY, "refused, absent": "it says that authentication failed, and not why"}),
    python("obstore Azure", "obstore-azure", "obstore", APP_SERVICE, STORE, family="Rust", by_chance=["503"],
           notes={"identity": STORE_ONLY, "503": BY_CHANCE}),
    tool("aws CLI 2", "aws", AWS_CLI, newer("awscli"), "Python", CONTAINER, AWS, notes={**BOTO, "near": ANEW}),
    tool("aws CLI 2", "aws", AWS_CLI, newer("awscli"), "Python", IMDS, AWS,
         notes={"503, slow": ONE_TRY, "near": ANEW, "refused, absent": BOTO_ABSENT}),
    go("aws-sdk-go-v2", "aws", "golang-github-aws-aws-sdk-go-v2-dev", CONTAINER, AWS, by_chance=["503"],
       notes={"503": GO_RANDOM, "absent": STATUS_ONLY}),
    go("aws-sdk-go-v2", "aws", "golang-github-aws-aws-sdk-go-v2-dev", IMDS, AWS,
       notes={"503": GO_TRIES, "absent": STATUS_ONLY}),
    go("aws-sdk-go", "aws1", "golang-github-aws-aws-sdk-go-dev", CONTAINER, AWS, notes={"refused, absent": GO_1}),
    go("aws-sdk-go", "aws1", "golang-github-aws-aws-sdk-go-dev", IMDS, AWS,
       notes={"503": GO_TRIES, "refused, absent": GO_1}),
    tool("rclone S3", "rclone-s3", "rclone", debian("rclone"), "Go", CONTAINER, STORE,
         notes={"identity, region": STORE_ONLY, "near": ANEW, "refused, absent": GO_1}),
    tool("rclone S3", "rclone-s3", "rclone", debian("rclone"), "Go", IMDS, STORE,
         notes={"identity, region": STORE_ONLY, "near": ANEW, "refused, absent": GO_1}),
    go("go-autorest", "azure", "golang-github-azure-go-autorest-dev", ADDRESS, AZURE),
    azidentity(APP_SERVICE),
    azidentity(ADDRESS),
    tool("rclone Azure", "rclone-azure", "rclone", debian("rclone"), "Go", ADDRESS, STORE,
         notes={"identity": STORE_ONLY, "near": ANEW}),
    tool("az", "az", AZ, version_of_az, "Python", APP_SERVICE, AZURE, limit=200,
         notes={"503": ONCE, "near": ANEW}),
]
