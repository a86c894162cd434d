"""Opening a rotation: under every cluster's Lease, with its record, for the run whose rotation it is."""

from __future__ import annotations

import contextlib
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from capstan.audit import audited_step
from capstan.cluster.lease import DURATION, LeaseLock
from capstan.cluster.record import RecordStore, RotationRecord
from capstan.config import System, require_rotation_id
from capstan.errors import GateRefused, InvalidInput, LockHeld, StillRunning
from capstan.evidence import signer_from_vault
from capstan.pki.bundle import Bundle
from capstan.progress import watcher
from capstan.rotation import expired, hooks
from capstan.rotation.accounts import EVIDENCE_HEAD, begun, moved, open_account
from capstan.rotation.claims import Claimant, Unclaimed, describe, given_up_on_failure, require_unclaimed
from capstan.rotation.material import tags_of
from capstan.rotation.naming import rotate_command
from capstan.rotation.session import OLD_ROOTS, Rotation
from capstan.systems.base import KeepsTags, observe_domain
from capstan.systems.rights import require_rights
from capstan.vaults.opening import open_vault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from capstan.cluster.client import Cluster
    from capstan.cluster.record import Claim, Kind
    from capstan.config import TrustDomain
    from capstan.pki.inspect import Certificate
    from capstan.systems.base import TrustSystem
    from capstan.trust.observation import Observation

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def open_rotation(
    domain: TrustDomain,
    rotation: str | None = None,
    *,
    claimant: Claimant | None = None,
    take_over: bool = False,
    kind: Kind | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Rotation]:
    """Take the domain's locks and go on with its rotation, or begin one.

    Args:
        rotation: Id of the rotation. An unfinished one is always gone on with; without an id a new one is named after
            today (UTC), so that calling twice in a day cannot rotate twice by accident; after today and its kind, if it
            is not one of the roots.
        claimant: The run this is called in, if it can leave its process without ending.
        take_over: Go on with a rotation that another, unfinished run has claimed.
        kind: What is to be rotated; None for whatever there is, and for a new one the roots.

    Raises:
        Denied: A right that it needs is missing in a cluster; names each, before anything is written.
        LockHeld: Another run holds a cluster's Lease, or has claimed the rotation.
        InvalidInput: Another rotation is unfinished, the clusters' records disagree, or the id cannot be one.
    """
    from capstan.systems.opening import open_systems

    if rotation:
        require_rotation_id(rotation)
    clusters, systems = open_systems(domain)
    with contextlib.ExitStack() as held:
        for cluster in clusters.values():
            held.callback(cluster.close)
        owner = claimant or Unclaimed()
        for cluster in clusters.values():
            _require_rights(domain, cluster, kind)
        locks = {
            name: held.enter_context(locked(cluster, domain.name, owner, now)) for name, cluster in clusters.items()
        }
        stores = {name: RecordStore(cluster, domain.name, lease=locks[name]) for name, cluster in clusters.items()}
        with audited_step("begin"):
            record, resumed = begin_record(
                domain, rotation, systems, stores, now, owner, take_over=take_over, kind=kind
            )
            if record.kind == "webhooks":
                systems = hooks.of_record(domain, clusters, record)
        for system in systems.values():
            if isinstance(system, KeepsTags):
                system.tag(tags_of(domain.name, record.rotation_id))
        vault = open_vault(domain.vault_url())
        notes = moved(domain, record)  # the file first, then the note of it: killed in between, the file is found
        evidence = open_account(
            domain, record.model_copy(update={"notes": notes or record.notes}), signer_from_vault(vault), now
        )
        noted = begun(notes or record.notes, evidence.head)
        for store in stores.values() if noted != record.notes else ():
            store.update(lambda record: record.model_copy(update={"notes": {**record.notes, **noted}}))
        session = Rotation(
            domain,
            record.rotation_id,
            systems,
            stores,
            vault,
            evidence,
            resumed=resumed,
            requests=lambda: sum(cluster.requests for cluster in clusters.values()),
            now=now,
            sleep=sleep,
            kind=record.kind,
            issuers_before=record.issuers_before,
            turn=record.turn,
        )
        session.note(
            "rotation-resumed" if resumed else "rotation-begun",
            {
                "domain": domain.name,
                "system": domain.system.value,
                **({} if record.kind == "anchor" else {"kind": record.kind}),
                "clusters": {name: cluster.host for name, cluster in clusters.items()},
                "old_roots": sorted(record.old),
                "holders": {name: lock.identity for name, lock in locks.items()},
                "recorded_head": record.notes.get(EVIDENCE_HEAD, ""),
            },
        )
        with given_up_on_failure(owner, session.remember, now):
            yield session


def _require_rights(domain: TrustDomain, cluster: Cluster, kind: Kind | None) -> None:
    """Before the lock is taken: what would be refused half-way is refused now, all of it at once."""
    record = RecordStore(cluster, domain.name).load() if kind is None else None
    which = kind or (record.kind if record else "anchor")
    require_rights(cluster, domain.system, domain.control_plane_namespace, domain.name, which)


