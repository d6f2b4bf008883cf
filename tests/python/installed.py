"""What a wheel installed: the program, the package, its entry points; run by scripts/wheel in a fresh environment.

    python installed.py ENVIRONMENT
"""

import importlib.metadata
import importlib.resources
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

import kfp_creds

environment = pathlib.Path(sys.argv[1]).resolve()
program = pathlib.Path(kfp_creds.find_bin()).resolve()
assert program == environment / "bin" / "kfp-creds", program
assert environment in pathlib.Path(kfp_creds.__file__).resolve().parents, kfp_creds.__file__
assert (importlib.resources.files("kfp_creds") / "py.typed").is_file()

about = importlib.metadata.distribution("kfp-creds")
said = subprocess.run([sys.executable, "-m", "kfp_creds", "--version"], capture_output=True, text=True, check=True).stdout
assert said.split() == ["kfp-creds", about.version], (said, about.version)
assert about.requires is None, about.requires
entries = {(entry.group, entry.name): entry.value for entry in about.entry_points}
assert entries == {("pytest11", "kfp_creds"): "kfp_creds._pytest"}, entries

# No login is here, and no engine is needed.
began = time.monotonic()
with kfp_creds.session(listen=True, offline=True) as session:
    took = time.monotonic() - began
    url = f"http://{os.environ['GCE_METADATA_HOST']}/computeMetadata/v1/instance/service-accounts/default/token"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})) as answer:
        assert json.load(answer)["token_type"] == "Bearer"
try:
    kfp_creds.start(listen=True)
except kfp_creds.NoCredentialError as error:
    assert "gcloud auth application-default login" in str(error), error
else:
    raise AssertionError("a machine without a login has credentials")
print(f"installed     kfp-creds {about.version}, a session for processes ready in {took:.2f} s", file=sys.stderr)
