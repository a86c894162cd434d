"""Restarting the workloads whose proxies do not hold what they should, where a domain chooses not to wait.

Istio's proxies take roots and leaf together whenever they renew, so nothing has to be restarted for a rotation but
ztunnels of older versions; a restart is the quicker way for who wants it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import PODS
from capstan.cluster.restart import Restarted, RestartReport, Skipped, restart_workloads
from capstan.cluster.workloads import Owners, PodRef
from capstan.errors import GateRefused, GateTimedOut
from capstan.systems.istio import versions
from capstan.systems.istio.layout import short
from capstan.systems.istio.pods import is_ztunnel, proxy_container
from capstan.trust.observation import Fingerprint, Owner, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.cluster.restart import Step
    from capstan.systems.istio.observe import View
    from capstan.trust.observation import Peer

ROUNDS: Final = 3  # a pod may take its first certificate from an istiod that lags behind; then it is restarted again
SECOND_LOOK: Final = 2.0


def restart_data_plane(
    cluster: Cluster,
    look: Callable[[], View],
    roots: frozenset[Fingerprint],
    stamp: str,
    *,
    seconds: float,
    issuer: Fingerprint | None,
    parallel: int,
    on_progress: Callable[[Step], None] | None,
    now: Callable[[], datetime],
) -> RestartReport:
    """See `TrustSystem.restart_data_plane`.

    Raises:
        GateRefused: A restarted workload came back without its proxy.
    """
    until = cluster.clock() + seconds
    restarted: list[Restarted] = []
    skipped: dict[Owner, Skipped] = {}
    for attempt in range(1, ROUNDS + 1):
        found = stale_owners(_look(cluster, look), roots, issuer)
        stale = {owner: refs for owner, refs in found.items() if owner not in skipped}
        if not stale:
            return RestartReport(tuple(restarted), tuple(skipped.values()))
        report = restart_workloads(
            cluster, stale, stamp if attempt == 1 else f"{stamp}.{attempt}",
            seconds=max(until - cluster.clock(), 1.0), parallel=parallel, on_progress=on_progress, now=now,
        )  # fmt: skip
        restarted += report.restarted
        skipped |= {entry.owner: entry for entry in report.skipped}
        _require_proxies(cluster, [entry.owner for entry in report.restarted])
    left = stale_owners(_look(cluster, look), roots, issuer)
    stragglers = tuple(str(owner) for owner in left if owner not in skipped)
    if stragglers:
        raise GateTimedOut(
            f"{len(stragglers)} workloads are restarted and still not as wanted", stragglers=stragglers,
            where=f"cluster {cluster.name}", observed="; ".join(stragglers[:10]), expected=f"roots {short(roots)}",
            next_command="capstan status",
        )  # fmt: skip
    return RestartReport(tuple(restarted), tuple(skipped.values()))


def stale_owners(
    view: View, roots: frozenset[Fingerprint], issuer: Fingerprint | None
) -> dict[Owner, tuple[PodRef, ...]]:
    """Owners of workload proxies that are not as wanted, with those of their pods; unreadable ones count, pods on their
    way out do not (they need no restart to go), nor do proxies outside the cluster (nobody here can restart them)."""
    found: dict[Owner, dict[PodRef, None]] = {}
    for proxy in view.proxies:
        ours = proxy.peer.role is Role.WORKLOAD and proxy.kind != "unknown" and not proxy.leaving
        if ours and why_stale(proxy.peer, roots, issuer):
            found.setdefault(proxy.peer.owner, {})[proxy.ref] = None  # a ztunnel has many certificates, and one pod
    return {owner: tuple(refs) for owner, refs in found.items()}


def outdated_ztunnels(view: View) -> tuple[Owner, ...]:
    """DaemonSets of ztunnels that keep the roots of their start for asking istiod (before 1.28.6, 1.29.2 and 1.30).

    Source: ztunnel commit 642b1d7d. Once istiod presents a certificate of a new root these can renew nothing, so they
    have to be restarted after the roots are added and before anything is signed under the new one.
    """
    owners: dict[Owner, None] = {}
    for proxy in view.proxies:
        old = proxy.version is None or not versions.ztunnel_follows_changed_roots(proxy.version)
        if proxy.kind == "ztunnel" and old and not proxy.leaving:
            owners[proxy.peer.owner] = None
    return tuple(owners)


def why_stale(peer: Peer, roots: frozenset[Fingerprint], issuer: Fingerprint | None) -> str:
    """Why a peer is not as wanted; empty if it is."""
    if peer.trusts is None:
        return f"its roots could not be read ({peer.unreadable})"
    if peer.trusts != roots:
        return f"holds roots {short(peer.trusts)}"
    if issuer is None:
        return ""
    if peer.leaf is None:
        return f"its leaf could not be read ({peer.unreadable})"
    if peer.leaf.issuer != issuer:
        return f"presents a leaf of issuer {(peer.leaf.issuer or 'unknown')[:8]}"
    return ""


def _look(cluster: Cluster, look: Callable[[], View]) -> View:
    """Look; a second time where something could not be read, so that one lost answer restarts nobody."""
    view = look()
    if any(proxy.peer.unreadable and not proxy.leaving for proxy in view.proxies):
        cluster.sleep(SECOND_LOOK)
        view = look()
    return view


def _require_proxies(cluster: Cluster, owners: Iterable[Owner]) -> None:
    """A failing webhook lets pods through without their proxy (where failurePolicy is Ignore): unencrypted, and unseen.

    Raises:
        GateRefused: Pods of a workload that was meshed before came back without a proxy.
    """
    bare = []
    for namespace in sorted({owner.namespace for owner in owners}):
        wanted = {owner for owner in owners if owner.namespace == namespace}
        finder = Owners(cluster)
        for pod in cluster.list(PODS, namespace).items:
            meshed = proxy_container(pod["spec"]) is not None or is_ztunnel(pod)
            if not meshed and "deletionTimestamp" not in pod["metadata"] and finder.of(pod) in wanted:
                bare.append(f"{namespace}/{pod['metadata']['name']}")
    if bare:
        raise GateRefused(
            f"{len(bare)} restarted pods came back without their proxy", where=f"cluster {cluster.name}",
            observed=", ".join(bare[:20]), expected="an istio-proxy in each, as before the restart",
            next_command="capstan check (is the injector's caBundle right?), then restart these workloads",
        )  # fmt: skip
