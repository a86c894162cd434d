"""How a check's outcome is put: the categories, the pages that explain them, and one way to list what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.systems.base import CheckResult, Severity, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from capstan.pki.inspect import Certificate
    from capstan.systems.istio.places import Place
    from capstan.trust.observation import Fingerprint

CA: Final = "istio-ca"
CONTROL_PLANE: Final = "istio-control-plane"
DISTRIBUTION: Final = "istio-trust-distribution"
DATA_PLANE: Final = "istio-data-plane"
TROUBLES: Final = "istio-root-transition"

PLUG_IN_PAGE: Final = "https://istio.io/latest/docs/tasks/security/cert-management/plugin-ca-cert/"
ISTIOD_PAGE: Final = "https://istio.io/latest/docs/reference/commands/pilot-discovery/"
AGENT_PAGE: Final = "https://istio.io/latest/docs/reference/commands/pilot-agent/"
SECURITY_PAGE: Final = "https://istio.io/latest/docs/concepts/security/"
INJECTION_PAGE: Final = "https://istio.io/latest/docs/ops/common-problems/injection/"
SKEW_PAGE: Final = "https://istio.io/latest/docs/releases/supported-releases/"
CANARY_PAGE: Final = "https://istio.io/latest/docs/setup/upgrade/canary/"
PROXY_PAGE: Final = "https://istio.io/latest/docs/ops/diagnostic-tools/proxy-cmd/"
AMBIENT_PAGE: Final = "https://istio.io/latest/docs/ambient/usage/troubleshoot-ztunnel/"
TRANSITION_PAGE: Final = "https://istio.io/v1.4/docs/ops/configuration/security/root-transition/"
ISSUE: Final = "https://github.com/istio/istio/issues/"

SHOWN: Final = 20


def result(
    category: str,
    description: str,
    hint: str,
    level: Severity,
    problem: str,
    note: str = "",
    *,
    lagging: frozenset[Fingerprint] | None = None,
) -> CheckResult:
    """One check: failed if there is a problem, else passed with a note; `lagging` as in `CheckResult`."""
    if not problem:
        return CheckResult(category, description, hint, level, Status.OK, note)
    failed = Status.WARNING if level is Severity.WARNING else Status.ERROR
    return CheckResult(category, description, hint, level, failed, problem, lagging)


def skipped(category: str, description: str, hint: str, level: Severity, why: str) -> CheckResult:
    """A check that says nothing about this mesh, and why."""
    return CheckResult(category, description, hint, level, Status.SKIPPED, why)


def listed(head: str, lines: Sequence[str]) -> str:
    """A heading and its lines, the first twenty of them; empty if there is none."""
    if not lines:
        return ""
    shown = [f"* {line}" for line in lines[:SHOWN]]
    if len(lines) > SHOWN:
        shown.append(f"* and {len(lines) - SHOWN} more")
    return "\n".join([head, *shown] if head else shown)


def held_instead(places: Iterable[Place]) -> frozenset[Fingerprint] | None:
    """What places hold that hold other roots than the CA; None if one of them cannot be read, or holds none."""
    found: set[Fingerprint] = set()
    for place in places:
        if place.problem or not place.fingerprints:
            return None
        found |= place.fingerprints
    return frozenset(found)


def each(certificates: Iterable[Certificate], judge: Callable[[Certificate], str]) -> list[str]:
    """What is wrong with each of these, by name."""
    return [
        f"{certificate.common_name or certificate.subject} {certificate.fingerprint[:16]}: {problem}"
        for certificate in certificates
        if (problem := judge(certificate))
    ]
