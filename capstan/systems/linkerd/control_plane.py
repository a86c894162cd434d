"""Restarting Linkerd's control plane in its order, each step proven on the live processes.

identity first (it signs only for issuers its roots know), then destination, then proxy-injector (it hands the roots on
to every pod born from now on). The injector is proven by a dry-run: a pod as the API server would create it now.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import DEPLOYMENTS, SECRETS
from capstan.cluster.restart import STAMP, Restarted, RestartReport, restart_workloads
from capstan.errors import GateTimedOut
from capstan.systems.linkerd.identity import read_replicas, written_at
from capstan.systems.linkerd.identity_judging import hear, require_no_crash, require_readable, why_wrong
from capstan.systems.linkerd.layout import COMPONENT_LABEL, CONTROL_PLANE, IDENTITY, ISSUER, short
from capstan.systems.linkerd.observe import View, observe
from capstan.systems.linkerd.rehearsal import await_injector
from capstan.trust.observation import Fingerprint, Owner

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.cluster.restart import Step
    from capstan.cluster.values import Object
    from capstan.trust.observation import Peer

GLANCE: Final = 20.0  # seconds of a restart between two looks at whether it can still succeed
ROUNDS: Final = 3  # restarts of one component: a pod may be born before its kubelet has the new ConfigMap
POLL: Final = 1.0


def restart_control_plane(
    cluster: Cluster,
    namespace: str,
    roots: frozenset[Fingerprint],
    stamp: str,
    *,
    seconds: float,
    issuer: Fingerprint | None,
    on_progress: Callable[[Step], None] | None,
    now: Callable[[], datetime],
    every_leaf: bool = False,
) -> RestartReport:
    """See `TrustSystem.restart_control_plane`.

    Args:
        every_leaf: Ask for a leaf of the issuer of each component, and start identity anew in any case: its proxy's
            leaf says what it signed by when it was asked last, and its watcher may have died since.
    """
    until = cluster.clock() + seconds
    restarted: list[Restarted] = []
    for name in CONTROL_PLANE:
        if cluster.find(DEPLOYMENTS, name, namespace) is None:
            continue  # older versions have fewer of them
        signs = name == IDENTITY
        restarted += _restart_component(
            cluster, namespace, name, roots, issuer if signs or every_leaf else None, stamp, until, on_progress, now,
            even_if_right=signs and every_leaf, mend_crashes=every_leaf,
        )  # fmt: skip
    await_injector(cluster, namespace, roots, until=until)
    return RestartReport(tuple(restarted))


def restart_identity(
    cluster: Cluster,
    namespace: str,
    stamp: str,
    *,
    seconds: float,
    issuer: Fingerprint,
    on_progress: Callable[[Step], None] | None,
    now: Callable[[], datetime],
) -> RestartReport:
    """See `TrustSystem.restart_signers`.

    Identity's Events of a new issuer can be lost and its watcher can die, and its own proxy may hold a leaf from before
    both: only a process that is younger than the switch is known to sign by what was switched to.
    """
    until = cluster.clock() + seconds
    view = _look(cluster, namespace, Owner("Deployment", namespace, IDENTITY), now)
    roots = view.bundle.fingerprints
    if not _begun(cluster, namespace, stamp):
        _hear(cluster, view, issuer, until=until, now=now)
    return RestartReport(
        tuple(
            _restart_component(
                cluster, namespace, IDENTITY, roots, issuer, stamp, until, on_progress, now, even_if_right=True
            )
        )
    )


def _begun(cluster: Cluster, namespace: str, stamp: str) -> bool:
    """Whether identity was told to start anew for this stamp: who is old now is on its way out."""
    template = cluster.get(DEPLOYMENTS, IDENTITY, namespace)["spec"]["template"].get("metadata") or {}
    return bool((template.get("annotations") or {}).get(STAMP) == stamp)


def _hear(cluster: Cluster, view: View, issuer: Fingerprint, *, until: float, now: Callable[[], datetime]) -> None:
    """Before any replica is started anew: does each that runs take the issuer, or at least not refuse it?

    Raises:
        IssuerNotTaken: A replica skipped it, or the Secret does not hold it (any more).
    """
    namespace = view.layout.namespace
    require_readable(cluster, view, view.bundle.fingerprints, issuer, (), now())
    if view.issuer is not None:
        written = written_at(cluster.get(SECRETS, ISSUER, namespace))
        hear(cluster, view, view.issuer, written, until=until, now=now)


def _restart_component(
    cluster: Cluster,
    namespace: str,
    name: str,
    roots: frozenset[Fingerprint],
    issuer: Fingerprint | None,
    stamp: str,
    until: float,
    on_progress: Callable[[Step], None] | None,
    now: Callable[[], datetime],
    *,
    even_if_right: bool = False,
    mend_crashes: bool = False,
) -> list[Restarted]:
    """Restart one component until every pod of it holds the roots (and presents a leaf of the issuer).

    Args:
        even_if_right: Restart it once for this stamp even if every pod looks so; an earlier run's is waited for.
        mend_crashes: Replicas may be crashing over what has just been replaced: that is no reason to stop.
    """
    owner = Owner("Deployment", namespace, name)
    restarted: list[Restarted] = []
    wrong: tuple[str, ...] = ()
    for attempt in range(1, ROUNDS + 1):
        view = _look(cluster, namespace, owner, now)
        wrong = _wrong(view, owner, roots, issuer, now())
        if not wrong and not (even_if_right and attempt == 1):
            return restarted
        replicas = read_replicas(cluster, namespace, now=now) if name == IDENTITY else ()
        require_readable(cluster, view, roots, issuer if name == IDENTITY else None, replicas, now())
        this_stamp = stamp if attempt == 1 else f"{stamp}.{attempt}"
        report = _restart(cluster, owner, this_stamp, until, on_progress, now, mend_crashes=mend_crashes)
        restarted += report.restarted
        # A pod is ready before its proxy was read; a proxy that answers may still be about to fetch its first leaf.
        settle = min(until, cluster.clock() + 15.0)
        while wrong := _wrong_after_all(cluster, owner, roots, issuer, now):
            if cluster.clock() >= settle:
                break
            cluster.sleep(POLL)
        if not wrong:
            return restarted
        if cluster.clock() >= until:
            break
    raise GateTimedOut(
        f"{name} does not come up as it has to", stragglers=wrong, where=f"{owner} in cluster {cluster.name}",
        observed="; ".join(wrong[:10]), expected=_expected(roots, issuer),
        next_command=f"kubectl get pods -n {namespace} -l linkerd.io/control-plane-component -o wide",
    )  # fmt: skip


def _restart(
    cluster: Cluster,
    owner: Owner,
    stamp: str,
    until: float,
    on_progress: Callable[[Step], None] | None,
    now: Callable[[], datetime],
    *,
    mend_crashes: bool,
) -> RestartReport:
    """Restart one component, and look from time to time whether its new replicas crash: waiting mends no crash.

    Raises:
        IssuerNotTaken, GateRefused: A replica of identity ends at its start; says over what.
        GateTimedOut: The restart did not end in time.
    """
    began, changed = cluster.clock(), False
    while True:
        left = max(until - cluster.clock(), 1.0)
        glance = cluster.clock()
        try:
            report = restart_workloads(
                cluster, [owner], stamp, seconds=min(left, GLANCE), on_progress=on_progress, now=now
            )
        except GateTimedOut:
            if owner.name == IDENTITY and not mend_crashes:
                replicas = read_replicas(cluster, owner.namespace, now=now)
                require_no_crash(replicas, f"{owner} in cluster {cluster.name}", owner.namespace)
            if left <= GLANCE or cluster.clock() - glance < GLANCE / 2:  # its controller gave up by itself
                raise
            changed = True
            continue
        if not changed:
            return report
        seconds = cluster.clock() - began
        again = tuple(replace(item, changed=True, seconds=seconds) for item in report.restarted)
        return RestartReport(again, report.skipped)


def _wrong_after_all(
    cluster: Cluster,
    owner: Owner,
    roots: frozenset[Fingerprint],
    issuer: Fingerprint | None,
    now: Callable[[], datetime],
) -> tuple[str, ...]:
    """Pods that are not as wanted after their restart; identity's replicas by their own word, too."""
    view = _look(cluster, owner.namespace, owner, now)
    wrong = _wrong(view, owner, roots, issuer, now())
    if owner.name != IDENTITY or issuer is None or view.issuer is None or view.issuer.fingerprint != issuer:
        return wrong
    held = view.issuer
    own = (
        f"{replica.name}: {reason}"
        for replica in read_replicas(cluster, owner.namespace, now=now)
        if (reason := why_wrong(replica, held))
    )
    return (*wrong, *own)


