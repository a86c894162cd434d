"""Writing what takes the place of expired roots and issuers, and starting anew whoever cannot come back by itself.

The ordinary steps refuse what nobody would trust yet; here nobody trusts what there is. What is kept of their care:
owners are asked, resourceVersions hold, an identity that would not start is not restarted, pods that would come back
without their proxy are not begun, and a root on which something living depends is never taken away.

Sources: Linkerd's page "Replacing expired certificates"; facts, sections 2, 3 and 4b.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import PODS
from capstan.errors import GateRefused
from capstan.systems.linkerd import anchors, control_plane, data_plane, issuer
from capstan.systems.linkerd.checks_hooks import HOOKS, read_hook
from capstan.systems.linkerd.checks_webhooks import serving_problem
from capstan.systems.linkerd.layout import COMPONENT_LABEL, TRUST_ROOTS, short
from capstan.systems.linkerd.observe import PEER_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.cluster.restart import RestartReport, Step
    from capstan.pki.bundle import Bundle
    from capstan.pki.inspect import Certificate
    from capstan.systems.base import Change, IssuerMaterial
    from capstan.systems.linkerd.adapter import Linkerd
    from capstan.systems.linkerd.checks_hooks import HookReading
    from capstan.systems.linkerd.observe import View
    from capstan.trust.observation import Fingerprint

FASTER: Final = 4
"""How many times the policy's workloads are restarted at the same time: each of them is down already."""
MOST: Final = 64
WEBHOOKS: Final = "capstan rotate --system linkerd --what webhooks"


def replace_roots(linkerd: Linkerd, roots: Bundle, known: tuple[Certificate, ...], now: datetime) -> tuple[Change, ...]:
    """Make every place that declares the roots hold exactly these.

    Args:
        known: Certificates to recognise besides those found.
        now: Aware UTC: a root that has ended by then may be taken away whatever chains to it.

    Raises:
        GateRefused: A living leaf, or the issuer of living leaves, chains to a living root that would be taken away.
        OwnedElsewhere, Conflict: As `anchors.ensure_bundle`. Nothing was written.
    """
    require_nobody_living_needs_others(linkerd.view(known), roots, now)
    return anchors.ensure_bundle(linkerd.cluster, linkerd.namespace, roots, accept=linkerd.accept)


def require_nobody_living_needs_others(view: View, roots: Bundle, now: datetime) -> None:
    """Refuse roots without one that lives and to which a leaf that lives chains.

    Raises:
        GateRefused: Names who would lose by it.
    """
    kept = roots.fingerprints
    living = {f for f, certificate in view.certificates.items() if certificate.not_after > now}
    needing = [
        f"{peer.name} presents a leaf of {short(peer.leaf.anchors)} until {peer.leaf.not_after:%F %T}Z"
        for peer in view.observation.peers
        if peer.leaf is not None and peer.leaf.not_after > now
        if peer.leaf.anchors & living and not peer.leaf.anchors & kept
    ]
    if needing:
        raise GateRefused(
            f"{len(needing)} proxies live by a root that has not ended and would be taken away",
            where=f"configmap {view.layout.namespace}/{TRUST_ROOTS} in cluster {view.observation.name}",
            observed="\n            ".join(needing[:20]),
            expected=f"every living leaf to chain to {short(kept)}",
            next_command="capstan status; restore that root's issuer, or restart what is named",
        )


def replace_issuer(linkerd: Linkerd, material: IssuerMaterial, now: datetime) -> tuple[Change, ...]:
    """Make the configured issuer this one, whoever trusts it yet: the one there is signs nothing any more.

    Raises:
        GateRefused: It does not verify against the declared roots: identity would not start with it.
        OwnedElsewhere, Conflict: As `issuer.ensure_issuer`. Nothing was written.
    """
    view = linkerd.view(material.chain)
    return issuer.ensure_issuer(linkerd.cluster, view, material, now=now, accept=linkerd.accept, trusted_by_all=False)


def restart_control_plane(
    linkerd: Linkerd,
    roots: frozenset[Fingerprint],
    issuer: Fingerprint,
    stamp: str,
    *,
    seconds: float,
    on_progress: Callable[[Step], None] | None,
    now: Callable[[], datetime],
) -> RestartReport:
    """Start identity anew, then every other part whose proxies have not these roots and a living leaf of the issuer.

    Raises:
        GateRefused, GateTimedOut: As `TrustSystem.restart_control_plane`.
    """
    return control_plane.restart_control_plane(
        linkerd.cluster, linkerd.namespace, roots, stamp,
        seconds=seconds, issuer=issuer, on_progress=on_progress, now=now, every_leaf=True,
    )  # fmt: skip


def restart_data_plane(
    linkerd: Linkerd,
    roots: frozenset[Fingerprint],
    issuer: Fingerprint,
    stamp: str,
    *,
    seconds: float,
    parallel: int,
    on_progress: Callable[[Step], None] | None,
    now: Callable[[], datetime],
) -> RestartReport:
    """Start anew every workload with a proxy that has not these roots and a living leaf of the issuer.

    Many at a time, under their rollout strategies and disruption budgets; one that does not come up holds up no other.

    Args:
        parallel: The policy's number.

    Raises:
        GateRefused: A restarted workload came back without its proxy. GateTimedOut: Names those that did not end.
    """
    return data_plane.restart_data_plane(
        linkerd.cluster, linkerd.namespace, roots, stamp, seconds=seconds, issuer=issuer,
        parallel=min(MOST, FASTER * parallel), on_progress=on_progress, now=now, go_on=True,
    )  # fmt: skip


def expired_webhooks(cluster: Cluster, namespace: str, now: datetime) -> tuple[str, ...]:
    """The control plane's webhooks that the API server refuses because a certificate has ended: name and reason.

    Raises:
        CapstanError: The API cannot be read at all.
    """
    pods = cluster.list(PODS, namespace, label_selector=COMPONENT_LABEL).items
    readings = (read_hook(cluster, hook, namespace, pods, timeout=PEER_TIMEOUT) for hook in HOOKS)
    return tuple(f"{reading.hook.name}: {why}" for reading in readings if (why := _why_expired(reading, now)))


def require_injection(cluster: Cluster, namespace: str, now: datetime) -> None:
    """Refuse to restart workloads while the injector cannot be called: they would come back without their proxy.

    Raises:
        GateRefused: Its certificate has ended, too.
    """
    found = [each for each in expired_webhooks(cluster, namespace, now) if each.startswith(HOOKS[0].name)]
    if found:
        raise GateRefused(
            "restarted workloads would come back without their proxy: the injector's webhook certificate has expired",
            where=f"cluster {cluster.name}", observed="; ".join(found),
            expected="a proxy-injector that the API server can call", next_command=f"{WEBHOOKS}; then this again",
        )  # fmt: skip


def _why_expired(reading: HookReading, now: datetime) -> str:
    """Why it is refused, if time alone is the reason: what is served counts, else what the Secret holds."""
    chains = [served.chain for served in reading.served if served.chain] or ([reading.chain] if reading.chain else [])
    for chain in chains:
        ended = [c for c in (chain[0], *_used(reading.anchors, chain[0])) if c.not_after <= now]
        if ended and serving_problem(chain, reading.dns_name, reading.anchors, now):
            return f"{ended[0].subject} ended on {ended[0].not_after:%F %T}Z"
    return ""


def _used(anchors_: Bundle, leaf: Certificate) -> list[Certificate]:
    return [root for root in anchors_ if leaf == root or leaf.signed_by(root)]
