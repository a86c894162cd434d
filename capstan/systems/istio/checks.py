"""What `capstan check` says about an Istio."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.systems.base import CheckResult
    from capstan.systems.istio.observe import View


def checks(cluster: Cluster, view: View, *, now: datetime) -> tuple[CheckResult, ...]:
    """All checks of one cluster. None aborts the ones after it."""
    raise NotImplementedError
