"""pytest fixtures. They are there once the package is installed; nothing starts until a test asks."""

from __future__ import annotations

from typing import Any, Dict, Iterator

import pytest

from ._session import Session


@pytest.fixture(scope="session")
def kfp_creds_options() -> Dict[str, Any]:
    """The options of the session, see ``kfp_creds.Session``; define a fixture of this name to have others."""
    return {"offline": True}


@pytest.fixture(scope="session")
def kfp_creds_session(kfp_creds_options: Dict[str, Any]) -> Iterator[Session]:
    """One session for the whole run of pytest, which sets no variables by itself."""
    running = Session(**kfp_creds_options).start(set_environment=False)
    yield running
    running.stop()


@pytest.fixture
def kfp_creds(kfp_creds_session: Session) -> Iterator[Session]:
    """Pipelines that this test runs have credentials: by default offline ones, which no cloud accepts."""
    kfp_creds_session.enter_environment()
    yield kfp_creds_session
    kfp_creds_session.leave_environment()