def _look(cluster: Cluster, namespace: str, owner: Owner, now: Callable[[], datetime]) -> View:
    component = owner.name.removeprefix("linkerd-")

    def of_component(pod: Object) -> bool:
        return (pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL) == component

    return observe(cluster, namespace, within=namespace, only=of_component, now=now)


def _wrong(
    view: View, owner: Owner, roots: frozenset[Fingerprint], issuer: Fingerprint | None, at: datetime
) -> tuple[str, ...]:
    """Pods of the owner that are not as wanted, each with the reason."""
    proxies = [proxy for proxy in view.proxies if proxy.peer.owner == owner and not proxy.leaving]
    if not proxies:
        return (f"{owner}: no running pod",)
    return tuple(
        f"{proxy.peer.name}: {reason}"
        for proxy in proxies
        if (reason := why_stale(proxy.peer, roots, issuer, at) or proxy.apart)
    )


def why_stale(peer: Peer, roots: frozenset[Fingerprint], issuer: Fingerprint | None, at: datetime | None = None) -> str:
    """Why a peer is not as wanted; empty if it is.

    Args:
        at: Where a leaf of the issuer is wanted: when it has to be valid; None takes one that has ended, too.
    """
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
    if at is not None and peer.leaf.not_after <= at:
        return f"presents a leaf that ended on {peer.leaf.not_after:%F %T}Z"
    return ""


def _expected(roots: frozenset[Fingerprint], issuer: Fingerprint | None) -> str:
    return f"roots {short(roots)}" + (f" and leaves of issuer {issuer[:8]}" if issuer else "")
