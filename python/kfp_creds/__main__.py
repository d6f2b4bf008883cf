"""``python -m kfp_creds`` is ``kfp-creds``."""

from __future__ import annotations

import os
import sys

from ._bin import find_bin
from ._errors import ProgramNotFoundError

if __name__ == "__main__":
    try:
        program = find_bin()
    except ProgramNotFoundError as error:
        sys.exit(f"kfp-creds: {error}")
    # In the place of this process: signals, the terminal and the exit code are the program's.
    os.execv(program, [program, *sys.argv[1:]])
