"""What `capstan check` says about a Linkerd: its own checks, judged on what is live, and a few that it lacks.

    pre-kubernetes-setup            the nodes' clocks                           checks_clock
    linkerd-existence               the control plane is there and runs         checks_control_plane
    linkerd-identity                anchors and issuer                          checks_identity
    linkerd-webhooks-and-apisvc-tls what the API server calls, as it serves     checks_webhooks, checks_hooks
    linkerd-identity-data-plane     every live proxy's roots                    checks_data_plane
    control-plane-version           as far as it can be said offline            checks_control_plane
    linkerd-control-plane-proxy     its proxies                                 checks_control_plane
    linkerd-data-plane              the workloads' proxies                      checks_data_plane
    linkerd-ha-checks               replicas                                    checks_control_plane
    linkerd-extension-checks, linkerd-viz, linkerd-multicluster                 checks_extensions
    capstan-trust                   leaves, identity's memory, drift            checks_trust

`checks_evidence` reads, once; everything else judges plain values. Words and levels: `checks_report`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.systems.base import RECENT
from capstan.systems.linkerd.checks_clock import clock_check
from capstan.systems.linkerd.checks_control_plane import (
    control_plane_proxy_checks,
    existence_checks,
    high_availability_check,
    version_checks,
)
from capstan.systems.linkerd.checks_data_plane import data_plane_checks, identity_data_plane_check
from capstan.systems.linkerd.checks_evidence import Evidence, gather
from capstan.systems.linkerd.checks_extensions import extension_checks
from capstan.systems.linkerd.checks_identity import identity_checks
from capstan.systems.linkerd.checks_trust import trust_checks
from capstan.systems.linkerd.checks_webhooks import webhook_checks

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from capstan.cluster.client import Cluster
    from capstan.systems.base import CheckResult
    from capstan.systems.linkerd.observe import View


def checks(cluster: Cluster, view: View, *, now: datetime, since: timedelta = RECENT) -> tuple[CheckResult, ...]:
    """All checks of one cluster, in Linkerd's order. None aborts the ones after it.

    Args:
        now: The moment to judge for, aware UTC.
        since: How far back Events and crashes count.
    """
    return judge(gather(cluster, view, now=now, since=since))


def judge(evidence: Evidence) -> tuple[CheckResult, ...]:
    """The same, of what was read."""
    return (
        clock_check(evidence),
        *existence_checks(evidence),
        *identity_checks(evidence),
        *webhook_checks(evidence),
        identity_data_plane_check(evidence),
        *version_checks(evidence),
        *control_plane_proxy_checks(evidence),
        *data_plane_checks(evidence),
        high_availability_check(evidence),
        *extension_checks(evidence),
        *trust_checks(evidence),
    )