_held_locks: set[LeaseLock] = set()


# How long a run that goes on with what it claimed waits for the Lease of its own dead process: it must run out, and be
# seen not to change.
_OWN_LEASE = 3 * DURATION


@contextlib.contextmanager
def locked(cluster: Cluster, domain: str, owner: Claimant, now: Callable[[], datetime]) -> Iterator[LeaseLock]:
    lock = LeaseLock(cluster, domain)
    record = RecordStore(cluster, domain).load()
    claim = record.claim if record and record.finished is None else None
    own = owner.claim(now())
    try:
        lock.acquire(wait=_OWN_LEASE if claim and own and claim.run == own.run else 0.0)
    except LockHeld as error:
        if claim and own and claim.run == own.run:
            raise StillRunning(
                error.what, where=error.where, observed=error.observed, expected=error.expected,
                next_command="nothing: that process goes on",
            ) from error  # fmt: skip
        if claim is not None:
            error.observed += f"; by {describe(claim)}"
        raise
    _held_locks.add(lock)
    try:
        yield lock
    finally:
        _held_locks.discard(lock)
        lock.release()


def release_held_locks() -> None:
    """Give back every Lease this process holds: for a process about to leave without unwinding."""
    for lock in tuple(_held_locks):
        lock.release()


def begin_record(
    domain: TrustDomain,
    wanted: str | None,
    systems: Mapping[str, TrustSystem],
    stores: Mapping[str, RecordStore],
    now: Callable[[], datetime],
    owner: Claimant,
    *,
    take_over: bool,
    kind: Kind | None,
) -> tuple[RotationRecord, bool]:
    """The rotation's record, the same in every cluster and claimed; (record, whether it was there before)."""
    records = {name: record for name, store in stores.items() if (record := store.load()) is not None}
    unfinished = {name: record for name, record in records.items() if record.finished is None}
    if kind == "expired" and any(record.kind != "expired" for record in unfinished.values()):
        _supersede(domain, systems, stores, unfinished, now, owner, take_over=take_over)
        return begin_record(domain, wanted, systems, stores, now, owner, take_over=take_over, kind=kind)
    ids = {record.rotation_id for record in unfinished.values()}
    if len(ids) > 1 or (wanted and ids and ids != {wanted}):
        first = min(unfinished.values(), key=lambda record: record.rotation_id)
        raise InvalidInput(
            "another rotation of this trust domain is unfinished",
            where=", ".join(stores[name].where for name in unfinished),
            observed=", ".join(sorted(ids)),
            expected=f"none, or {wanted or 'one and the same'}",
            next_command=f"finish it first: {rotate_command(domain.system, first.kind)} --domain {domain.name} "
            f"--rotation {first.rotation_id}",
        )
    for name, record in unfinished.items():
        before = require_unclaimed(record, owner, now(), where=stores[name].where, take_over=take_over)
        if before is not None:
            _log.warning("taking over %s from %s", stores[name].where, describe(before))
            watcher().note(f"taking over from {describe(before)}")
    claim = owner.claim(now())
    # One durable run is one rotation: killed after the rotation had finished and started again, it only ends.
    own = {record.rotation_id for record in records.values() if claim and _same_run(record.claim, claim)}
    today = now().strftime("%Y-%m-%d") + ("" if kind in (None, "anchor") else f"-{kind}")
    name = next(iter(ids), None) or wanted or next(iter(own), None) or today
    same = [record for record in records.values() if record.rotation_id == name]
    if same and kind is not None and same[0].kind != kind:
        raise of_another_kind(same[0], kind, ", ".join(store.where for store in stores.values()))
    if len(same) == len(stores):
        present = same[0]
        if present.finished is None and not _same_run(present.claim, claim):
            for store in stores.values():
                store.update(lambda record: record.model_copy(update={"claim": claim}))
        return present, True
    template = same[0] if same else new_record(domain, name, systems, stores, now, kind or "anchor")
    template = template.model_copy(update={"claim": claim})
    begun = [store.begin(template) for store in stores.values()]
    return begun[0], bool(same)


