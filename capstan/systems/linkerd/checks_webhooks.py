"""Category `linkerd-webhooks-and-apisvc-tls`, and tap's checks of `linkerd-viz`: what the API server calls over TLS.

Linkerd's check looks at the Secret alone, and at no certificate of tap-injector at all. A process that has not read a
renewed Secret (it happens: linkerd2 issue 7519) fails every call while that check passes, so ours verifies what each
process serves as well, as the API server will: against `caBundle`, for `<service>.<namespace>.svc`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.errors import CapstanError
from capstan.pki.verify import Purpose, verify_leaf
from capstan.systems.base import CheckResult, Severity
from capstan.systems.linkerd.checks_hooks import VIZ_HOOKS
from capstan.systems.linkerd.checks_report import (
    TRUST,
    VIZ,
    WEBHOOKS,
    WEBHOOKS_PAGE,
    each,
    expiring,
    listed,
    renewed_in_time,
    result,
    skipped,
    theirs,
    validity,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from capstan.pki.bundle import Bundle
    from capstan.pki.inspect import Certificate
    from capstan.systems.linkerd.checks_evidence import Evidence
    from capstan.systems.linkerd.checks_hooks import HookReading

_VIZ = {hook.name for hook in VIZ_HOOKS}


def webhook_checks(evidence: Evidence) -> Iterable[CheckResult]:
    """Of the control plane's three webhooks."""
    for reading in evidence.hooks:
        if reading.hook.name not in _VIZ:
            name = reading.hook.name
            yield _valid(
                reading, evidence.now, WEBHOOKS, f"{name} webhook has valid cert", f"l5d-{name}-webhook-cert-valid"
            )
            yield _ends(
                reading, evidence.now, WEBHOOKS, f"{name} cert is valid for at least 60 days",
                f"l5d-{name}-webhook-cert-not-expiring-soon",
            )  # fmt: skip


def tap_checks(evidence: Evidence) -> Iterable[CheckResult]:
    """Of viz: tap under Linkerd's names; tap-injector, which no check of Linkerd looks at, under ours."""
    now = evidence.now
    for reading in evidence.hooks:
        if reading.hook.name == "tap":
            yield _valid(reading, now, VIZ, "tap API server has valid cert", "l5d-tap-cert-valid")
            yield _ends(
                reading, now, VIZ, "tap API server cert is valid for at least 60 days", "l5d-tap-cert-not-expiring-soon"
            )
            yield result(
                VIZ, "tap API service is running", "l5d-tap-api", Severity.WARNING, reading.available
            )  # fmt: skip
        elif reading.hook.name == "tap-injector":
            yield _valid(reading, now, TRUST, "tap-injector webhook has valid cert", WEBHOOKS_PAGE)
            yield _ends(reading, now, TRUST, "tap-injector cert is valid for at least 60 days", WEBHOOKS_PAGE)


def served_check(evidence: Evidence) -> CheckResult:
    """Whether every process has read its Secret: one that has not serves on until its old certificate ends."""
    behind = [
        f"{reading.hook.name} of pod {served.pod} serves {served.chain[0].fingerprint[:16]}, its secret holds"
        f" {reading.chain[0].fingerprint[:16]}"
        for reading in evidence.hooks
        for served in reading.served
        if served.chain and reading.chain and served.chain[0] != reading.chain[0]
    ]
    return result(
        TRUST, "every webhook serves the certificate of its Secret", WEBHOOKS_PAGE, Severity.WARNING,
        listed("Normal for about a minute after a change; else restart these:", behind),
    )  # fmt: skip


def _valid(reading: HookReading, now: datetime, category: str, description: str, anchor: str) -> CheckResult:
    about = category, description, anchor, Severity.FATAL
    if not reading.installed:
        return skipped(*about, f"no {reading.hook.name} is installed")
    problems = list(reading.problems)
    anchors = reading.anchors
    if reading.chain and anchors.certificates:
        problem = serving_problem(reading.chain, reading.dns_name, anchors, now)
        if problem:
            problems.append(f"the Secret's certificate: {problem}")
    ours_only = []
    for served in reading.served:
        if served.problem:
            problems.append(f"pod {served.pod}: {served.problem}")
        elif anchors.certificates and (problem := serving_problem(served.chain, reading.dns_name, anchors, now)):
            ours_only.append(f"pod {served.pod} serves another: {problem}")
    if not reading.served:
        problems.append(f"no ready pod serves {reading.dns_name}")
    note = ""
    expired = each(anchors, lambda certificate: validity(certificate, now))
    if ours_only and not problems and not expired:
        note = theirs("√", "it looks at the Secret, not at what the process serves")
    elif expired and not problems and not ours_only:
        note = theirs(
            f"× anchors not within their validity period: {expired[0]}",
            "the API server needs one certificate of caBundle, not all",
        )
    return result(*about, listed("", problems + ours_only), note=note)


def _ends(reading: HookReading, now: datetime, category: str, description: str, anchor: str) -> CheckResult:
    """Of the certificate with what it brings along, in the Secret and as served; of `caBundle` only what it needs."""
    about = category, description, anchor, Severity.WARNING
    if not reading.installed:
        return skipped(*about, f"no {reading.hook.name} is installed")
    if not reading.chain:
        return skipped(*about, "its certificate cannot be read")
    met = dict.fromkeys([*reading.chain, *(certificate for served in reading.served for certificate in served.chain)])
    found = each(met, lambda certificate: expiring(certificate, now))
    if found and reading.renewed:
        if all(renewed_in_time(certificate, now) for certificate in met if expiring(certificate, now)):
            because = "cert-manager renews it, and more than a third of its life is left"
            return result(*about, "", note=theirs(f"‼ {found[0]}", because))
        found.append(f"cert-manager should have renewed it: kubectl describe certificate -n {reading.namespace}")
    return result(*about, listed("", found))


def serving_problem(chain: Sequence[Certificate], name: str, anchors: Bundle, now: datetime) -> str:
    """Why the API server would not accept this server; empty if it would.

    Go accepts a server certificate that is itself among the roots, CA or not (crypto/x509 Verify): the chart's
    self-signed certificates are used so.
    """
    leaf = chain[0]
    if problem := validity(leaf, now):
        return problem
    if leaf in anchors:
        return "" if _is_for(leaf, name) else f"it is for {', '.join(leaf.dns_names) or 'no DNS name'}, not {name}"
    valid = [root for root in anchors if root.valid_at(now)]
    if not valid:
        return "no certificate of caBundle is valid now"
    try:
        verify_leaf(leaf, chain[1:], valid, now, name, purpose=Purpose.SERVER)
    except CapstanError as error:
        return f"{error.what}: {error.observed}"
    return ""


def _is_for(leaf: Certificate, name: str) -> bool:
    """RFC 6125: the name itself, or a wildcard for its first label."""
    wildcard = "*." + name.partition(".")[2]
    return any(found.lower() in (name, wildcard) for found in leaf.dns_names)
