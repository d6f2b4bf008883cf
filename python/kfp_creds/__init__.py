"""Short-lived cloud credentials for containers of locally run Kubeflow pipelines, and no key in any of them.

    import kfp_creds

    with kfp_creds.session():
        my_pipeline()

In a notebook: ``%load_ext kfp_creds``, then ``%kfp_creds start``. The work is done by the program ``kfp-creds``, which this
package brings and drives; see ``docs/guide/python.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._bin import find_bin
from ._errors import (
    ConfigError,
    EngineError,
    KfpCredsError,
    NoCredentialError,
    NotPermittedError,
    ProgramNotFoundError,
    UsageError,
)
from ._session import Session, current, session, start, stop
from ._status import Status

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "ConfigError",
    "EngineError",
    "KfpCredsError",
    "NoCredentialError",
    "NotPermittedError",
    "ProgramNotFoundError",
    "Session",
    "Status",
    "UsageError",
    "current",
    "find_bin",
    "session",
    "start",
    "stop",
]


def load_ipython_extension(shell: "InteractiveShell") -> None:
    """What ``%load_ext kfp_creds`` calls."""
    from ._ipython import register

    register(shell)


def unload_ipython_extension(shell: "InteractiveShell") -> None:
    """What ``%unload_ext kfp_creds`` calls; ends the session of this kernel."""
    stop()
