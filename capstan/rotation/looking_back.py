"""Whether there is a way back, and what it would do: read without any lock, changing nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from capstan.cluster.record import RecordStore
from capstan.errors import NotFound
from capstan.pki.bundle import Bundle
from capstan.rotation import hooks, material
from capstan.rotation.session import OLD_ROOTS, plan_policy
from capstan.rotation.turning import ROLLED_BACK, aim_of, before, minted_elsewhere, require_unused
from capstan.systems.base import observe_domain
from capstan.vaults.opening import open_vault

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from capstan.cluster.record import RotationRecord
    from capstan.config import TrustDomain
    from capstan.pki.inspect import Certificate
    from capstan.systems.base import TrustSystem
    from capstan.trust.observation import Observation
    from capstan.trust.plan import Plan
    from capstan.vaults.base import Vault


@dataclass(frozen=True, slots=True)
class WayBack:
    """The way back of a rotation, from the domain as it is.

    Attributes:
        record: The rotation it is of: the one under way, else the last one.
        plan: Its steps, from the new root to what there was before; None where nothing was minted, or where the
            rotation was rolled back to its end.
        observation: What the plan was made from; None without one.
        certificates: Every root and issuer met, by fingerprint.
    """

    record: RotationRecord
    plan: Plan | None
    observation: Observation | None
    certificates: dict[str, Certificate]


def look_back(domain: TrustDomain, rotation: str | None = None) -> WayBack:
    """Look for the way back.

    Args:
        rotation: The id the rotation must have; None takes whichever there is.

    Raises:
        NotFound: There never was a rotation, or it has another id.
        GateRefused: The way back is closed; says by what, and what remains.
        CapstanError: Vault or clusters cannot be read.
    """
    from capstan.systems.opening import open_systems

    clusters, systems = open_systems(domain)
    try:
        stores = [RecordStore(cluster, domain.name) for cluster in clusters.values()]
        record = _last(stores, rotation)
        if not record.new or record.outcome == ROLLED_BACK:
            return WayBack(record, None, None, {})
        if record.kind == "expired":
            if record.direction != "back":
                require_unused(record, observe_domain(tuple(systems.values())), plan_policy(domain))
            return WayBack(record, None, None, {})
        vault = open_vault(domain.vault_url())
        if record.kind == "webhooks":
            return _of_webhooks(domain, record, vault, hooks.of_record(domain, clusters, record))
        retired = material.minted_before(
            vault, domain=domain.name, rotation=record.rotation_id, clusters=systems, root=minted_elsewhere(record)
        )
        original = Bundle.parse(record.notes[OLD_ROOTS], f"record of rotation {record.rotation_id}")
        known = [*original, retired.root, *retired.issuers.values()]
        seen = observe_domain(tuple(systems.values()), known)
        certificates = {certificate.fingerprint: certificate for certificate in known}
        for system in systems.values():
            certificates.update(system.certificates())
        before(
            vault, seen, certificates,
            domain=domain.name, rotation=record.rotation_id, original=original, now=datetime.now(UTC),
            minted=retired.issuers,
        )  # fmt: skip
        planned = aim_of(record, back=True).plan(seen, plan_policy(domain), back=True)
        return WayBack(record, planned, seen, certificates)
    finally:
        for cluster in clusters.values():
            cluster.close()


def _of_webhooks(
    domain: TrustDomain, record: RotationRecord, vault: Vault, systems: Mapping[str, TrustSystem]
) -> WayBack:
    retired = hooks.minted_before(record.rotation_id, domain.name, vault, systems)
    known = [*Bundle.parse(record.notes[OLD_ROOTS], "rotation record"), *retired.issuers.values()]
    seen = observe_domain(tuple(systems.values()), known)
    hooks.found_before(vault, seen, record, systems, datetime.now(UTC))
    planned = aim_of(record, back=True).plan(seen, plan_policy(domain), back=True)
    return WayBack(record, planned, seen, {each.fingerprint: each for each in known})


def _last(stores: Iterable[RecordStore], rotation: str | None) -> RotationRecord:
    records = {store.where: record for store in stores if (record := store.load()) is not None}
    last = max(records.values(), key=lambda r: (r.finished is None, r.started, r.turn), default=None)
    if last is None or (rotation is not None and last.rotation_id != rotation):
        raise NotFound(
            "there is no such rotation to roll back",
            where=", ".join(records) or "every cluster of the trust domain",
            observed=f"rotation {last.rotation_id}" if last else "no rotation was ever begun here",
            expected=f"rotation {rotation}" if rotation else "a rotation",
            next_command="capstan status",
        )
    return last
