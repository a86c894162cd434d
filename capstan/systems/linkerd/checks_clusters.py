"""`clusters share trust anchors`, over all clusters of a trust domain, down to their proxies.

`linkerd multicluster check` compares `identityTrustAnchorsPEM` of two `linkerd-config`: both are empty with
`identity.externalCA`, and in the middle of a rotation they differ although everybody trusts everybody (facts 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.systems.base import CheckResult, Severity
from capstan.systems.linkerd.checks_report import MULTICLUSTER, listed, result, theirs
from capstan.systems.linkerd.layout import short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capstan.trust.observation import ClusterObservation


def shared_anchors(clusters: Sequence[ClusterObservation]) -> CheckResult:
    """Whether every proxy trusts the leaves of every other cluster.

    Args:
        clusters: Read with each other's roots known (`observe_domain`), so that a leaf's root is recognised anywhere.
    """
    apart = {cluster.bundle for cluster in clusters}
    sets = [f"{cluster.name} has {short(cluster.bundle)}" for cluster in clusters] if len(apart) > 1 else []
    empty = [f"{cluster.name} has no trust anchors" for cluster in clusters if not cluster.bundle]
    strangers = [line for cluster in clusters for line in _strangers(cluster, clusters)]
    broken = empty + strangers
    note = ""
    if sets and not broken:
        note = theirs("×", "it compares the sets; here they differ, and every proxy trusts every cluster's leaves")
    return result(
        MULTICLUSTER, "clusters share trust anchors", "l5d-multicluster-clusters-share-anchors", Severity.ERROR,
        listed("", broken + sets), note=note, harmless=not broken,
    )  # fmt: skip


def _strangers(cluster: ClusterObservation, clusters: Sequence[ClusterObservation]) -> list[str]:
    """Proxies of one cluster that would refuse a proxy of another, each with one such."""
    leaves = [(peer.name, peer.leaf) for other in clusters if other is not cluster for peer in other.peers]
    found = []
    for peer in cluster.peers:
        trusts = peer.trusts
        if trusts is None:
            found.append(f"{peer.name}: whom it trusts could not be read ({peer.unreadable})")
            continue
        refused = next((name for name, leaf in leaves if leaf is not None and not leaf.anchors & trusts), "")
        if refused:
            found.append(f"{peer.name} does not trust {refused}")
    return found
