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
SLOW = "it is built with --clients-all only"
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
    return {"name": name, "family": "Rust", "command": [program, name],
            "missing": lambda: None if program.exists() else SLOW,
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
    "google-http-client-gson", "google-http-client-jackson2", "jackson-core", "gson", "guava", "failureaccess",
    "opencensus-api", "opencensus-contrib-http-util", "grpc-context", "commons-logging"))


def but(*left_out):
    return [step for step in ALL if step not in left_out]


# Reasons that several share.
PINGS = "its pings within 2 s decide whether this is Compute Engine, and a 503 to all of them says that it is not"
ONCE = "asked once in a process whether this is Compute Engine, it keeps to the answer"
ONE_TRY = "it does not try again by itself"
OF_AUTH = {"token, identity, email": "google-auth's business"}
TOKENS_ONLY = "it hands out access tokens and nothing else"
STORAGE_ONLY = "it reads and writes objects, and shows nothing of its credentials"

CLIENTS = [
    python("google-auth", "google-auth", "venv", ALL, "token", notes={"all-503": PINGS}),
    python("google-auth 2.17", "google-auth", "venv-auth", but("universe"), "token",
           notes={"universe": "a version from before there were any", "503": ONE_TRY, "all-503": PINGS}),
    python("storage", "google-cloud-storage", "venv", LIBRARY, "api", notes={**OF_AUTH, "all-503": PINGS}),
    python("bigquery", "google-cloud-bigquery", "venv", LIBRARY, "api",
           notes={**OF_AUTH, "all-503": PINGS}),
    python("bigquery-storage", "google-cloud-bigquery-storage", "venv", ["detect", "api", "api-refresh"],
           "api", env={"GRPC_VERBOSITY": "ERROR"},
           notes={**OF_AUTH, "project": "callers name it in each request",
                  "universe": "it takes it from its options alone", "all-503": PINGS},
           remarks=["over gRPC"]),
    python("gcsfs", "gcsfs", "venv", ["detect", "api", "api-refresh", "project"], "api",
           env={"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"},
           notes={**OF_AUTH, "universe": "it knows none", "all-503": PINGS},
           remarks=["without its look-up of bucket types over gRPC (`GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false`)"]),
    python("kfp", "kfp", "venv", ["token", "refresh"], "token",
           notes={"detect, identity, project, universe, email, api": TOKENS_ONLY, "all-503": PINGS,
                  "near, short": "`get_gcp_access_token()` returns None for a token with 225 s left or less, which a "
                                 "`lifetime` of 15 minutes or more rules out"},
           remarks=["`kfp.client.auth`"]),
    python("pyarrow", "pyarrow", "venv", ["api", "api-refresh"], "api", family="C++",
           notes={"detect, token, identity, project, universe, email": STORAGE_ONLY},
           remarks=["`GcsFileSystem`, which is google-cloud-cpp"]),
    tool("gsutil", GSUTIL, lambda: said(GSUTIL, "version").split()[-1], ["api", "api-refresh"], "api", "Python",
         env={"GSUTIL": str(GSUTIL)},
         notes={"detect, token, identity, project, universe, email": STORAGE_ONLY, "503, all-503": ONE_TRY},
         remarks=["with `service_account = default` in its boto config",
                  "it keeps its token on disk and uses it until an API refuses it"]),
    tool("gcloud", GCLOUD, lambda: said(GCLOUD, "version", "--format=value(\"Google Cloud SDK\")"),
         ALL, "token", "Python", env={"GCLOUD": GCLOUD},
         notes={"all-503": "it writes down for 10 minutes that this is not Compute Engine"},
         remarks=["comes from no package registry: run where it is installed", "it keeps tokens on disk"]),
    node("google-auth-library 10", "google-auth-library", "google-auth-library", ALL, "token",
         notes={"503": "its three more tries take 2 s", "all-503": ONCE}, remarks=[
             "`getUniverseDomainFromMetadataServer()` asks for the universe; its clients take theirs from their options alone"]),
    node("google-auth-library 9", "google-auth-library-9", "google-auth-library-9", ALL, "token",
         notes={"503": "its three more tries take 2 s", "all-503": ONCE}, remarks=["the universe as with version 10"]),
    node("@google-cloud/storage", "@google-cloud/storage", "storage", ["api", "api-refresh", "project"], "api",
         notes={"detect, token, identity, email": "google-auth-library's business",
                "universe": "it takes it from its options alone", "503": "its three more tries take 2 s",
                "all-503": ONCE + ", and goes on without credentials"}),
    {"name": "compute/metadata", "family": "Go", "command": [GO, "metadata"], "missing": there(GO),
     "version": debian("golang-google-cloud-compute-metadata-dev"), "first": "token", "steps": but("api"),
     "notes": {"api": "it calls none", "503, all-503": ONE_TRY,
               "near": "asks each time, as it keeps no token"}},
    {"name": "x/oauth2", "family": "Go", "command": [GO, "oauth2"], "missing": there(GO),
     "version": debian("golang-golang-x-oauth2-google-dev"), "first": "token",
     "steps": but("identity", "universe", "email"),
     "notes": {"identity": "it makes none on Compute Engine", "universe": "a version from before there were any",
               "email": "compute/metadata's business", "503, all-503": ONE_TRY}},
    tool("rclone", "rclone", debian("rclone"), ["api", "api-refresh"], "api", "Go",
         notes={"detect, token, identity, project, universe, email": STORAGE_ONLY, "503, all-503": ONE_TRY,
                "near": "each process asks for its own"}),
    {"name": "google-auth-library-java", "family": "Java", "first": "token",
     "command": ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", f"{JAVA}:{JARS}", "JavaGoogle"],
     "missing": lambda: None if (JAVA / "JavaGoogle.class").exists() else SLOW,
     "version": debian("libgoogle-auth-java"), "steps": but("project", "universe", "api"),
     "notes": {"project": "google-cloud-core's business", "universe": "a version from before there were any",
               "api": "it calls none", "503": ONE_TRY, "all-503": ONCE}},
    {"name": "googleauth", "family": "Ruby", "command": ["ruby", PROGRAMS / "ruby_google.rb"],
     "missing": there("ruby"), "version": debian("ruby-googleauth"), "first": "token",
     "steps": ["detect", "token", "refresh", "api"],
     "notes": {"identity": "this version makes none on Compute Engine", "project": "it asks gcloud for it",
               "universe": "a version from before there were any", "email": "it has no use for it",
               "503, all-503": ONE_TRY}},
    rust("google-cloud-auth", ["token", "refresh", "identity", "universe"], "token", pause=11,
         notes={"detect": "it assumes Compute Engine where there is no file", "project, email": "it does not show them",
                "api": "it calls none", "503, all-503": "it tries again every 10 s, and fails calls until then"}),
    rust("gcp_auth", ["token", "refresh", "project"], "token",
         notes={"detect": "it tries one source after the other", "identity, universe, email": TOKENS_ONLY,
                "api": "it calls none",
                "503, all-503": "its five tries take a second; then it takes this for another place"}),
    rust("yup-oauth2", ["token", "refresh"], "token",
         notes={"detect, identity, project, universe, email, api": TOKENS_ONLY, "503, all-503": ONE_TRY}),
    rust("object_store", ["token", "api", "api-refresh"], "api",
         notes={"detect, identity, project, universe, email": STORAGE_ONLY}),
    rust("opendal", ["api", "api-refresh"], "api",
         notes={"detect, token, identity, project, universe, email": STORAGE_ONLY, "503, all-503": ONE_TRY,
                "short": "it refuses a token that could end during the call"}),
]
