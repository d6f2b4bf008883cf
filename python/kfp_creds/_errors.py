"""What can go wrong. The text of an error is the line that the program printed."""

from __future__ import annotations

from typing import Dict, Optional, Type


class KfpCredsError(Exception):
    """The program ended, or refused to start a session."""

    def __init__(self, message: str, code: Optional[int] = None) -> None:
        super().__init__(message)
        #: The program's exit code, where it ended by itself.
        self.code = code


class ProgramNotFoundError(KfpCredsError):
    """The program is not installed."""


class UsageError(KfpCredsError):
    """What was asked for makes no sense (exit code 64)."""


class NoCredentialError(KfpCredsError):
    """No credential on this machine, or one that no token can be made of (66)."""


class EngineError(KfpCredsError):
    """The Docker engine cannot be reached or used (69)."""


class NotPermittedError(KfpCredsError):
    """The engine, the kernel or another session is in the way (77)."""


class ConfigError(KfpCredsError):
    """The config says what cannot be (78)."""


_BY_CODE: Dict[int, Type[KfpCredsError]] = {
    64: UsageError,
    66: NoCredentialError,
    69: EngineError,
    77: NotPermittedError,
    78: ConfigError,
}


def of_exit(code: Optional[int], said: str) -> KfpCredsError:
    """The error for a program that ended with ``code`` and said ``said`` on stderr."""
    prefix = "kfp-creds: "
    lines = [line[len(prefix) :] for line in said.splitlines() if line.startswith(prefix)]
    text = "\n".join(lines) or said.strip() or "kfp-creds said nothing"
    if code is not None and code < 0:
        return KfpCredsError(f"kfp-creds was ended by signal {-code}: {text}", code)
    return _BY_CODE.get(code if code is not None else -1, KfpCredsError)(text, code)
