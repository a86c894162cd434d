"""What istiod's CA exposes on port 15014, by the names of each version (security/pkg/server/ca/monitoring.go)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from infra.lab.istio.istiod.authority import Authority

_PREFIX = "citadel_server_"


class Metrics:
    """Counters of one process; a counter is exposed once it has counted."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, name: str, labels: str = "") -> None:
        """One more of `citadel_server_<name>`; `labels` as between the braces."""
        self._counts[_PREFIX + name, labels] += 1

    def count_webhook_patch(self, name: str) -> None:
        """One more attempt at a webhook configuration."""
        self._counts["webhook_patch_attempts_total", f'name="{name}"'] += 1

    def lines(self, authority: Authority) -> list[str]:
        """All samples, sorted."""
        found = [
            f"{name}{{{labels}}} {value}" if labels else f"{name} {value}"
            for (name, labels), value in self._counts.items()
        ]
        for kind, end in (("root_cert", authority.root_expiry), ("cert_chain", authority.chain_expiry)):
            if end is None:
                continue
            found.append(f"{_PREFIX}{kind}_expiry_timestamp {end.timestamp():.0f}")
            if authority.settings.rules.expiry_seconds:
                left = (end - self._clock()).total_seconds()
                found.append(f"{_PREFIX}{kind}_expiry_seconds {left:.6f}")
        return sorted(found)
