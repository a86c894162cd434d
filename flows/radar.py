"""The radar: what ends soon in a trust domain, and whether its mesh is healthy. Read-only.

It takes no Lease and writes nothing into any cluster, so it runs beside a rotation and beside other radars.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from capstan.approvals.policy import approver_policy
from capstan.config import System, TrustDomain
from capstan.rotation.expiry import Finding, Level, WarnBefore, findings, worst
from capstan.systems.base import observe_domain
from capstan.systems.opening import open_systems
from flows.errors import prefect_errors
from flows.events import EventName, raise_event

# Which flow gives a trust domain its next root, and which one its next issuer alone.
_ROTATES = {System.LINKERD: "linkerd-trust-anchor", System.ISTIO: "istio-root", System.AKS_ISTIO: "aks-istio-root"}
_RENEWS = {
    System.LINKERD: "linkerd-issuer",
    System.ISTIO: "istio-intermediate",
    System.AKS_ISTIO: "aks-istio-intermediate",
}
# Which one replaces what has ended already.
_REPLACES = {System.LINKERD: "linkerd-expired"}
_SHOWN = 5  # findings named in a notification; the artifact has all


@flow(name="radar", flow_run_name="{domain.name}: expiry and health", retries=0, persist_result=False, log_prints=False)
def radar(domain: TrustDomain, warn_before: WarnBefore = WarnBefore()) -> Level:  # noqa: B008  # frozen
    """Look at what ends soon, and at the checks of `capstan check`; tell what is urgent.

    Args:
        domain: The trust domain.
        warn_before: From when on an end is a warning, and from when on it is critical.

    Returns:
        The most urgent level found.

    Raises:
        CapstanError: A cluster cannot be read.
    """
    now = datetime.now(UTC)
    found = look(domain, warn_before, now)
    log = get_run_logger()
    for item in found:
        say = log.info if item.level.rank < Level.WARNING.rank else log.warning
        say("%s: %s", item.level, _sentence(item))
    level = worst(found)
    with prefect_errors("publish what the radar found"):
        create_table_artifact(
            key=f"capstan-{domain.name}-radar",
            table=[_row(item) for item in found],
            description=f"Trust domain **{domain.name}**: what ends when, and which checks do not hold. "
            f"The most urgent level is **{level}**.",
        )
    if level.rank >= Level.WARNING.rank:
        raise_event(EventName.EXPIRY, domain, None, _told(domain, found, level, now))
    return level


def look(domain: TrustDomain, warn_before: WarnBefore, now: datetime) -> tuple[Finding, ...]:
    """Read all clusters of a domain once, and judge.

    Raises:
        CapstanError: A cluster cannot be read.
    """
    clusters, systems = open_systems(domain)
    try:
        observation = observe_domain(tuple(systems.values()))
        certificates = {
            fingerprint: certificate
            for system in systems.values()
            for fingerprint, certificate in system.certificates().items()
        }
        checks = {name: system.checks(now=now) for name, system in systems.items()}
    finally:
        for cluster in clusters.values():
            cluster.close()
    return findings(observation, certificates, checks, approver_policy(domain), warn_before, now)


def _told(domain: TrustDomain, found: Sequence[Finding], level: Level, now: datetime) -> dict[str, object]:
    urgent = [item for item in found if item.level.rank >= Level.WARNING.rank]
    sentences = [_sentence(item) for item in urgent]
    more = f"; and {len(urgent) - _SHOWN} more" if len(urgent) > _SHOWN else ""
    return {
        "message": f"{level}: {'; '.join(sentences[:_SHOWN])}{more}",
        "level": level.value,
        "findings": [{"level": item.level.value, "text": _sentence(item)} for item in urgent],
        "next_command": f"capstan check; when it is to be rotated: launch {cure(domain, urgent, now)}/{domain.name}",
    }


def cure(domain: TrustDomain, urgent: Sequence[Finding], now: datetime | None = None) -> str:
    """The flow that cures what is urgent: the issuer's own is enough where no root ends soon.

    Args:
        now: Aware UTC; what has ended by then is replaced by a flow of its own, where the system has one.
    """
    certified = [item.ends for item in urgent if item.kind in ("root", "issuer", "leaf") and item.ends is not None]
    if now is not None and domain.system in _REPLACES and any(end <= now for end in certified):
        return _REPLACES[domain.system]
    kinds = {item.kind for item in urgent}
    return (_RENEWS if "issuer" in kinds and "root" not in kinds else _ROTATES)[domain.system]


def _sentence(item: Finding) -> str:
    place = f" in {item.cluster}" if item.cluster else ""
    return f"{item.kind} {item.name}{place}: {item.text}"


def _row(item: Finding) -> dict[str, str]:
    return {
        "level": item.level.value,
        "what": item.kind,
        "cluster": item.cluster,
        "name": item.name,
        "ends": f"{item.ends:%Y-%m-%d %H:%M} UTC" if item.ends else "",
        "found": item.text,
    }
