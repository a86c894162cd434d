"""One run of a rotation: its locks, records, vault, evidence, and the live view of all clusters of the domain.

Which phase the domain is in is asked of the certificates each time (`locate`), never remembered. The record only keeps
what cannot be observed: the rotation's id, what it minted, who approved what, and when it ended.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from capstan.audit import audited_phase, audited_step
from capstan.cluster.lease import LeaseLock
from capstan.cluster.record import RecordStore, RotationRecord
from capstan.errors import GateRefused, InvalidInput, NotFound
from capstan.evidence import Evidence, signer_from_vault
from capstan.pki.bundle import Bundle
from capstan.progress import watcher
from capstan.systems.base import observe_domain
from capstan.trust.phase import Phase
from capstan.trust.plan import Plan, Policy, StepKind, plan
from capstan.vaults.opening import open_vault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from capstan.cluster.client import Cluster
    from capstan.config import TrustDomain
    from capstan.pki.inspect import Certificate
    from capstan.rotation.material import Target
    from capstan.systems.base import TrustSystem
    from capstan.trust.observation import Observation
    from capstan.vaults.base import Vault

OLD_ROOTS = "old-roots.pem"
EVIDENCE_HEAD = "evidence-head"

# How long one look serves the questions asked right after it. Far below any leaf's renewal or a rollout.
_RECENT = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """How long this run spent in one phase, in seconds."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of a rotation came to.

    Attributes:
        completed: Every live trust store is exactly the new root, and a leaf of an old root is refused.
        resumed: The rotation had been begun by an earlier run.
        roots_before: Fingerprints of the roots that are gone now.
        roots_after: Fingerprints of the roots that every live peer trusts now.
        peers: Live peers at the end.
        old_root_refused: What the probe found; None if this run did not come to it.
        api_requests: Requests this run sent to all API servers.
        evidence: Path of the account.
    """

    rotation: str
    completed: bool
    resumed: bool
    phases: tuple[PhaseTime, ...]
    roots_before: tuple[str, ...]
    roots_after: tuple[str, ...]
    peers: int
    old_root_refused: bool | None
    api_requests: int
    evidence: str


class Rotation:
    """An open rotation. Get one with `open_rotation`; it is good only inside that block."""

    def __init__(
        self,
        domain: TrustDomain,
        rotation: str,
        systems: Mapping[str, TrustSystem],
        stores: Mapping[str, RecordStore],
        vault: Vault,
        evidence: Evidence,
        *,
        resumed: bool,
        requests: Callable[[], int],
        now: Callable[[], datetime],
        sleep: Callable[[float], None],
    ) -> None:
        self.domain = domain
        self.id = rotation
        self.systems = systems
        self.stores = stores
        self.vault = vault
        self.evidence = evidence
        self.resumed = resumed
        self.now = now
        self.sleep = sleep
        self.target: Target | None = None
        self.old_root_refused: bool | None = None
        self._requests = requests
        self._phases: list[PhaseTime] = []
        self._last: Observation | None = None

    @property
    def api_requests(self) -> int:
        """Requests sent to all API servers so far."""
        return self._requests()

    def record(self) -> RotationRecord:
        """The record, read again; of several clusters, the first one's (they are written alike)."""
        record = next(iter(self.stores.values())).load()
        if record is None or record.rotation_id != self.id:
            raise NotFound(
                "the record of this rotation is gone",
                where=next(iter(self.stores.values())).where,
                observed="nothing" if record is None else f"rotation {record.rotation_id}",
                expected=f"rotation {self.id}",
                next_command="capstan status",
            )
        return record

    def remember(self, change: Callable[[RotationRecord], RotationRecord]) -> None:
        """Change the record in every cluster."""
        for store in self.stores.values():
            store.update(change)

    def note(self, kind: str, body: Mapping[str, Any]) -> None:
        """Add to the account; a complete account (a run that only finds everything done) is left as it is."""
        if not self.evidence.finished:
            self.evidence.append(kind, body)

    @property
    def old(self) -> Bundle:
        """The roots to be turned away from, as found when the rotation began."""
        return Bundle.parse(self.record().notes[OLD_ROOTS], f"record of rotation {self.id}")

    @property
    def new_root(self) -> Certificate:
        """The new root.

        Raises:
            InvalidInput: It was not minted yet (a step was called before `mint`).
        """
        return self.required_target().root

    @property
    def new(self) -> str | None:
        """Fingerprint of the new root; None while none is minted."""
        return self.target.root.fingerprint if self.target else self.record().new or None

    def required_target(self) -> Target:
        """What was minted.

        Raises:
            InvalidInput: As `new_root`.
        """
        if self.target is None:
            raise InvalidInput("nothing is minted yet", where=f"rotation {self.id}", next_command="mint first")
        return self.target

    def known(self) -> Iterable[Certificate]:
        """Certificates to recognise wherever they are met."""
        yield from self.old
        if self.target is not None:
            yield self.target.root
            yield from self.target.issuers.values()

    def observe(self) -> Observation:
        """Read all clusters now."""
        self._last = observe_domain(tuple(self.systems.values()), tuple(self.known()), now=self.now)
        return self._last

    def recent(self) -> Observation:
        """The last observation, if it is seconds old and no step of ours has acted since; else a new one.

        Locating the phase, its gate and its approval ask one after the other: they may share one look.
        """
        last = self._last
        return last if last is not None and self.now() - last.taken_at < _RECENT else self.observe()

    def acted(self) -> None:
        """What was observed before is history: a step is about to change something."""
        self._last = None

    def locate(self) -> Phase:
        """The phase the domain is in, from what is observed now."""
        return self.plan(self.recent()).phase

    def pending(self, phase: Phase) -> bool:
        """Whether the plan from here has a step of this phase (its approval aside) still to do."""
        steps = self.plan(self.recent()).pending
        return any(step.phase is phase and step.kind is not StepKind.APPROVE for step in steps)

    def plan(self, observation: Observation) -> Plan:
        """The steps from here."""
        return plan(observation, self.old.fingerprints, self.new, plan_policy(self.domain))

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Time a phase and tell whoever watches."""
        watcher().phase(phase.value)
        began = time.monotonic()
        with audited_phase(phase.value):
            self.note("phase-entered", {"phase": phase.value})
            yield
            self._phases.append(PhaseTime(phase.value, time.monotonic() - began))
            self.note("phase-left", {"phase": phase.value})
            head = self.evidence.head
            self.remember(lambda record: record.model_copy(update={"notes": {**record.notes, EVIDENCE_HEAD: head}}))

    def outcome(self) -> Outcome:
        """What this run came to, judged from the last observation."""
        last = self._last or self.observe()
        bundles = {root for cluster in last.clusters for root in cluster.bundle}
        return Outcome(
            rotation=self.id,
            completed=self.plan(last).phase is Phase.DONE and bool(self.old_root_refused),
            resumed=self.resumed,
            phases=tuple(self._phases),
            roots_before=tuple(sorted(self.old.fingerprints)),
            roots_after=tuple(sorted(bundles)),
            peers=len(last.peers),
            old_root_refused=self.old_root_refused,
            api_requests=self.api_requests,
            evidence=str(self.evidence.path),
        )


def plan_policy(domain: TrustDomain) -> Policy:
    """The domain's policy as the planner knows it."""
    return Policy(approvals=frozenset(Phase(name) for name in domain.policy.approvals))


