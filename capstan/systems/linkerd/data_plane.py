"""Restarting the workloads whose proxies still hold old roots, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import CRON_JOBS, DEPLOYMENTS, NAMESPACES, PODS, STATEFUL_SETS
from capstan.cluster.restart import Restarted, RestartReport, Skipped, restart_workloads
from capstan.cluster.workloads import RESOURCES, Method, Owners, PodRef, method
from capstan.errors import CapstanError, GateRefused, GateTimedOut, NotFound
from capstan.pki.bundle import Bundle
from capstan.systems.linkerd.control_plane import why_stale
from capstan.systems.linkerd.layout import short
from capstan.systems.linkerd.observe import observe
from capstan.systems.linkerd.outside import left_to_their_keepers
from capstan.systems.linkerd.pods import (
    has_ended,
    literal_anchors,
    only_proxy_runs,
    proxy_container,
    why_not_injected,
)
from capstan.trust.observation import Fingerprint, Owner, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.cluster.restart import Step
    from capstan.cluster.values import Object
    from capstan.systems.linkerd.observe import View

ROUNDS: Final = 3  # a pod may be born stale while an injector's replica lags behind; then its owner is restarted again
SECOND_LOOK: Final = 2.0
BY_HAND: Final = (
    "injected by hand (`linkerd inject --manual`): its template carries the roots; inject and apply it again"
)
TEMPLATED: Final = (DEPLOYMENTS, STATEFUL_SETS, CRON_JOBS)


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
    go_on: bool = False,
) -> RestartReport:
    """See `TrustSystem.restart_data_plane`.

    Args:
        go_on: As `restart_workloads`.

    Raises:
        GateRefused: A restarted workload came back without its proxy. Nothing more was begun.
    """
    until = cluster.clock() + seconds
    restarted: list[Restarted] = []
    left_alone = (*dormant(cluster, roots), *left_to_their_keepers(cluster))
    skipped = {entry.owner: entry for entry in left_alone}
    stale: dict[Owner, tuple[PodRef, ...]] = {}
    for attempt in range(1, ROUNDS + 1):
        view = _look(cluster, namespace, now)
        stale = {
            owner: refs for owner, refs in stale_owners(view, roots, issuer, now()).items() if owner not in skipped
        }
        namespaces = _namespaces(cluster) if stale else {}
        for owner in list(stale):
            reason = why_restart_is_useless(cluster, owner, namespaces.get(owner.namespace), stale[owner])
            if reason:
                skipped[owner] = Skipped(owner, reason, tuple(ref.name for ref in stale.pop(owner)))
        if not stale:
            return RestartReport(tuple(restarted), tuple(skipped.values()))
        report = restart_workloads(
            cluster, stale, stamp if attempt == 1 else f"{stamp}.{attempt}",
            seconds=max(until - cluster.clock(), 1.0), parallel=parallel, on_progress=on_progress, now=now,
            verify=lambda owner: require_injected(cluster, owner), go_on=go_on,
        )  # fmt: skip
        restarted += report.restarted
        skipped |= {entry.owner: entry for entry in report.skipped}
    left = stale_owners(_look(cluster, namespace, now), roots, issuer, now())
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
    view: View, roots: frozenset[Fingerprint], issuer: Fingerprint | None, at: datetime | None = None
) -> dict[Owner, tuple[PodRef, ...]]:
    """Owners of workload proxies that are not as wanted, with those of their pods; unreadable ones count, pods on their
    way out do not: they need no restart to go. `at` as for `why_stale`."""
    found: dict[Owner, list[PodRef]] = {}
    for proxy in view.proxies:
        if proxy.peer.role is Role.WORKLOAD and not proxy.leaving and why_stale(proxy.peer, roots, issuer, at):
            found.setdefault(proxy.peer.owner, []).append(proxy.ref)
    return {owner: tuple(refs) for owner, refs in found.items()}


def why_restart_is_useless(
    cluster: Cluster, owner: Owner, namespace: Object | None, pods: Sequence[PodRef] = ()
) -> str:
    """Why a restart of this owner would not bring fresh proxies, with what the operator can choose; empty if it would.

    A workload injected by hand carries the proxy and its roots in its template: a restart only copies them. One that is
    not to be injected any more would come back without its proxy, and talk in the clear from then on.

    Args:
        namespace: The Namespace it lives in; None if there is none any more.
        pods: Those of its pods that are stale.
    """
    if owner.kind in ("Job", "CronJob"):
        return _why_job_stays(cluster, owner, pods)
    resource = RESOURCES.get(owner.kind)
    if resource is None or method(owner) is Method.NONE:
        return ""
    try:
        template = cluster.get(resource, owner.name, owner.namespace)["spec"]["template"]
    except NotFound:
        return ""
    container = proxy_container(template.get("spec") or {})
    if container is not None:
        # With a reference in place of the roots it reads them anew at each start, as the control plane's do.
        return BY_HAND if literal_anchors(container) is not None else ""
    problem = why_not_injected(template, namespace) if namespace is not None else ""
    if not problem:
        return ""
    return (
        f"it would come back without its proxy: {problem}; annotate it, or take it out of the mesh with"
        f" `kubectl rollout restart`, then run this again"
    )


def _why_job_stays(cluster: Cluster, owner: Owner, pods: Sequence[PodRef]) -> str:
    """A Job whose work is done and which only its proxy keeps from ending never ends by itself."""
    for ref in pods:
        pod = cluster.find(PODS, ref.name, ref.namespace)
        if pod is None or pod["metadata"]["uid"] != ref.uid or not only_proxy_runs(pod):
            return ""
    names = " ".join(ref.name for ref in pods)
    if not pods:
        return ""
    return (
        f"a {owner.kind} whose own containers have ended: only the proxy, which is no native sidecar, keeps it from"
        f" ending; `kubectl delete pod -n {owner.namespace} {names}`"
    )


def dormant(cluster: Cluster, roots: frozenset[Fingerprint]) -> tuple[Skipped, ...]:
    """Workloads without a pod whose template was injected by hand with other roots: scaled to zero, or not run yet.

    No pod shows them, and the day they are scaled up they would come up with roots that nobody trusts any more.
    """
    found = []
    for resource in TEMPLATED:
        for item in cluster.list(resource).items:
            spec = item.get("spec") or {}
            if resource is CRON_JOBS:
                spec = (spec.get("jobTemplate") or {}).get("spec") or {}
            elif int(spec.get("replicas", 1)) > 0:
                continue  # its pods speak for it
            container = proxy_container((spec.get("template") or {}).get("spec") or {})
            text = literal_anchors(container) if container is not None else None
            if text is None:
                continue
            metadata = item["metadata"]
            owner = Owner(resource.kind, str(metadata.get("namespace", "")), str(metadata["name"]))
            try:
                held = Bundle.parse_lenient(text, str(owner)).fingerprints
            except CapstanError:
                held = frozenset()
            if held != roots:
                found.append(Skipped(owner, f"has no pod now, but is {BY_HAND}"))
    return tuple(found)


def _namespaces(cluster: Cluster) -> dict[str, Object]:
    return {str(item["metadata"]["name"]): item for item in cluster.list(NAMESPACES, metadata_only=True).items}


def require_injected(cluster: Cluster, owner: Owner) -> None:
    """A failing webhook lets pods through without their proxy (failurePolicy Ignore): unencrypted, and unseen.

    Raises:
        GateRefused: Pods of a workload that was meshed before came back without a proxy.
    """
    without = [
        pod
        for pod in cluster.list(PODS, owner.namespace).items
        if "deletionTimestamp" not in pod["metadata"] and not has_ended(pod) and proxy_container(pod["spec"]) is None
    ]
    finder = Owners(cluster, owner.namespace)
    bare = [f"{owner.namespace}/{pod['metadata']['name']}" for pod in without if finder.of(pod) == owner]
    if bare:
        raise GateRefused(
            f"{len(bare)} restarted pods came back without their proxy", where=f"{owner} in cluster {cluster.name}",
            observed=", ".join(bare[:20]), expected="a linkerd-proxy in each, as before the restart",
            next_command="capstan check (is the injector's webhook certificate valid?), then restart these workloads",
        )  # fmt: skip
