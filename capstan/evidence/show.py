"""An account as rows for a table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from capstan.evidence.chain import Entry

_HASH = re.compile(r"[0-9a-f]{40,}")


@dataclass(frozen=True, slots=True)
class Row:
    """One entry for a person.

    Attributes:
        n: Line number.
        time: UTC, to the second.
        kind: What happened.
        facts: The body as `name=value` pairs, hashes shortened to 12 digits.
    """

    n: int
    time: str
    kind: str
    facts: str


def rows(entries: Iterable[Entry]) -> Sequence[Row]:
    """Entries as rows, in order."""
    return [
        Row(entry.n, f"{entry.time:%Y-%m-%dT%H:%M:%SZ}", entry.kind, ", ".join(_facts(entry.body))) for entry in entries
    ]


def _facts(body: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in body.items():
        if isinstance(value, dict):
            yield from _facts(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}={' '.join(_text(item) for item in value) or '-'}"
        else:
            yield f"{prefix}{name}={_text(value)}"


def _text(value: object) -> str:
    text = " ".join(str(value).split())
    if text.startswith("-----BEGIN "):
        return "(PEM)"
    return _HASH.sub(lambda match: match[0][:12], text)
