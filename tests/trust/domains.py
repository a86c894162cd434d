"""Observations built by hand, for claims about the judges of them."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from capstan.trust.observation import ClusterObservation, Issuer, Leaf, Observation, Owner, Peer, Role

if TYPE_CHECKING:
    from collections.abc import Iterable

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
OLD, NEW, OTHER = "a" * 64, "b" * 64, "c" * 64
BOTH = frozenset({OLD, NEW})


def only(*roots: str) -> frozenset[str]:
    return frozenset(roots)


def peer(
    pod: str = "web-1",
    *,
    cluster: str = "east",
    trusts: frozenset[str] | None = frozenset({OLD}),
    anchors: frozenset[str] | None = frozenset({OLD}),
    until: dt.datetime = NOW + HOUR,
    role: Role = Role.WORKLOAD,
    owner: str = "web",
    why: str = "",
) -> Peer:
    leaf = None
    if anchors is not None:
        leaf = Leaf(f"leaf of {pod}", f"{pod}.example", "issuer", anchors, NOW - HOUR, until)
    return Peer(cluster, "app", pod, role, Owner("Deployment", "app", owner), trusts, leaf, why)


def cluster(
    peers: Iterable[Peer] = (),
    *,
    name: str = "east",
    bundle: frozenset[str] = frozenset({OLD}),
    issuer: frozenset[str] | None = frozenset({OLD}),
    declared: tuple[tuple[str, frozenset[str]], ...] = (),
    issuer_fingerprint: str = "1" * 64,
) -> ClusterObservation:
    made = None if issuer is None else Issuer(issuer_fingerprint, issuer, NOW + 500 * HOUR)
    return ClusterObservation(name, bundle, declared, made, tuple(peers), 24 * 3600.0)


def domain(*clusters: ClusterObservation, at: dt.datetime = NOW) -> Observation:
    return Observation(at, clusters)


def settled(trusts: frozenset[str], root: str, *, peers: int = 3, name: str = "east") -> ClusterObservation:
    """A cluster whose every part trusts `trusts` and issues and presents `root`."""
    anchors = only(root)
    pods = [peer(f"{name}-web-{n}", cluster=name, trusts=trusts, anchors=anchors) for n in range(peers)]
    pods.append(
        peer(f"{name}-identity", cluster=name, trusts=trusts, anchors=anchors, role=Role.CONTROL_PLANE, owner="id")
    )
    return cluster(pods, name=name, bundle=trusts, issuer=anchors)
