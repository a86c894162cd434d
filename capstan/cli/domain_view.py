"""What `plan` and `status` both need: the record and a fresh observation of a domain, read without any lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from capstan.cli.output import stdout
from capstan.cluster.record import RecordStore, RotationRecord
from capstan.pki.bundle import Bundle
from capstan.rotation import hooks
from capstan.rotation.opening import new_record, of_another_kind
from capstan.rotation.preparing import no_key, root_with_key, signing_root_of
from capstan.rotation.redating import require_redatable
from capstan.rotation.session import OLD_ROOTS, plan_policy
from capstan.rotation.turning import aim_of
from capstan.systems.base import observe_domain
from capstan.systems.opening import open_systems
from capstan.trust.aim import Aim, RootAim
from capstan.trust.hooks import HookAim
from capstan.trust.plan import Plan
from capstan.trust.safety import Unsafe, Verdict
from capstan.vaults.opening import open_vault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstan.cluster.record import Kind
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
    reasons += verdict.signing_faults
    console.print(f"not safe, for {len(reasons)} reason{'' if len(reasons) == 1 else 's'}:")
    for reason in reasons[:_SHOWN]:
        line = Table.grid(padding=(0, 1, 0, 0))  # a second line stands under the first
        line.add_row(" -", reason)
        console.print(line)
    if len(reasons) > _SHOWN:
        console.print(f"  and {len(reasons) - _SHOWN} more (-o json shows all)")


@contextmanager
def viewed(domain: TrustDomain, kind: Kind | None = None, *, beginning: bool = False) -> Iterator[DomainView]:
    """Read record and clusters.

    A finished rotation is the past: the plan is then for a next one, from what there is today.

    Args:
        kind: What a rotation would be of; None for whatever is under way, and for a next one the roots.
        beginning: Refuse where a next rotation would be.

    Raises:
        InvalidInput: A rotation of another kind is under way; it would have to be finished first.
        GateRefused: A rotation of this kind cannot begin here.
        CapstanError: A cluster cannot be read.
    """
    clusters, systems = open_systems(domain)
    try:
        stores = {name: RecordStore(cluster, domain.name) for name, cluster in clusters.items()}
        records = [store.load() for store in stores.values()]
        record = next((r for r in records if r and r.finished is None), next((r for r in records if r), None))
        under_way = record if record is not None and record.finished is None else None
        # Where nothing was minted and it goes back, there is nothing left to do but to close the record; and what has
        # expired takes the place of whatever can go neither on nor back because of it.
        ends = under_way is not None and (
            (under_way.direction == "back" and not under_way.new) or (kind == "expired" != under_way.kind)
        )
        begun = None if ends else under_way
        if begun is not None and kind is not None and begun.kind != kind:
            raise of_another_kind(begun, kind, ", ".join(store.where for store in stores.values()))
        remarks: tuple[str, ...] = ()
        if begun is None and kind == "webhooks":
            systems = found = hooks.present(domain, clusters)
            remarks = tuple(remark for hook in found.values() for remark in hooks.preview(hook))
        elif begun is not None and begun.kind == "webhooks":
            systems = hooks.of_record(domain, clusters, begun)
        known = [*Bundle.parse(begun.notes[OLD_ROOTS], "rotation record")] if begun else []
        observation = observe_domain(tuple(systems.values()), known)
        if begun is None and beginning and kind != "webhooks":
            now, which = observation.taken_at, kind or "anchor"
            begun = new_record(domain, "next", systems, stores, lambda: now, which, seen=observation)
            known = [*Bundle.parse(begun.notes[OLD_ROOTS], "rotation record")]
        certificates = {certificate.fingerprint: certificate for certificate in known}
        for system in systems.values():
            certificates.update(system.certificates())
        if begun is not None:
            if begun.kind == "issuer" and not begun.issuers:
                remarks = _require_signer(domain, Bundle.of(*known), observation, certificates)
            if begun.kind == "re-date" and not begun.issuers:
                require_redatable(systems.values(), domain.policy.root_validity, observation.taken_at)
            aim = aim_of(begun)
        elif kind == "webhooks":
            aim = HookAim({hook.name: hook.bundle for hook in observation.clusters}, {}, {})
        else:
            aim = RootAim(frozenset(r for c in observation.clusters for r in c.bundle), None)
        back = begun is not None and begun.direction == "back"
        turned = begun is not None and begun.turn > 1
        planned = aim.plan(observation, plan_policy(domain), back=back, turned=turned)
        yield DomainView(domain, record, observation, planned, certificates, aim, remarks)
    finally:
        for cluster in clusters.values():
            cluster.close()


def _require_signer(
    domain: TrustDomain, roots: Bundle, seen: Observation, certificates: Mapping[str, Certificate]
) -> tuple[str, ...]:
    """Refuse an issuer that nobody can sign, as the rotation would in its first phase; where it is asked for, say so.

    A local vault that is not there yet is not made for the question: it holds no key.
    """
    issuers = {c.name: certificates[c.issuer.fingerprint] for c in seen.clusters if c.issuer is not None}
    root = signing_root_of(roots, issuers)
    url = domain.vault_url()
    if domain.policy.offline_root:
        return (f"the new issuers are signed by the offline root {root.common_name or root.subject} (capstan sign)",)
    if url.startswith("local:") and not Path(url.removeprefix("local:")).exists():
        raise no_key(root, url)
    root_with_key(open_vault(url), domain.name, roots, issuers)
    return ()
