"""Command-line tools of AWS and Azure, one of them by name: cloud_tools.py TOOL STEP... (as python_clouds.py). Each step is a
process of its own, or several."""

import os
import pathlib
import subprocess
import sys

from said import run

HOME = pathlib.Path(os.environ["HOME"])
# Each run has an object of its own.
BUCKET, NAME, CONTENT = "data", f"object-{os.urandom(8).hex()}", "written and read"
RESOURCE = "https://storage.azure.com"


def said(*command, given=None):
    ran = subprocess.run(command, input=given, stdin=None if given else subprocess.DEVNULL, capture_output=True, text=True,
                         check=False)
    sys.stderr.write(ran.stderr)
    if ran.returncode:
        raise RuntimeError(f"exit code {ran.returncode}: {' '.join(ran.stderr.split())}")
    return ran.stdout.strip()


class Aws:
    program = os.environ["TOOL"]

    def identity(self):
        return said(self.program, "sts", "get-caller-identity", "--query", "Arn", "--output", "text")

    # Every process asks anew.
    refresh = again = use = identity

    def region(self):
        listed = said(self.program, "configure", "list")
        return next(line.split()[1] for line in listed.splitlines() if line.split()[0] == "region")

    def api(self):
        said(self.program, "s3", "cp", "-", f"s3://{BUCKET}/{NAME}", given=CONTENT)
        return said(self.program, "s3", "cp", f"s3://{BUCKET}/{NAME}", "-")


class Rclone:
    program = os.environ["TOOL"]

    def api(self):
        for name, value in self.settings.items():
            os.environ[f"RCLONE_CONFIG_STORE_{name}"] = value
        config = HOME / "rclone.conf"
        config.touch()
        flags = ("--config", str(config), "--log-format", "")
        said(self.program, "rcat", f"store:{BUCKET}/{NAME}", *flags, given=CONTENT)
        return said(self.program, "cat", f"store:{BUCKET}/{NAME}", *flags)

    # Every process asks anew.
    refresh = again = use = api


class RcloneS3(Rclone):
    settings = {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "ENDPOINT": os.environ["AWS_ENDPOINT_URL"],
                "FORCE_PATH_STYLE": "true", "NO_CHECK_BUCKET": "true"}


class RcloneAzure(Rclone):
    # It puts the account before the endpoint.
    settings = {"TYPE": "azureblob", "USE_MSI": "true", "ACCOUNT": os.environ["BLOBS"].rpartition("/")[2],
                "ENDPOINT": "blob.localhost:" + os.environ["BLOBS"].split(":")[2].partition("/")[0]}


class Az:
    program = os.environ["TOOL"]
    logged_in = False

    def identity(self):
        if not self.logged_in:
            said(self.program, "login", "--identity", "--allow-no-subscriptions", "--output", "none")
            self.logged_in = True
        return said(self.program, "account", "get-access-token", "--resource", RESOURCE, "--query", "accessToken",
                    "--output", "tsv")

    # Every process asks anew.
    refresh = again = use = identity

    def api(self):
        (HOME / "object").write_text(CONTENT, encoding="ascii")
        where = ("--auth-mode", "login", "--blob-url", f"{os.environ['BLOBS']}/{BUCKET}/{NAME}", "--output", "none", "--no-progress")
        said(self.program, "storage", "blob", "upload", "--file", str(HOME / "object"), "--overwrite", *where)
        said(self.program, "storage", "blob", "download", "--file", str(HOME / "read"), *where)
        return (HOME / "read").read_text(encoding="ascii")


TOOLS = {"aws": Aws, "rclone-s3": RcloneS3, "rclone-azure": RcloneAzure, "az": Az}

if __name__ == "__main__":
    tool = TOOLS[sys.argv[1]]()
    names = ("identity", "region", "refresh", "api", "again", "use")
    run(sys.argv[2:], {name: getattr(tool, name) for name in names if hasattr(tool, name)})
