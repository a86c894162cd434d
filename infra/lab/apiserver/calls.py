"""Which calls the API server has made to others, and how they went: webhooks, and extension servers of APIServices.

`GET /lab/calls` shows them, `DELETE` begins anew. A call that could not be made is counted whether or not its failure
policy let the write pass; one that was answered counts as answered whatever the answer was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

_KEPT = 100


@dataclass
class _Count:
    answered: int = 0
    failed: int = 0


@dataclass
class Calls:
    """Counts by the name of a webhook or an APIService, and the last failures."""

    counts: dict[str, _Count] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)

    def answered(self, name: str) -> None:
        """It gave an answer, be it a refusal."""
        self.counts.setdefault(name, _Count()).answered += 1

    def failed(self, name: str, why: str) -> None:
        """It could not be asked."""
        self.counts.setdefault(name, _Count()).failed += 1
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.failures = [*self.failures, {"name": name, "at": at, "why": why}][-_KEPT:]

    def clear(self) -> None:
        """Begin to count anew."""
        self.counts.clear()
        self.failures.clear()

    def body(self) -> dict[str, Any]:
        """As JSON."""
        counts = {name: {"answered": c.answered, "failed": c.failed} for name, c in sorted(self.counts.items())}
        return {"calls": counts, "failures": self.failures}
