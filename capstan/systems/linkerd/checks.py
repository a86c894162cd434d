"""What `capstan check` says about a Linkerd: its own identity checks, judged on what is live.

Descriptions, hints and levels of the linkerd-identity checks are those of `linkerd check` (edge-26.8.3), so that people
find the same words. Judgement differs where Linkerd's is known to mislead: sets of fingerprints instead of text, the
proxies' own roots and leaves instead of pod specs, control-plane pods included, ended pods left out.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import CONFIG_MAPS
from capstan.errors import CapstanError
from capstan.pki.bundle import Reading, lint
from capstan.pki.rules import Level, bundle_findings, issuer_findings, root_findings
from capstan.pki.verify import verify_issuer
from capstan.systems.base import CheckResult, Severity, Status
from capstan.systems.linkerd.issuer import read_issuer
from capstan.systems.linkerd.layout import TRUST_ROOTS, TRUST_ROOTS_KEY, short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from capstan.cluster.client import Cluster
    from capstan.pki.inspect import Certificate
    from capstan.systems.linkerd.observe import View

HINTS: Final = "https://linkerd.io/2/checks/#"
OURS: Final = "https://linkerd.io/2/tasks/manually-rotating-control-plane-tls-credentials/"
SOON: Final = timedelta(days=60)
IDENTITY: Final = "linkerd-identity"
DATA_PLANE: Final = "linkerd-identity-data-plane"
TRUST: Final = "capstan-trust"


def checks(cluster: Cluster, view: View, *, now: datetime) -> tuple[CheckResult, ...]:
    """All checks of one cluster, in Linkerd's order. None aborts the ones after it."""
    return (*_anchors(view, now), *_issuer(cluster, view, now), *_live(view, now), *_declared(cluster, view))


def _anchors(view: View, now: datetime) -> Iterable[CheckResult]:
    roots = tuple(view.bundle)
    yield _each(
        IDENTITY, "trust anchors are using supported crypto algorithm",
        "l5d-identity-trustAnchors-use-supported-crypto", Severity.FATAL, roots,
        lambda root: _unsupported(root_findings(root, now)),
    )  # fmt: skip
    yield _each(
        IDENTITY, "trust anchors are within their validity period", "l5d-identity-trustAnchors-are-time-valid",
        Severity.FATAL, roots, lambda root: _validity(root, now),
    )  # fmt: skip
    yield _each(
        IDENTITY, "trust anchors are valid for at least 60 days", "l5d-identity-trustAnchors-not-expiring-soon",
        Severity.WARNING, roots, lambda root: _expiring(root, now),
    )  # fmt: skip


def _issuer(cluster: Cluster, view: View, now: datetime) -> Iterable[CheckResult]:
    problem = ""
    try:
        read_issuer(cluster, view.layout.namespace)
    except CapstanError as error:
        problem = str(error)
    yield _result(
        IDENTITY, "certificate config is valid", "l5d-identity-cert-config-valid", Severity.FATAL, problem
    )  # fmt: skip
    if view.issuer is None:
        return
    issuer = (view.issuer,)
    yield _each(
        IDENTITY, "issuer cert is using supported crypto algorithm", "l5d-identity-issuer-cert-uses-supported-crypto",
        Severity.FATAL, issuer, lambda cert: _unsupported(issuer_findings(cert, now)),
    )  # fmt: skip
    yield _each(
        IDENTITY, "issuer cert is within its validity period", "l5d-identity-issuer-cert-is-time-valid",
        Severity.FATAL, issuer, lambda cert: _validity(cert, now),
    )  # fmt: skip
    yield _each(
        IDENTITY, "issuer cert is valid for at least 60 days", "l5d-identity-issuer-cert-not-expiring-soon",
        Severity.WARNING, issuer, lambda cert: _expiring(cert, now),
    )  # fmt: skip
    try:
        verify_issuer(view.issuer, view.bundle, now)
        problem = ""
    except CapstanError as error:
        problem = f"{error.what}: {error.observed}"
    yield _result(
        IDENTITY, "issuer cert is issued by the trust anchor", "l5d-identity-issuer-cert-issued-by-trust-anchor",
        Severity.ERROR, problem,
    )  # fmt: skip


