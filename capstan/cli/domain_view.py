"""What `plan` and `status` both need: the record and a fresh observation of a domain, read without any lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from capstan.cli.output import stdout
from capstan.cluster.record import RecordStore, RotationRecord
from capstan.pki.bundle import Bundle
from capstan.rotation import hooks
from capstan.rotation.session import OLD_ROOTS, plan_policy
from capstan.rotation.turning import aim_of
from capstan.systems.base import observe_domain
from capstan.systems.opening import open_systems
from capstan.trust.aim import Aim, RootAim
from capstan.trust.hooks import HookAim
from capstan.trust.plan import Plan
from capstan.trust.safety import Unsafe, Verdict

if TYPE_CHECKING:
    from capstan.config import TrustDomain
    from capstan.pki.inspect import Certificate
    from capstan.trust.observation import Observation


@dataclass(frozen=True, slots=True)
class DomainView:
    """A trust domain as it is now.

    Attributes:
        record: The rotation under way, or the last one; None if there never was one.
        plan: The steps from here.
        certificates: Every root and issuer met, by fingerprint.
        aim: What the rotation under way is after, or what a next one would be.
        remarks: What else to know before, for a person.
    """

    domain: TrustDomain
    record: RotationRecord | None
    observation: Observation
    plan: Plan
    certificates: dict[str, Certificate]
    aim: Aim
    remarks: tuple[str, ...] = ()


_SHOWN = 10


def whose(record: RotationRecord, now: datetime) -> list[str]:
    """Whose rotation it is, which approval is waited for, and until when a run waits without a process: a line each."""
    lines = []
    if record.claim is not None:
        claim = record.claim
        lines.append(f"it belongs to the Prefect run {claim.name!r}, {claim.url or claim.run}")
    answered = {given.request for given in record.approvals}
    for gate, asked in record.asked.items():
        if asked.id not in answered and now < asked.until:
            answer = f": capstan approve {record.claim.run}" if record.claim else ""
            lines.append(f"{gate} waits for an approval until {asked.until:%Y-%m-%d %H:%M} UTC{answer}")
    for wait, until in record.deadlines.items():
        lines.append(f"it waits at the latest until {until:%Y-%m-%d %H:%M:%S} UTC ({wait})")
    return lines


def direction(record: RotationRecord) -> str:
    """Which way a rotation goes, for a person; empty for one that was never turned."""
    if record.turn == 1:
        return ""
    return f"turn {record.turn}: " + ("back to the old roots" if record.direction == "back" else "forward again")


def print_verdict(verdict: Verdict) -> None:
    """Whether the domain is safe as it is; where it is not, the first reasons, a line each."""
    console = stdout()
    if not isinstance(verdict, Unsafe):
        console.print(str(verdict))
        return
    reasons = [str(pair) for pair in verdict.pairs]
    reasons += [f"{name} cannot be read: {why}" for name, why in verdict.unreadable]
    reasons += [f"{name} presents a leaf {when}" for name, when in verdict.expired]
    console.print(f"not safe, for {len(reasons)} reason(s):")
    for reason in reasons[:_SHOWN]:
        console.print(f"  {reason}")
    if len(reasons) > _SHOWN:
        console.print(f"  and {len(reasons) - _SHOWN} more (-o json shows all)")


@contextmanager
def viewed(domain: TrustDomain, *, webhooks: bool = False) -> Iterator[DomainView]:
    """Read record and clusters.

    A finished rotation is the past: the plan is then for a next one, away from the roots of today.

    Args:
        webhooks: A next one would be of Linkerd's webhook certificates. One under way is shown whatever it is of.

    Raises:
        CapstanError: A cluster cannot be read.
    """
    clusters, systems = open_systems(domain)
    try:
        records = [RecordStore(cluster, domain.name).load() for cluster in clusters.values()]
        record = next((r for r in records if r and r.finished is None), next((r for r in records if r), None))
        under_way = record if record is not None and record.finished is None else None
        if under_way is not None and under_way.direction == "back" and not under_way.new:
            under_way = None  # nothing was minted, so there is nothing left to do but to close the record
        known: list[Certificate] = []
        remarks: tuple[str, ...] = ()
        if under_way is not None and under_way.kind == "webhooks":
            systems = hooks.of_record(domain, clusters, under_way)
        elif under_way is None and webhooks:
            systems = found = hooks.present(domain, clusters)
            remarks = tuple(remark for hook in found.values() for remark in hooks.preview(hook))
        if under_way:
            known.extend(Bundle.parse(under_way.notes[OLD_ROOTS], "rotation record"))
        observation = observe_domain(tuple(systems.values()), known)
        certificates = {certificate.fingerprint: certificate for certificate in known}
        for system in systems.values():
            certificates.update(system.certificates())
        aim: Aim = RootAim(frozenset(r for c in observation.clusters for r in c.bundle), None)
        if under_way:
            aim = aim_of(under_way)
        elif webhooks:
            aim = HookAim({hook.name: hook.bundle for hook in observation.clusters}, {}, {})
        back = under_way is not None and under_way.direction == "back"
        turned = under_way is not None and under_way.turn > 1
        planned = aim.plan(observation, plan_policy(domain), back=back, turned=turned)
        yield DomainView(domain, record, observation, planned, certificates, aim, remarks)
    finally:
        for cluster in clusters.values():
            cluster.close()
