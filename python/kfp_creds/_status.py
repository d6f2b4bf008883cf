"""What a session does at one moment."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Sequence

#: As the program names them, in its order. A kind that is not here counts as Google's.
_CLOUDS = {"access": "Google Cloud", "identity": "Google Cloud", "aws-session": "AWS", "azure-token": "Azure"}
_HEAD = ("container", "task", "identity", "state", "tokens")


def _held(tokens: Sequence[Mapping[str, Any]]) -> str:
    """What a container holds and until when; with the clouds, where it holds anything of AWS or Azure."""
    by_cloud: Dict[str, List[Mapping[str, Any]]] = {cloud: [] for cloud in _CLOUDS.values()}
    for token in tokens:
        by_cloud[_CLOUDS.get(token.get("kind", ""), "Google Cloud")].append(token)
    named = any(by_cloud[cloud] for cloud in ("AWS", "Azure"))
    said = []
    for cloud, held in by_cloud.items():
        if held:
            last = max(held, key=lambda token: token.get("left", 0))
            said.append(f"{cloud + ': ' if named else ''}{len(held)}, the last until {last.get('expires', '?')}")
    return "; ".join(said) or "none"


@dataclass(frozen=True, repr=False)
class Status:
    """Who holds which tokens. In a notebook it shows itself as a table."""

    #: ``docker`` or ``listen``.
    kind: str
    #: Variables that the session sets. The value of one with a secret path is not shown.
    environment: Mapping[str, str]
    #: ``status --json`` of the program; empty for a session without an engine.
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leases(self) -> List[Dict[str, Any]]:
        """The containers that have an identity now, as the program tells them."""
        return list(self.details.get("leases", []))

    def _title(self) -> str:
        if self.kind == "listen":
            return "metadata server for processes of this machine"
        source = self.details.get("source", {})
        return f"{source.get('account', '?')}, project {source.get('project', '?')} ({source.get('kind', '?')})"

    def _rows(self) -> List[Sequence[str]]:
        return [
            (str(lease.get("container", ""))[:12], str(lease.get("task", "")), str(lease.get("identity", "")),
             str(lease.get("state", "")), _held(lease.get("tokens", [])))
            for lease in self.leases
        ]

    def _failure(self) -> str:
        for source in [self.details.get("source", {}), *self.details.get("clouds", [])]:
            if (source.get("last_failure") or "") > (source.get("last_mint") or ""):
                return f"no token is minted: {source.get('why')}"
        return ""

    def __str__(self) -> str:
        lines = [self._title(), *filter(None, [self._failure()])]
        rows = self._rows()
        if self.kind == "docker" and not rows:
            lines.append("no container has an identity now")
        lines += ["  ".join(cells) for cells in rows]
        return "\n".join(lines)

    # What a terminal's IPython shows.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Names come from pipelines: everything is text."""
        row = "<tr>{}</tr>".format
        head = row("".join(f'<th scope="col" style="text-align:left">{name}</th>' for name in _HEAD))
        body = "".join(
            row("".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in cells)) for cells in self._rows()
        )
        failure = f'<p role="alert">{html.escape(self._failure())}</p>' if self._failure() else ""
        caption = f'<caption style="text-align:left">{html.escape(self._title())}</caption>'
        if not body:
            nothing = "" if self.kind == "listen" else "<p>no container has an identity now</p>"
            return f"<p>{html.escape(self._title())}</p>{failure}{nothing}"
        return f"{failure}<table>{caption}<thead>{head}</thead><tbody>{body}</tbody></table>"
