"""Command-line tools, one of them by name: tools.py TOOL STEP... Each step is a process of its own."""

import os
import pathlib
import shutil
import subprocess
import sys

from said import run

HOME = pathlib.Path(os.environ["HOME"])


def said(*command):
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    sys.stderr.write(ran.stderr)
    if ran.returncode:
        raise RuntimeError(f"exit code {ran.returncode}: {ran.stderr.strip().splitlines()[-1:]}")
    return ran.stdout.strip()


class Gsutil:
    program = os.environ.get("GSUTIL", "gsutil")

    def api(self):
        # A machine's own image has this in /etc/boto.cfg on Compute Engine.
        config = HOME / "boto.cfg"
        config.write_text(f"[Boto]\nca_certificates_file = {os.environ['CA']}\n"
                          "[GoogleCompute]\nservice_account = default\n"
                          "[GSUtil]\ncheck_hashes = never\nuse_magicfile = False\n", encoding="ascii")
        os.environ["BOTO_CONFIG"] = str(config)
        return said(self.program, "-o", "GSUtil:software_update_check_period=0", "cat", "gs://bucket/object")

    def api_refresh(self):
        # It keeps its token on disk to the last second.
        shutil.rmtree(HOME / ".gsutil", ignore_errors=True)
        return self.api()


class Rclone:
    def api(self):
        os.environ.update(RCLONE_CONFIG_G_TYPE="google cloud storage", RCLONE_CONFIG_G_ANONYMOUS="false")
        return said("rclone", "--low-level-retries", "1", "--retries", "1", "cat", "g:bucket/object")

    # Every process asks anew.
    api_refresh = api


class Gcloud:
    program = os.environ.get("GCLOUD", "gcloud")

    def detect(self):
        return said(self.program, "auth", "list", "--format=value(account)").splitlines()[:1] != []

    def project(self):
        return said(self.program, "config", "get", "project")

    def email(self):
        return said(self.program, "config", "get", "account")

    def universe(self):
        return said(self.program, "config", "get", "core/universe_domain")

    def token(self):
        return said(self.program, "auth", "print-access-token")

    again = use = token

    def refresh(self):
        # It keeps its token on disk until 300 s before the end.
        for file in (HOME / ".config/gcloud").glob("access_tokens.db*"):
            file.unlink()
        return self.token()

    def identity(self):
        return said(self.program, "auth", "print-identity-token", f"--audiences={os.environ['AUDIENCE']}")

    def api(self):
        return said(self.program, "storage", "cat", "gs://bucket/object")


TOOLS = {"gsutil": Gsutil, "rclone": Rclone, "gcloud": Gcloud}

if __name__ == "__main__":
    tool = TOOLS[sys.argv[1]]()
    names = ("detect", "project", "universe", "email", "token", "refresh", "again", "use", "identity", "api")
    found = {name: getattr(tool, name) for name in names if hasattr(tool, name)}
    found["api-use"] = found["api-again"] = found.get("api")
    found["api-refresh"] = getattr(tool, "api_refresh", found.get("api"))
    run(sys.argv[2:], found)
