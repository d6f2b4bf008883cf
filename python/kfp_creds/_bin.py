"""Where the program is."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Iterator

from ._errors import ProgramNotFoundError

_NAME = "kfp-creds"


def find_bin() -> str:
    """The path of the program that belongs to this package; else the first ``kfp-creds`` on ``PATH``.

    Raises :class:`ProgramNotFoundError` where there is none.
    """
    for folder in _folders():
        program = folder / _NAME
        if program.is_file() and os.access(program, os.X_OK):
            return str(program)
    found = shutil.which(_NAME)
    if found is not None:
        return found
    raise ProgramNotFoundError("the program kfp-creds is not there; install it anew: pip install --force-reinstall kfp-creds")


def _folders() -> Iterator[Path]:
    """Where installers put programs: beside this interpreter, in the user's scheme, and with ``--target`` or ``--prefix``."""
    yield Path(sysconfig.get_path("scripts"))
    scheme = sysconfig.get_preferred_scheme("user") if sys.version_info >= (3, 10) else f"{os.name}_user"
    yield Path(sysconfig.get_path("scripts", scheme=scheme))
    package = Path(__file__).resolve().parent
    yield package.parent / "bin"
    # PREFIX/lib/pythonX.Y/site-packages/kfp_creds
    if len(package.parents) > 3:
        yield package.parents[3] / "bin"
