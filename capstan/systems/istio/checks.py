"""What `capstan check` says about an Istio, judged on what is live.

    istio-ca                    the CA's files, roots and signing certificate
    istio-control-plane         every istiod of every revision: version, flags, what it signs with
    istio-trust-distribution    every place that repeats the roots
    istio-data-plane            what every proxy holds and presents
    istio-root-transition       the troubleshooting cases of Istio's own root transition page

Sets of fingerprints are compared, never texts or checksums of texts; what could not be read fails its check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.systems.istio.checks_ca import ca_checks
from capstan.systems.istio.checks_control_plane import control_plane_checks, distribution_checks
from capstan.systems.istio.checks_proxies import data_plane_checks
from capstan.systems.istio.troubles import trouble_checks

if TYPE_CHECKING:
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.systems.base import CheckResult
    from capstan.systems.istio.observe import View


def checks(cluster: Cluster, view: View, *, now: datetime) -> tuple[CheckResult, ...]:
    """All checks of one cluster. None aborts the ones after it."""
    return (
        *ca_checks(cluster, view, now),
        *control_plane_checks(view),
        *distribution_checks(view, now),
        *data_plane_checks(view, now),
        *trouble_checks(cluster, view, now),
    )
