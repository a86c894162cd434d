"""What ends soon in a trust domain, and what its checks find: judged from one look at it. No I/O here.

Each level is a distance to the end of a certificate. For roots, issuers and approvers it is time; for leaves it is a
share of their own life: Linkerd's proxies renew theirs at 70 % of it, so one with a fifth left has missed its renewal.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from capstan.systems.base import Severity, Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from capstan.approvals.policy import ApproverPolicy
    from capstan.pki.inspect import Certificate
    from capstan.systems.base import CheckResult
    from capstan.trust.observation import ClusterObservation, Leaf, Observation


class Level(StrEnum):
    """How urgent a finding is, mildest first."""

    OK = "ok"
    NOTICE = "notice"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """Comparable: the more urgent, the larger."""
        return list(Level).index(self)


class WarnBefore(BaseModel):
    """From when on the end of a certificate is a warning, and from when on it is critical."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root_warning: timedelta = Field(default=timedelta(days=90), description="Before a trust anchor ends")
    root_critical: timedelta = Field(default=timedelta(days=30), description="Before a trust anchor ends")
    issuer_warning: timedelta = Field(default=timedelta(days=60), description="Before an issuer ends")
    issuer_critical: timedelta = Field(default=timedelta(days=14), description="Before an issuer ends")
    approver_warning: timedelta = Field(default=timedelta(days=30), description="Before an approver's certificate ends")
    leaf_warning_share: float = Field(default=0.2, ge=0, le=1, description="Share of a leaf's own life that is left")
    leaf_critical_share: float = Field(default=0.05, ge=0, le=1, description="Share of a leaf's own life that is left")


@dataclass(frozen=True, slots=True)
class Finding:
    """One certificate or check.

    Attributes:
        kind: `root`, `issuer`, `leaf`, `approver` or `check`.
        cluster: Where; empty for what belongs to the whole domain.
        name: Which, for a person.
        level: How urgent.
        ends: End of validity, aware UTC; None for checks.
        text: What was found, as one sentence without its end.
    """

    kind: str
    cluster: str
    name: str
    level: Level
    ends: datetime | None
    text: str


def findings(
    observation: Observation,
    certificates: Mapping[str, Certificate],
    checks: Mapping[str, Sequence[CheckResult]],
    approvers: ApproverPolicy,
    warn: WarnBefore,
    now: datetime,
) -> tuple[Finding, ...]:
    """Everything that has an end, and every check that did not pass; the most urgent first.

    Args:
        certificates: Every root and issuer met, by fingerprint.
        checks: What `capstan check` says, by cluster.
        now: Aware UTC.
    """
    found: list[Finding] = []
    for cluster in observation.clusters:
        found.extend(_roots(cluster, certificates, warn, now))
        found.extend(_issuer(cluster, certificates, warn, now))
        found.extend(_worst_leaf(cluster, warn, now))
    for name, results in checks.items():
        found.extend(_failed(name, results))
    for key in approvers.keys:
        if key.not_after is not None:
            level = _level(key.not_after, now, warn.approver_warning, timedelta(0))
            found.append(_ending("approver", "", key.name, level, key.not_after, now))
    return tuple(sorted(found, key=lambda item: -item.level.rank))


def worst(found: Sequence[Finding]) -> Level:
    """The most urgent level of all."""
    return max((item.level for item in found), key=lambda level: level.rank, default=Level.OK)


def _roots(
    cluster: ClusterObservation, certificates: Mapping[str, Certificate], warn: WarnBefore, now: datetime
) -> Iterator[Finding]:
    if not cluster.bundle:
        yield Finding("root", cluster.name, "trust anchors", Level.CRITICAL, None, "no trust anchor can be read")
    for fingerprint in sorted(cluster.bundle):
        root = certificates.get(fingerprint)
        if root is None:
            yield Finding("root", cluster.name, fingerprint[:8], Level.WARNING, None, "its certificate cannot be read")
            continue
        level = _level(root.not_after, now, warn.root_warning, warn.root_critical)
        yield _ending("root", cluster.name, _named(root), level, root.not_after, now)


def _issuer(
    cluster: ClusterObservation, certificates: Mapping[str, Certificate], warn: WarnBefore, now: datetime
) -> Iterator[Finding]:
    issuer = cluster.issuer
    if issuer is None:
        yield Finding("issuer", cluster.name, "issuer", Level.CRITICAL, None, "the configured issuer cannot be read")
        return
    certificate = certificates.get(issuer.fingerprint)
    level = _level(issuer.not_after, now, warn.issuer_warning, warn.issuer_critical)
    name = _named(certificate) if certificate else issuer.fingerprint[:8]
    yield _ending("issuer", cluster.name, name, level, issuer.not_after, now)


def _worst_leaf(cluster: ClusterObservation, warn: WarnBefore, now: datetime) -> Iterator[Finding]:
    leaves = [(peer.leaf, peer.name) for peer in cluster.peers if peer.leaf is not None]
    if not leaves:
        return
    leaf, peer = min(leaves, key=lambda pair: _share(pair[0], now))
    share = _share(leaf, now)
    level = Level.OK
    if share < warn.leaf_warning_share:
        level = Level.CRITICAL if share < warn.leaf_critical_share else Level.WARNING
    late = sum(_share(other, now) < warn.leaf_warning_share for other, _ in leaves)
    text = _left(leaf.not_after, now) + f", with {max(share, 0):.0%} of its life left"
    if level is not Level.OK:
        text += f"; {late} of {len(leaves)} leaves have missed their renewal"
    yield Finding("leaf", cluster.name, peer, level, leaf.not_after, text)


def _share(leaf: Leaf, now: datetime) -> float:
    return (leaf.not_after - now) / max(leaf.not_after - leaf.not_before, timedelta(seconds=1))


def _failed(cluster: str, results: Sequence[CheckResult]) -> Iterator[Finding]:
    for result in results:
        if result.status in (Status.OK, Status.SKIPPED):
            continue
        failed = result.status is Status.ERROR and result.level is not Severity.WARNING
        # A warning of a check (a leaf of the last issuer, drift) is normal while a rotation is under way.
        level = Level.CRITICAL if failed else Level.NOTICE
        first = result.message.splitlines()[0] if result.message else "it does not hold"
        yield Finding("check", cluster, result.description, level, None, first)


def _ending(kind: str, cluster: str, name: str, level: Level, ends: datetime, now: datetime) -> Finding:
    return Finding(kind, cluster, name, level, ends, _left(ends, now))


def _level(ends: datetime, now: datetime, warning: timedelta, critical: timedelta) -> Level:
    left = ends - now
    if left <= critical:
        return Level.CRITICAL
    return Level.WARNING if left <= warning else Level.OK


def _left(ends: datetime, now: datetime) -> str:
    left = ends - now
    when = f"{ends:%Y-%m-%d %H:%M} UTC"
    if left < timedelta(0):
        return f"ended {_span(-left)} ago, {when}"
    return f"ends in {_span(left)}, {when}"


def _span(span: timedelta) -> str:
    if span >= timedelta(days=2):
        return f"{span.days} days"
    if span >= timedelta(hours=2):
        return f"{span // timedelta(hours=1)} hours"
    return f"{max(0, round(span / timedelta(minutes=1)))} minutes"


def _named(certificate: Certificate) -> str:
    return f"{certificate.common_name or 'unnamed'} ({certificate.fingerprint[:8]})"
