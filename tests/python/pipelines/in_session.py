"""The pipeline of `lightweight.py` in a session of the Python package, and not under `kfp-creds run`."""

import os

import kfp_creds

from common import log_to_stderr, report, start
from lightweight import lightweight

if __name__ == "__main__":
    start()
    before = dict(os.environ)
    with log_to_stderr(), kfp_creds.session(offline=True) as session:
        run = lightweight()
        during, leases = os.environ["DOCKER_HOST"], session.status().details["totals"]["attached"]
    report(first=run.outputs["first"], second=run.outputs["second"], during=during, attached=leases,
           restored=before == dict(os.environ), running=session.running)
