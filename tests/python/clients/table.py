"""The clients: how each is started, what it is asked for, and why something is not asked of it.

`steps` is what it can do by itself; what is not among them is a dash in the document, and `notes` says why, as it
says what is behind a verdict other than yes.
"""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]
WORK = pathlib.Path(os.environ.get("KFP_CREDS_CLIENTS") or ROOT / ".work/clients")
PROGRAMS = HERE / "programs"
CONDITIONS = ("normal", "universe", "503", "all-503", "slow", "near", "short")


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def there(path):
    """A function that says what is missing, if it is."""
    found = shutil.which(str(path))
    return lambda: None if found else f"{pathlib.Path(path).name} is not on this machine"


def python(name, package, venv, steps, first, family="Python", **more):
    program = WORK / venv / "bin/python"
    version = f"import importlib.metadata as m; print(m.version('{package}'))"
    return {"name": name, "family": family, "command": [program, PROGRAMS / "python_google.py", name.split()[0]],
            "version": lambda: said(program, "-c", version), "missing": there(program), "steps": steps,
            "first": first, **more}


def node(name, package, library, steps, first, **more):
    folder = WORK / "node"

    def version():
        file = folder / "node_modules" / package / "package.json"
        return f"{json.loads(file.read_text(encoding='utf-8'))['version']} (Node {said('node', '--version')[1:]})"

    return {"name": name, "family": "Node", "command": ["node", PROGRAMS / "node_google.mjs", library],
            "env": {"NODE_PACKAGES": str(folder)}, "version": version,
            "missing": lambda: there("node")() or (None if folder.exists() else "its packages are not installed"),
            "steps": steps, "first": first, **more}


@functools.cache
def rust_versions(program):
    return dict(line.split() for line in said(program, "versions").splitlines())


def rust(name, steps, first, **more):
    program = WORK / "rust/debug/clients-rust"
    return {"name": name, "family": "Rust", "command": [program, name], "missing": there(program),
            "version": lambda: rust_versions(program)[name], "steps": steps, "first": first, **more}


def debian(package):
    return lambda: said("dpkg-query", "-W", "-f=${Version}", package) + " (Debian)"


def tool(name, program, version, steps, first, family, **more):
    return {"name": name, "family": family, "command": [sys.executable, PROGRAMS / "tools.py", name],
            "missing": there(program), "version": version, "steps": steps, "first": first, **more}


ALL = ["detect", "token", "refresh", "identity", "project", "universe", "email", "api"]
LIBRARY = ["detect", "api", "api-refresh", "project", "universe"]
GO = WORK / "go/go_google"
GSUTIL = WORK / "venv-gsutil/bin/gsutil"
GCLOUD = os.environ.get("KFP_CREDS_GCLOUD") or "gcloud"
JAVA = WORK / "java"
JARS = ":".join(f"/usr/share/java/{name}.jar" for name in (
    "google-auth-library-credentials", "google-auth-library-oauth2-http", "google-http-client",
    "google-http-client-gson", "google-http-client-jackson2", "jackson-core", "gson", "guava", "failureaccess", "opencensus-api", "opencensus-contrib-http-util",
    "grpc-context", "commons-logging"))

CLIENTS = [
    python("google-auth", "google-auth", "venv", ALL, "token"),
    python("google-auth 2.17", "google-auth", "venv-auth", [s for s in ALL if s != "universe"], "token"),
    python("storage", "google-cloud-storage", "venv", LIBRARY, "api"),
    python("bigquery", "google-cloud-bigquery", "venv", LIBRARY, "api"),
    python("bigquery-storage", "google-cloud-bigquery-storage", "venv", ["detect", "api", "api-refresh", "universe"],
           "api", env={"GRPC_VERBOSITY": "ERROR"}),
    python("gcsfs", "gcsfs", "venv", ["detect", "api", "api-refresh", "project"], "api",
           env={"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}),
    python("kfp", "kfp", "venv", ["token", "refresh"], "token"),
    python("pyarrow", "pyarrow", "venv", ["api"], "api", family="C++"),
    tool("gsutil", GSUTIL, lambda: said(GSUTIL, "version").split()[-1], ["api", "api-refresh"], "api", "Python",
         env={"GSUTIL": str(GSUTIL)}),
    tool("gcloud", GCLOUD, lambda: said(GCLOUD, "version", "--format=value(\"Google Cloud SDK\")"),
         [s for s in ALL], "token", "Python", env={"GCLOUD": GCLOUD}),
    node("google-auth-library 10", "google-auth-library", "google-auth-library", ALL, "token"),
    node("google-auth-library 9", "google-auth-library-9", "google-auth-library-9", ALL, "token"),
    node("@google-cloud/storage", "@google-cloud/storage", "storage", ["api", "api-refresh", "project", "universe"],
         "api"),
    {"name": "compute/metadata", "family": "Go", "command": [GO, "metadata"], "missing": there(GO),
     "version": debian("golang-google-cloud-compute-metadata-dev"), "first": "token",
     "steps": [s for s in ALL if s != "api"]},
    {"name": "x/oauth2", "family": "Go", "command": [GO, "oauth2"], "missing": there(GO),
     "version": debian("golang-golang-x-oauth2-google-dev"), "first": "token",
     "steps": ["detect", "token", "refresh", "project", "api"]},
    tool("rclone", "rclone", debian("rclone"), ["api", "api-refresh"], "api", "Go"),
    {"name": "google-auth-library-java", "family": "Java", "first": "token",
     "command": ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", f"{JAVA}:{JARS}", "JavaGoogle"],
     "missing": lambda: None if (JAVA / "JavaGoogle.class").exists() else "it is built with --clients-all only", "version": debian("libgoogle-auth-java"),
     "steps": ["detect", "token", "refresh", "identity", "email"]},
    {"name": "googleauth", "family": "Ruby", "command": ["ruby", PROGRAMS / "ruby_google.rb"],
     "missing": there("ruby"), "version": debian("ruby-googleauth"), "first": "token",
     "steps": ["detect", "token", "refresh", "api"]},
    rust("google-cloud-auth", ["token", "refresh", "identity", "universe"], "token"),
    rust("gcp_auth", ["token", "refresh", "project"], "token"),
    rust("yup-oauth2", ["token", "refresh"], "token"),
    rust("object_store", ["token", "api", "api-refresh"], "api"),
    rust("opendal", ["api", "api-refresh"], "api"),
]
