"""Restarting the workloads whose proxies still hold old roots, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import PODS
from capstan.cluster.restart import Restarted, RestartReport, Skipped, restart_workloads
from capstan.cluster.workloads import RESOURCES, Method, Owners, PodRef, method
from capstan.errors import GateRefused, GateTimedOut, NotFound
from capstan.systems.linkerd.control_plane import why_stale
from capstan.systems.linkerd.layout import short
from capstan.systems.linkerd.observe import observe
from capstan.systems.linkerd.pods import proxy_container
from capstan.trust.observation import Fingerprint, Owner, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.cluster.restart import Step
    from capstan.systems.linkerd.observe import View

ROUNDS: Final = 3  # a pod may be born stale while an injector's replica lags behind; then its owner is restarted again
SECOND_LOOK: Final = 2.0


def restart_data_plane(
    cluster: Cluster,
    namespace: str,
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
    stale: dict[Owner, tuple[PodRef, ...]] = {}
    for attempt in range(1, ROUNDS + 1):
        view = _look(cluster, namespace, now)
        stale = {owner: refs for owner, refs in stale_owners(view, roots, issuer).items() if owner not in skipped}
        for owner in list(stale):
            reason = _why_restart_is_useless(cluster, owner)
            if reason:
                skipped[owner] = Skipped(owner, reason, tuple(ref.name for ref in stale.pop(owner)))
        if not stale:
            return RestartReport(tuple(restarted), tuple(skipped.values()))
        report = restart_workloads(
            cluster, stale, stamp if attempt == 1 else f"{stamp}.{attempt}",
            seconds=max(until - cluster.clock(), 1.0), parallel=parallel, on_progress=on_progress, now=now,
        )  # fmt: skip
        restarted += report.restarted
        skipped |= {entry.owner: entry for entry in report.skipped}
        _require_injected(cluster, [entry.owner for entry in report.restarted])
    left = stale_owners(_look(cluster, namespace, now), roots, issuer)
    stragglers = tuple(str(owner) for owner in left if owner not in skipped)
    if stragglers:
        raise GateTimedOut(
            f"{len(stragglers)} workloads are restarted and still not as wanted", stragglers=stragglers,
            where=f"cluster {cluster.name}", observed="; ".join(stragglers[:10]), expected=f"roots {short(roots)}",
            next_command="capstan status",
        )  # fmt: skip
    return RestartReport(tuple(restarted), tuple(skipped.values()))


def _look(cluster: Cluster, namespace: str, now: Callable[[], datetime]) -> View:
    """Observe; a second time where something could not be read, so that one lost answer restarts nobody."""
    view = observe(cluster, namespace, now=now)
    if any(proxy.peer.unreadable and not proxy.leaving for proxy in view.proxies):
        cluster.sleep(SECOND_LOOK)
        view = observe(cluster, namespace, now=now)
    return view


def stale_owners(
    view: View, roots: frozenset[Fingerprint], issuer: Fingerprint | None
) -> dict[Owner, tuple[PodRef, ...]]:
    """Owners of workload proxies that are not as wanted, with those of their pods; unreadable ones count, pods on their
    way out do not: they need no restart to go."""
    found: dict[Owner, list[PodRef]] = {}
    for proxy in view.proxies:
        if proxy.peer.role is Role.WORKLOAD and not proxy.leaving and why_stale(proxy.peer, roots, issuer):
            found.setdefault(proxy.peer.owner, []).append(proxy.ref)
    return {owner: tuple(refs) for owner, refs in found.items()}


def _why_restart_is_useless(cluster: Cluster, owner: Owner) -> str:
    """A workload injected by hand carries the proxy and its roots in its template: a restart only copies them."""
    resource = RESOURCES.get(owner.kind)
    if resource is None or method(owner) is Method.NONE:
        return ""
    try:
        template = cluster.get(resource, owner.name, owner.namespace)["spec"]["template"]
    except NotFound:
        return ""
    if proxy_container(template.get("spec") or {}) is None:
        return ""
    return "injected by hand (`linkerd inject --manual`): its template carries the roots; inject and apply it again"


def _require_injected(cluster: Cluster, owners: Iterable[Owner]) -> None:
    """A failing webhook lets pods through without their proxy (failurePolicy Ignore): unencrypted, and unseen.

    Raises:
        GateRefused: Pods of a workload that was meshed before came back without a proxy.
    """
    bare = []
    for namespace in sorted({owner.namespace for owner in owners}):
        wanted = {owner for owner in owners if owner.namespace == namespace}
        finder = Owners(cluster)
        for pod in cluster.list(PODS, namespace).items:
            if "deletionTimestamp" in pod["metadata"] or proxy_container(pod["spec"]) is not None:
                continue
            if finder.of(pod) in wanted:
                bare.append(f"{namespace}/{pod['metadata']['name']}")
    if bare:
        raise GateRefused(
            f"{len(bare)} restarted pods came back without their proxy", where=f"cluster {cluster.name}",
            observed=", ".join(bare[:20]), expected="a linkerd-proxy in each, as before the restart",
            next_command="capstan check (is the injector's webhook certificate valid?), then restart these workloads",
        )  # fmt: skip
