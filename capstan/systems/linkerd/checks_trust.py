"""Category `capstan-trust`: what Linkerd has no check for, and what a rotation stands or falls with."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from capstan.pki.bundle import Reading, lint
from capstan.pki.rules import Level, bundle_findings
from capstan.systems.base import CheckResult, Severity
from capstan.systems.linkerd.checks_report import HINTS, OURS, TRUST, listed, result, skipped
from capstan.systems.linkerd.checks_webhooks import served_check
from capstan.systems.linkerd.layout import IDENTITY, TRUST_ROOTS, short
from capstan.systems.linkerd.outside import BY_HAND, TURNED, by_hand, described

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capstan.cluster.values import Object
    from capstan.systems.linkerd.checks_evidence import Evidence
    from capstan.trust.observation import Peer

TOLERANCE: Final = timedelta(seconds=60)
"""How far apart two issuers must end to be told apart by a time to live (facts 3)."""
OVERDUE: Final = 0.9
"""A proxy renews at 70 % of what remains (linkerd2-proxy, identity-client/certify.rs), so none is this far on."""
OUTSIDE_PAGE: Final = "https://linkerd.io/2/tasks/adding-non-kubernetes-workloads/"
IDENTITY_PAGE: Final = "https://linkerd.io/2/tasks/replacing_expired_certificates/"
BAD_EVENTS: Final = ("IssuerUpdateSkipped", "IssuerValidationFailed")


def trust_checks(evidence: Evidence) -> Iterable[CheckResult]:
    """Every live proxy's roots and leaf, identity's memory, and the places that must say the same."""
    peers = [proxy.peer for proxy in evidence.view.proxies]
    yield from _leaves(evidence, peers)
    yield _outside(evidence)
    yield _memory(evidence)
    yield _clocks(evidence)
    yield _events(evidence)
    yield _restarts(evidence)
    yield from _declared(evidence)
    yield served_check(evidence)


def _leaves(evidence: Evidence, peers: list[Peer]) -> Iterable[CheckResult]:
    now, issuer = evidence.now, evidence.view.issuer
    unreadable = [f"{peer.name}: {peer.unreadable}" for peer in peers if peer.unreadable]
    yield result(
        TRUST, "every running proxy says its roots and shows its leaf", OURS, Severity.ERROR,
        listed("Some proxies could not be read:", unreadable),
    )  # fmt: skip
    shown = [(peer, peer.leaf) for peer in peers if peer.leaf is not None]
    expired = [f"{peer.name}: expired {leaf.not_after:%F %T}Z" for peer, leaf in shown if leaf.not_after < now]
    yield result(
        TRUST, "no proxy presents an expired leaf", OURS, Severity.FATAL,
        listed("An expired leaf cannot be renewed; only a restart heals:", expired),
    )  # fmt: skip
    overdue = [
        f"{peer.name}: {(now - leaf.not_before) / (leaf.not_after - leaf.not_before):.0%} of its life is over"
        for peer, leaf in shown
        if leaf.not_before + (leaf.not_after - leaf.not_before) * OVERDUE < now <= leaf.not_after
    ]
    yield result(
        TRUST, "every leaf is renewed in time", OURS, Severity.WARNING,
        listed("A healthy proxy renews at 70 %; when these end, only a restart heals:", overdue),
    )  # fmt: skip
    yield result(
        TRUST, "every proxy trusts every other proxy's leaf", OURS, Severity.FATAL,
        listed("New connections between these fail now:", _strangers(peers)),
    )  # fmt: skip
    lagging = [
        f"{peer.name}: leaf of issuer {(leaf.issuer or 'unknown')[:8]}"
        for peer, leaf in shown
        if issuer is not None and leaf.issuer != issuer.fingerprint
    ]
    yield result(
        TRUST, "every leaf was signed by the configured issuer", OURS, Severity.WARNING,
        listed("Normal for up to a leaf's lifetime after a switch:", lagging),
    )  # fmt: skip


def _strangers(peers: list[Peer]) -> list[str]:
    believers: dict[frozenset[str], list[str]] = {}
    for peer in peers:
        if peer.trusts is not None:
            believers.setdefault(peer.trusts, []).append(peer.name)
    found = []
    for peer in peers:
        if peer.leaf is None:
            continue
        against = [name for trusts, names in believers.items() if not trusts & peer.leaf.anchors for name in names]
        if against:
            more = f" and {len(against) - 3} more" if len(against) > 3 else ""
            found.append(f"{peer.name} is not trusted by {', '.join(against[:3])}{more}")
    return found


def _outside(evidence: Evidence) -> CheckResult:
    """Whom nobody here can ask, somebody has to answer for: cut off, such a machine is found out by its users."""
    about = TRUST, "workloads outside the cluster are accounted for", OUTSIDE_PAGE, Severity.ERROR
    if evidence.outside.problem:
        return result(*about, f"it is not known whether there are any: {evidence.outside.problem}")
    left = [item for item in evidence.outside.value if not by_hand(item)]
    if left:
        head = (
            "Their proxies keep trust roots of their own, and cannot be asked for them. Who turns them beside each"
            f" phase says so: kubectl annotate externalworkload NAME -n NAMESPACE {TURNED}={BY_HAND}"
        )
        return result(*about, listed(head, [described(item) for item in left]))
    head = f"Turned by hand ({TURNED}={BY_HAND}); no gate waits for these:"
    return result(*about, listed(head, [described(item) for item in evidence.outside.value]), harmless=True)


def _memory(evidence: Evidence) -> CheckResult:
    """Identity keeps an issuer it read long ago if its watcher died, or if it skipped the new one (facts 0.3, 0.4)."""
    about = TRUST, "every identity holds the configured issuer in memory", IDENTITY_PAGE, Severity.ERROR
    issuer = evidence.view.issuer
    if issuer is None:
        return skipped(*about, "the configured issuer cannot be read")
    if not evidence.replicas:
        return result(*about, "no identity is running")
    mute = [
        f"{replica.pod}: it has signed nothing since its start, and failed {replica.failed} times"
        for replica in evidence.replicas
        if replica.signs_nothing
    ]
    if not mute and all(replica.not_after is None and not replica.problem for replica in evidence.replicas):
        version = evidence.view.layout.version or "this version"
        return skipped(*about, f"{version} has no metric issuer_cert_ttl_seconds (2.18 and later have)")
    wrong = mute
    for replica in evidence.replicas:
        if replica.not_after is None:
            wrong.append(f"{replica.pod}: {replica.problem or 'it has no issuer, or does not say'}")
        elif abs(replica.not_after - issuer.not_after) > TOLERANCE:
            wrong.append(
                f"{replica.pod}: its issuer ends {replica.not_after:%F %T}Z, the Secret's {issuer.not_after:%F %T}Z"
            )
    restart = f"kubectl rollout restart -n {evidence.namespace} deploy/{IDENTITY}"
    head = f"Normal for about a minute after a change; else: {restart}"
    return result(*about, listed(head, wrong))


def _clocks(evidence: Evidence) -> CheckResult:
    """A leaf begins by the clock of the replica that signs it, and an issuer is judged by it (-identity-clock-skew)."""
    about = TRUST, "every identity's clock agrees with ours", f"{HINTS}pre-k8s-clock-skew", Severity.ERROR
    if not evidence.replicas:
        return skipped(*about, "no identity is running")
    allowance = evidence.view.layout.clock_skew
    wrong = []
    for replica in evidence.replicas:
        seconds = replica.ahead.total_seconds()
        if abs(seconds) > allowance + 1.0:
            wrong.append(f"{replica.name}: {abs(seconds):.0f} s {'ahead' if seconds > 0 else 'behind'}")
    head = f"Leaves are dated back by {allowance:.0f} s; set the clock of these nodes (chronyc tracking):"
    return result(*about, listed(head, wrong))


def _events(evidence: Evidence) -> CheckResult:
    about = TRUST, "identity reports no trouble with its issuer", IDENTITY_PAGE, Severity.WARNING
    if evidence.events.problem:
        return result(*about, f"its Events cannot be read: {evidence.events.problem}")
    # Each refused leaf is an Event of its own: the newest of a reason says it, and the others are counted.
    times: dict[str, list[tuple[datetime, str]]] = {}
    for item in evidence.events.value:
        reason, at = str(item.get("reason")), _last(item)
        if reason in BAD_EVENTS and at is not None and at > evidence.now - evidence.since:
            times.setdefault(reason, []).append((at, str(item.get("message", ""))))
    found = []
    for reason, told in times.items():
        (at, message), *others = sorted(told, reverse=True)
        more = f" (and {len(others)} more since {others[-1][0]:%F %T}Z)" if others else ""
        found.append(f"{reason} {at:%F %T}Z: {message}{more}")
    note = "" if found else f"Events of the last {_text(evidence.since)}; they can get lost, so this proves nothing"
    return result(*about, listed("", sorted(found)), note=note)


def _restarts(evidence: Evidence) -> CheckResult:
    """A container that ended since then, with an error: an identity that cannot read its roots does nothing else."""
    found = [
        f"{pod['metadata']['name']}: container {container['name']} ended {ended:%F %T}Z with exit code"
        f" {state.get('exitCode')} ({state.get('reason', '')})"
        for pod in evidence.control_plane
        for group in ("initContainerStatuses", "containerStatuses")
        for container in (pod.get("status") or {}).get(group) or []
        if (state := (container.get("lastState") or {}).get("terminated"))
        and state.get("exitCode")
        and (ended := _time(state.get("finishedAt"))) is not None
        and ended > evidence.now - evidence.since
    ]
    return result(
        TRUST, "no control plane container has crashed", HINTS + "l5d-api-control-ready", Severity.WARNING,
        listed(f"In the last {_text(evidence.since)}:", found),
    )  # fmt: skip


def _declared(evidence: Evidence) -> Iterable[CheckResult]:
    view = evidence.view
    bundle = view.bundle.fingerprints
    drift = [f"{place} declares {short(found)}" for place, found in view.observation.declared if found != bundle]
    if evidence.release_drift:
        drift.append(evidence.release_drift)
    yield result(
        TRUST, "all places that declare the trust anchors agree", OURS, Severity.WARNING,
        listed(f"{TRUST_ROOTS} holds {short(bundle)}, but the next upgrade would start from:", drift),
    )  # fmt: skip
    unclean = [str(finding) for finding in lint(evidence.bundle_text) if finding.reading is not Reading.OK]
    yield result(
        TRUST, "the trust bundle is text that every reader understands", OURS, Severity.FATAL,
        listed("identity would crash at its next start, or drop a part:", unclean),
    )  # fmt: skip
    children = (view.issuer,) if view.issuer is not None else ()
    mixed = [str(finding) for finding in bundle_findings(view.bundle, children) if finding.level is Level.FATAL]
    yield result(TRUST, "trust anchors can be told apart", OURS, Severity.ERROR, listed("", mixed))


def _last(event: Object) -> datetime | None:
    """When it was last seen: `lastTimestamp`, or of the newer API the series, or its `eventTime`."""
    series = event.get("series") or {}
    for text in (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime")):
        if text:
            return _time(text)
    return _time(event["metadata"].get("creationTimestamp"))


def _time(text: object) -> datetime | None:
    return datetime.fromisoformat(str(text)) if text else None


def _text(span: timedelta) -> str:
    seconds = round(span.total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