def _live(view: View, now: datetime) -> Iterable[CheckResult]:
    peers = [proxy.peer for proxy in view.proxies]
    bundle = view.bundle.fingerprints
    stale = [
        f"{peer.name} holds {short(peer.trusts)}" for peer in peers if peer.trusts is not None and peer.trusts != bundle
    ]
    yield _result(
        DATA_PLANE, "data plane proxies certificate match CA", "l5d-identity-data-plane-proxies-certs-match-ca",
        Severity.WARNING, _listed("Some pods do not have the current trust bundle and must be restarted:", stale),
    )  # fmt: skip
    unreadable = [f"{peer.name}: {peer.unreadable}" for peer in peers if peer.unreadable]
    yield _result(
        TRUST, "every running proxy says its roots and shows its leaf", OURS, Severity.ERROR,
        _listed("Some proxies could not be read:", unreadable),
    )  # fmt: skip
    expired = [
        f"{peer.name}: expired {peer.leaf.not_after:%F %T}Z"
        for peer in peers
        if peer.leaf and peer.leaf.not_after < now
    ]
    yield _result(
        TRUST, "no proxy presents an expired leaf", OURS, Severity.FATAL,
        _listed("An expired leaf cannot be renewed; only a restart heals:", expired),
    )  # fmt: skip
    believers: dict[frozenset[str], list[str]] = {}
    for peer in peers:
        if peer.trusts is not None:
            believers.setdefault(peer.trusts, []).append(peer.name)
    strangers = []
    for peer in peers:
        if peer.leaf is None:
            continue
        against = [name for trusts, names in believers.items() if not trusts & peer.leaf.anchors for name in names]
        if against:
            more = f" and {len(against) - 3} more" if len(against) > 3 else ""
            strangers.append(f"{peer.name} is not trusted by {', '.join(against[:3])}{more}")
    yield _result(
        TRUST, "every proxy trusts every other proxy's leaf", OURS, Severity.FATAL,
        _listed("New connections between these fail now:", strangers),
    )  # fmt: skip
    lagging = [
        f"{peer.name}: leaf of issuer {(peer.leaf.issuer or 'unknown')[:8]}"
        for peer in peers
        if peer.leaf and view.issuer is not None and peer.leaf.issuer != view.issuer.fingerprint
    ]
    yield _result(
        TRUST, "every leaf was signed by the configured issuer", OURS, Severity.WARNING,
        _listed("Normal for up to a leaf's lifetime after a switch:", lagging),
    )  # fmt: skip


def _declared(cluster: Cluster, view: View) -> Iterable[CheckResult]:
    bundle = view.bundle.fingerprints
    drift = [f"{place} declares {short(found)}" for place, found in view.observation.declared if found != bundle]
    yield _result(
        TRUST, "all places that declare the trust anchors agree", OURS, Severity.WARNING,
        _listed(f"{TRUST_ROOTS} holds {short(bundle)}, but the next upgrade would start from:", drift),
    )  # fmt: skip
    item = cluster.get(CONFIG_MAPS, TRUST_ROOTS, view.layout.namespace)
    text = str((item.get("data") or {}).get(TRUST_ROOTS_KEY, ""))
    unclean = [str(finding) for finding in lint(text) if finding.reading is not Reading.OK]
    yield _result(
        TRUST, "the trust bundle is text that every reader understands", OURS, Severity.FATAL,
        _listed("identity would crash at its next start, or drop a part:", unclean),
    )  # fmt: skip
    children = (view.issuer,) if view.issuer is not None else ()
    mixed = [str(finding) for finding in bundle_findings(view.bundle, children) if finding.level is Level.FATAL]
    yield _result(
        TRUST, "trust anchors can be told apart", OURS, Severity.ERROR, _listed("", mixed)
    )  # fmt: skip


def _each(
    category: str, description: str, anchor: str, level: Severity, certificates: Iterable[Certificate],
    judge: Callable[[Certificate], str],
) -> CheckResult:  # fmt: skip
    problems = [
        f"{certificate.common_name} {certificate.fingerprint[:16]}: {problem}"
        for certificate in certificates
        if (problem := judge(certificate))
    ]
    return _result(category, description, anchor, level, _listed("", problems))


def _unsupported(findings: Iterable[object]) -> str:
    return "; ".join(str(getattr(found, "observed", found)) for found in findings if "supported crypto" in str(found))


def _validity(certificate: Certificate, now: datetime) -> str:
    if certificate.not_before > now:
        return f"not valid before {certificate.not_before:%F %T}Z"
    return f"expired on {certificate.not_after:%F %T}Z" if certificate.not_after < now else ""


def _expiring(certificate: Certificate, now: datetime) -> str:
    return f"will expire on {certificate.not_after:%F %T}Z" if certificate.not_after < now + SOON else ""


def _listed(head: str, lines: list[str]) -> str:
    if not lines:
        return ""
    shown = [f"* {line}" for line in lines[:20]]
    if len(lines) > 20:
        shown.append(f"* and {len(lines) - 20} more")
    return "\n".join([head, *shown] if head else shown)


def _result(category: str, description: str, anchor: str, level: Severity, problem: str) -> CheckResult:
    hint = anchor if anchor.startswith("https://") else HINTS + anchor
    failed = Status.WARNING if level is Severity.WARNING else Status.ERROR
    return CheckResult(category, description, hint, level, failed if problem else Status.OK, problem)