def evidence_path(domain: TrustDomain, rotation: str) -> Path:
    """Where the account of a rotation is kept."""
    return domain.home_path() / "evidence" / f"{domain.name}-{rotation}.jsonl"


@contextlib.contextmanager
def open_rotation(
    domain: TrustDomain,
    rotation: str | None = None,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Rotation]:
    """Take the domain's locks and go on with its rotation, or begin one.

    Args:
        rotation: Id of the rotation. An unfinished one is always gone on with; without an id a new one is named after
            today (UTC), so that calling twice in a day cannot rotate twice by accident.

    Raises:
        LockHeld: Another run holds a cluster's Lease.
        InvalidInput: Another rotation is unfinished, or the clusters' records disagree.
    """
    from capstan.systems.opening import open_systems

    clusters, systems = open_systems(domain)
    with contextlib.ExitStack() as held:
        for cluster in clusters.values():
            held.callback(cluster.close)
        locks = {name: held.enter_context(_locked(cluster, domain.name)) for name, cluster in clusters.items()}
        stores = {name: RecordStore(cluster, domain.name, lease=locks[name]) for name, cluster in clusters.items()}
        with audited_step("begin"):
            record, resumed = _begin(domain, rotation, systems, stores, now)
        vault = open_vault(domain.vault_url())
        evidence = Evidence.open(
            evidence_path(domain, record.rotation_id), signer_from_vault(vault), record.rotation_id, clock=now
        )
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
        )
        session.note(
            "rotation-resumed" if resumed else "rotation-begun",
            {
                "domain": domain.name,
                "system": domain.system.value,
                "clusters": {name: cluster.host for name, cluster in clusters.items()},
                "old_roots": sorted(record.old),
                "holders": {name: lock.identity for name, lock in locks.items()},
                "recorded_head": record.notes.get(EVIDENCE_HEAD, ""),
            },
        )
        yield session