def _supersede(
    domain: TrustDomain,
    systems: Mapping[str, TrustSystem],
    stores: Mapping[str, RecordStore],
    unfinished: Mapping[str, RotationRecord],
    now: Callable[[], datetime],
    owner: Claimant,
    *,
    take_over: bool,
) -> None:
    """Close ordinary rotations that can go neither on nor back, because something expired before they ended.

    Their gates wait for handshakes that cannot succeed. What they minted stays in the vault, and a root of theirs that
    is trusted and lives is used.

    Raises:
        GateRefused: Nobody is down: they can go on. LockHeld: Another run has claimed one.
    """
    for name, record in unfinished.items():
        require_unclaimed(record, owner, now(), where=stores[name].where, take_over=take_over)
    observation = observe_domain(tuple(systems.values()), now=now)
    certificates = {f: c for system in systems.values() for f, c in system.certificates().items()}
    expired.require_expired(domain, systems, observation, certificates, now())
    if not expired.look(observation, certificates, now()).down:
        first = next(iter(unfinished.values()))
        raise GateRefused(
            "nobody is down, so the rotation under way goes on and removes what has ended",
            where=f"trust domain {domain.name}", observed=f"rotation {first.rotation_id}, which is unfinished",
            expected="a rotation that something expired under",
            next_command=f"{rotate_command(domain.system, first.kind)} --rotation {first.rotation_id}",
        )  # fmt: skip
    at = now()
    for name, record in unfinished.items():
        if record.kind != "expired":
            watcher().note(f"rotation {record.rotation_id} is given up: {expired.SUPERSEDED}")
            stores[name].update(
                lambda found: found.model_copy(update={"finished": at, "outcome": expired.SUPERSEDED, "claim": None})
            )


def require_alive(roots: Iterable[Certificate], domain: TrustDomain, now: datetime) -> None:
    """Refuse to re-date a root that has ended: every gate of a re-date needs handshakes that succeed, and none does.

    Raises:
        GateRefused: A root has ended.
    """
    ended = [root for root in roots if root.not_after <= now]
    namespace = domain.control_plane_namespace
    if ended:
        raise GateRefused(
            "the root has ended, so there is nothing left that a re-date could keep going",
            where=f"trust domain {domain.name}",
            observed="; ".join(f"{r.subject} {r.fingerprint[:16]} ended on {r.not_after:%F %T}Z" for r in ended),
            expected="a root that has not ended: from then on no handshake succeeds, whichever proxies are asked",
            next_command=f"back up secret {namespace}/istio-ca-secret, put another CA in its place (kubectl -n "
            f"{namespace} create secret generic cacerts ...), then restart istiod and, after it, every workload",
        )  # fmt: skip


def of_another_kind(record: RotationRecord, kind: Kind, where: str) -> InvalidInput:
    """Whoever asks for a rotation of one kind does not mean one of another kind that is there already."""
    said = {
        "anchor": "the roots",
        "issuer": "the issuers alone",
        "re-date": "the root's period of validity",
        "webhooks": "webhook certificates",
        "expired": "what had expired",
    }
    return InvalidInput(
        "this rotation is of another kind", where=where,
        observed=f"rotation {record.rotation_id} of {said[record.kind]}"
        + ("" if record.finished else ", which is unfinished"),
        expected=f"a rotation of {said[kind]}",
        next_command="name another one with --rotation" if record.finished else "capstan status; finish that one first",
    )  # fmt: skip


def _same_run(one: Claim | None, other: Claim | None) -> bool:
    return (one and one.run) == (other and other.run)


def new_record(
    domain: TrustDomain,
    name: str,
    systems: Mapping[str, TrustSystem],
    stores: Mapping[str, RecordStore],
    now: Callable[[], datetime],
    kind: Kind,
    *,
    seen: Observation | None = None,
) -> RotationRecord:
    """The record that a rotation begins with, from the domain as it is; nothing is written.

    Args:
        seen: The domain as it is; None has it read. Webhooks are always read.

    Raises:
        GateRefused: A rotation of this kind cannot begin here.
        CapstanError: A cluster cannot be read.
    """
    if kind == "webhooks":
        return hooks.new_record(domain, name, {each: store.cluster for each, store in stores.items()}, now)
    observation = seen or observe_domain(tuple(systems.values()), now=now)
    certificates: dict[str, Certificate] = {}
    for system in systems.values():
        certificates.update(system.certificates())
    old = sorted({root for cluster in observation.clusters for root in cluster.bundle})
    missing = [cluster.name for cluster in observation.clusters if not cluster.bundle]
    if missing:
        raise GateRefused(
            "no trust roots can be read",
            where=f"cluster {', '.join(missing)}",
            observed="an empty or missing bundle",
            expected="the mesh's present trust anchors",
            next_command="capstan check",
        )
    if kind == "expired":
        expired.require_expired(domain, systems, observation, certificates, now())
    elif domain.system is System.LINKERD:
        expired.require_nothing_expired(domain, observation, certificates, now())
    if kind == "re-date":
        require_alive((certificates[root] for root in old), domain, now())
    unread = [cluster.name for cluster in observation.clusters if cluster.issuer is None]
    if unread and kind != "anchor":
        raise GateRefused(
            "the present issuer cannot be read",
            where=f"cluster {', '.join(unread)}",
            observed="no readable issuer",
            expected="the issuer that the control plane signs with",
            next_command="capstan check",
        )
    return RotationRecord(
        rotation_id=name,
        domain=domain.name,
        system=domain.system.value,
        kind=kind,
        issuers_before={c.name: c.issuer.fingerprint for c in observation.clusters if c.issuer is not None},
        started=now(),
        old=frozenset(old),
        notes={OLD_ROOTS: Bundle.of(*(certificates[root] for root in old)).pem()},
    )
