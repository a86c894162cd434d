"""How the outcome of a check of Linkerd is put: its category, its hint, and what `linkerd check` would say instead.

Categories, descriptions, hint anchors and levels are those of `linkerd check` (edge-26.8.3, pkg/healthcheck, viz and
multicluster), so that people find the same words. What Linkerd has no check for is in the category `capstan-trust`.

A check's *level* is Linkerd's. Its *status* is ours: where the evidence says that nothing is broken, a check may pass,
or warn, although `linkerd check` would fail; then the message says so, and why.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from capstan.systems.base import CheckResult, Severity, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from capstan.pki.inspect import Certificate

HINTS: Final = "https://linkerd.io/2/checks/#"
OURS: Final = "https://linkerd.io/2/tasks/manually-rotating-control-plane-tls-credentials/"
WEBHOOKS_PAGE: Final = "https://linkerd.io/2/tasks/rotating_webhooks_certificates/"

PRE_SETUP: Final = "pre-kubernetes-setup"
EXISTENCE: Final = "linkerd-existence"
CONFIG_CATEGORY: Final = "linkerd-config"
IDENTITY: Final = "linkerd-identity"
WEBHOOKS: Final = "linkerd-webhooks-and-apisvc-tls"
IDENTITY_DATA_PLANE: Final = "linkerd-identity-data-plane"
CONTROL_PLANE_VERSION: Final = "control-plane-version"
CONTROL_PLANE_PROXY: Final = "linkerd-control-plane-proxy"
DATA_PLANE: Final = "linkerd-data-plane"
HIGH_AVAILABILITY: Final = "linkerd-ha-checks"
EXTENSIONS: Final = "linkerd-extension-checks"
VIZ: Final = "linkerd-viz"
MULTICLUSTER: Final = "linkerd-multicluster"
TRUST: Final = "capstan-trust"

SOON: Final = timedelta(days=60)
"""Linkerd's bound for "expires soon" (pkg/issuercerts)."""

SHOWN: Final = 20


def result(
    category: str,
    description: str,
    anchor: str,
    level: Severity,
    problem: str,
    *,
    note: str = "",
    harmless: bool = False,
) -> CheckResult:
    """One check: failed if there is a problem, else passed.

    Args:
        anchor: Of Linkerd's page of checks, or a whole URL.
        problem: What was observed that must not be; empty if all is well.
        note: Where our judgement and Linkerd's differ; added to the problem, or said beside a pass.
        harmless: The problem breaks nothing, whatever its level: it only warns.
    """
    hint = anchor if anchor.startswith("https://") else HINTS + anchor
    message = "\n".join(text for text in (problem, note) if text)
    if not problem:
        return CheckResult(category, description, hint, level, Status.OK, message)
    failed = Status.WARNING if harmless or level is Severity.WARNING else Status.ERROR
    return CheckResult(category, description, hint, level, failed, message)


def skipped(category: str, description: str, anchor: str, level: Severity, why: str) -> CheckResult:
    """A check that has nothing to judge here, and why."""
    hint = anchor if anchor.startswith("https://") else HINTS + anchor
    return CheckResult(category, description, hint, level, Status.SKIPPED, why)


def listed(head: str, lines: Sequence[str]) -> str:
    """A heading and its lines, the first twenty of them; empty if there is none."""
    if not lines:
        return ""
    shown = [f"* {line}" for line in lines[:SHOWN]]
    if len(lines) > SHOWN:
        shown.append(f"* and {len(lines) - SHOWN} more")
    return "\n".join([head, *shown] if head else shown)


def theirs(says: str, because: str) -> str:
    """The line that tells a reader of both tools why they differ."""
    return f"linkerd check would say: {says} ({because})"


def each(certificates: Iterable[Certificate], judge: Callable[[Certificate], str]) -> list[str]:
    """What is wrong with each of these, by name."""
    return [
        f"{certificate.common_name or certificate.subject} {certificate.fingerprint[:16]}: {problem}"
        for certificate in certificates
        if (problem := judge(certificate))
    ]


def validity(certificate: Certificate, now: datetime) -> str:
    """Why a certificate is not valid now; empty if it is."""
    if certificate.not_before > now:
        return f"not valid before {certificate.not_before:%F %T}Z"
    return f"expired on {certificate.not_after:%F %T}Z" if certificate.not_after < now else ""


def expiring(certificate: Certificate, now: datetime) -> str:
    """Whether it ends within 60 days; empty if not."""
    return f"will expire on {certificate.not_after:%F %T}Z" if certificate.not_after < now + SOON else ""


def renewed_in_time(certificate: Certificate, now: datetime) -> bool:
    """Whether a certificate that something renews has a third of its life left.

    cert-manager renews when a third remains, unless its `renewBefore` says earlier (cert-manager: Certificate,
    `spec.renewBefore`): one with less than that should have been renewed.
    """
    life = certificate.not_after - certificate.not_before
    return certificate.not_after - now > life / 3
