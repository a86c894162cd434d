"""What has expired in a trust domain, and since when who is down. Pure: no I/O, no clock.

An ordinary rotation keeps every handshake; here they fail already, so nothing is waited for that cannot come back by
itself. Two facts decide (Linkerd; facts, sections 2 and 3):

    identity     verifies its issuer against its roots, ends of the roots included, at every Certify: once issuer or
                 root has ended it signs nothing, and does not start again
    a proxy      looks at the ends of leaf and issuer, never at its anchor's (rustls): a leaf that lives is accepted on
                 under an anchor that has ended; one that has ended cannot even ask identity for the next, so that only
                 a restart of its pod heals it

What takes its place: `capstan.trust.replacing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from capstan.pki.clock import require_aware

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from capstan.trust.observation import ClusterObservation, Fingerprint, Observation, Peer


class Scope(StrEnum):
    """What has to be made anew."""

    ANCHOR = "anchor"
    """A trust anchor, and issuers under it."""
    ISSUER = "issuer"
    """Issuers, under the anchor there is."""
    LEAVES = "leaves"
    """Nothing: issuer and anchor are good, and proxies have missed every renewal."""
    REMNANT = "remnant"
    """Nothing, and nobody is down: an anchor that has ended is still trusted beside a good one."""


@dataclass(frozen=True, slots=True)
class Downtime:
    """A workload with proxies that have no valid identity.

    Attributes:
        workload: `CLUSTER: deployment/web -n shop`.
        since: When the first of its proxies lost it, aware UTC.
        proxies: How many are without.
    """

    workload: str
    since: datetime
    proxies: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What has expired, as observed.

    Attributes:
        roots: Trusted roots that have ended -> when.
        issuers: Clusters whose issuer signs nothing that is accepted any more -> since when.
        workloads: Those without a valid identity, the longest first.
        proxies: Live proxies.
        last_leaf: End of the last leaf that still lives; None where none does.
        ends: Every workload -> when the first of its proxies has lost its identity, or will.
    """

    roots: Mapping[Fingerprint, datetime]
    issuers: Mapping[str, datetime]
    workloads: tuple[Downtime, ...]
    proxies: int
    last_leaf: datetime | None
    ends: Mapping[str, datetime]

    @property
    def anything(self) -> bool:
        """Whether anything has expired at all."""
        return bool(self.roots or self.issuers or self.workloads)

    @property
    def down(self) -> bool:
        """Whether anybody is without an identity, or cannot be given the next: a remnant alone hurts nobody."""
        return bool(self.issuers or self.workloads)

    @property
    def without(self) -> int:
        """Proxies without a valid identity."""
        return sum(each.proxies for each in self.workloads)

    @property
    def since(self) -> datetime | None:
        """When the first proxy lost its identity; None where none has."""
        return min((each.since for each in self.workloads), default=None)


def diagnose(observation: Observation, ends: Mapping[Fingerprint, datetime], now: datetime) -> Diagnosis:
    """What of a domain has expired.

    Args:
        ends: End of validity of every root met, aware UTC; a root that is not in it counts as good.
        now: Aware UTC.
    """
    require_aware(now)
    trusted = frozenset().union(*(cluster.bundle for cluster in observation.clusters))
    roots = {root: ends[root] for root in sorted(trusted) if root in ends and ends[root] <= now}
    issuers: dict[str, datetime] = {}
    downs: dict[str, Downtime] = {}
    first: dict[str, datetime] = {}
    living: list[datetime] = []
    for cluster in observation.clusters:
        ended = _issuer_ended(cluster, roots, now)
        if ended is not None:
            issuers[cluster.name] = ended
        for peer in cluster.peers:
            since, name = _without_since(peer, ended, now), workload_of(peer)
            end = since or (peer.leaf.not_after if peer.leaf is not None else None)
            if end is not None:
                first[name] = min(first.get(name, end), end)
            if since is not None:
                known = downs.get(name, Downtime(name, since, 0))
                downs[name] = Downtime(name, min(known.since, since), known.proxies + 1)
            elif peer.leaf is not None:
                living.append(peer.leaf.not_after)
    return Diagnosis(
        roots=roots,
        issuers=issuers,
        workloads=tuple(sorted(downs.values(), key=lambda each: (each.since, each.workload))),
        proxies=len(observation.peers),
        last_leaf=max(living, default=None),
        ends=first,
    )


def workload_of(peer: Peer) -> str:
    """`CLUSTER: deployment/web -n shop`."""
    return f"{peer.cluster}: {peer.owner}"


def _issuer_ended(cluster: ClusterObservation, roots: Mapping[Fingerprint, datetime], now: datetime) -> datetime | None:
    """Since when nothing that a cluster's issuer signs is accepted; None if it is, or if that is no matter of time."""
    issuer = cluster.issuer
    if issuer is None:
        return None
    if issuer.not_after <= now:
        return issuer.not_after
    if issuer.anchors - roots.keys():
        return None
    # Roots that have ended are no anchors of anything any more: which of them was its own is not known here.
    mine = [roots[root] for root in (issuer.anchors or cluster.bundle) if root in roots]
    return max(mine, default=None)


def _without_since(peer: Peer, issuer_ended: datetime | None, now: datetime) -> datetime | None:
    """Since when a proxy has no valid identity; None if it has one, or if that cannot be said."""
    if peer.leaf is not None:
        return peer.leaf.not_after if peer.leaf.not_after <= now else None
    if issuer_ended is None or peer.trusts is None:
        return None  # it may be starting, or it could not be asked at all: that is no evidence of an expiry
    return max(issuer_ended, peer.started) if peer.started is not None else issuer_ended