_held_locks: set[LeaseLock] = set()


@contextlib.contextmanager
def _locked(cluster: Cluster, domain: str) -> Iterator[LeaseLock]:
    with LeaseLock(cluster, domain) as lock:
        _held_locks.add(lock)
        try:
            yield lock
        finally:
            _held_locks.discard(lock)


def release_held_locks() -> None:
    """Give back every Lease this process holds: for a process about to leave without unwinding."""
    for lock in tuple(_held_locks):
        lock.release()


def _begin(
    domain: TrustDomain,
    wanted: str | None,
    systems: Mapping[str, TrustSystem],
    stores: Mapping[str, RecordStore],
    now: Callable[[], datetime],
) -> tuple[RotationRecord, bool]:
    """The rotation's record, the same in every cluster; (record, whether it was there before)."""
    records = {name: record for name, store in stores.items() if (record := store.load()) is not None}
    unfinished = {name: record for name, record in records.items() if record.finished is None}
    ids = {record.rotation_id for record in unfinished.values()}
    if len(ids) > 1 or (wanted and ids and ids != {wanted}):
        raise InvalidInput(
            "another rotation of this trust domain is unfinished",
            where=", ".join(stores[name].where for name in unfinished),
            observed=", ".join(sorted(ids)),
            expected=f"none, or {wanted or 'one and the same'}",
            next_command=f"finish it first: capstan rotate --domain {domain.name} --rotation {sorted(ids)[0]}",
        )
    name = next(iter(ids), None) or wanted or now().strftime("%Y-%m-%d")
    same = [record for record in records.values() if record.rotation_id == name]
    if len(same) == len(stores):
        return same[0], True
    template = same[0] if same else _new_record(domain, name, systems, now)
    begun = [store.begin(template) for store in stores.values()]
    return begun[0], bool(same)


def _new_record(
    domain: TrustDomain, name: str, systems: Mapping[str, TrustSystem], now: Callable[[], datetime]
) -> RotationRecord:
    observation = observe_domain(tuple(systems.values()), now=now)
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
    return RotationRecord(
        rotation_id=name,
        domain=domain.name,
        system=domain.system.value,
        started=now(),
        old=frozenset(old),
        notes={OLD_ROOTS: Bundle.of(*(certificates[root] for root in old)).pem()},
    )
