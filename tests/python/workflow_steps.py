"""The scripts that the steps of workflows run, each in a file of its own for shellcheck; used by scripts/workflows.

    python workflow_steps.py FOLDER WORKFLOW...
"""

import pathlib
import re
import sys

import ruamel.yaml

folder = pathlib.Path(sys.argv[1])
written = 0
for path in map(pathlib.Path, sys.argv[2:]):
    workflow = ruamel.yaml.YAML(typ="safe").load(path)
    for name, job in workflow["jobs"].items():
        for number, step in enumerate(job.get("steps", []), 1):
            if "run" not in step:
                continue
            script = re.sub(r"\$\{\{.*?\}\}", "expression", step["run"])
            # The runner stops at the first command that fails.
            (folder / f"{path.stem}-{name}-{number}.sh").write_text(f"set -e\n{script}\n")
            written += 1
assert written, "no step runs anything"
