"""One run of a rotation: its locks, records, vault, evidence, and the live view of all clusters of the domain.

Which phase the domain is in is asked of the certificates each time (`locate`), never remembered. The record only keeps
what cannot be observed: the rotation's id, what it minted, who approved what, and when it ended.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from capstan.audit import audited_phase, audited_step
from capstan.cluster.lease import DURATION, LeaseLock
from capstan.cluster.record import BUDGET, RecordStore, RotationRecord
from capstan.errors import CapstanError, GateRefused, InvalidInput, LockHeld, NotFound, StillRunning
from capstan.evidence import signer_from_vault
from capstan.pki.bundle import Bundle
from capstan.progress import watcher
from capstan.rotation.accounts import EVIDENCE_HEAD, open_account
from capstan.rotation.claims import Claimant, Unclaimed, describe, require_unclaimed
from capstan.rotation.looks import note_look
from capstan.systems.base import observe_domain
from capstan.trust.phase import Goal, Phase
from capstan.trust.plan import Plan, Policy, StepKind, plan
from capstan.vaults.opening import open_vault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from capstan.cluster.client import Cluster
    from capstan.cluster.record import Claim
    from capstan.config import TrustDomain
    from capstan.evidence import Evidence
    from capstan.pki.inspect import Certificate
    from capstan.rotation.material import Target
    from capstan.rotation.waiting import Look
    from capstan.systems.base import TrustSystem
    from capstan.trust.observation import Observation
    from capstan.vaults.base import Vault

OLD_ROOTS = "old-roots.pem"

Direction = Literal["forward", "back"]

_log = logging.getLogger(__name__)

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
        completed: Every live trust store holds exactly what was to stay, and a leaf of what was to go is refused.
        resumed: The rotation had been begun by an earlier run.
        roots_before: Fingerprints of the roots that are gone now; on a way back, the rotation's new root.
        roots_after: Fingerprints of the roots that every live peer trusts now.
        peers: Live peers at the end.
        old_root_refused: What the probe found; None if this run did not come to it.
        api_requests: Requests this run sent to all API servers.
        evidence: Path of the account.
        direction: `forward`, or `back` for a roll-back.
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
    direction: Direction = "forward"


class Rotation:
    """An open rotation. Get one with `open_rotation`; it is good only inside that block.

    Attributes:
        direction: Which way this run goes. On the way `back` the same steps are taken with old and new exchanged: `old`
            is the rotation's new root, and `stays` what there was before it.
        target: What `stays`, with the issuers to be had in the end; None until `mint` (or on the way back, `recall`).
        retired: On the way back, what the rotation had minted; None where nothing was.
    """

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
        self.direction: Direction = "forward"
        self.target: Target | None = None
        self.retired: Target | None = None
        self.old_root_refused: bool | None = None
        self._requests = requests
        self._phases: list[PhaseTime] = []
        self._last: Observation | None = None
        self._original: Bundle | None = None

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
    def original(self) -> Bundle:
        """The roots as found when the rotation began, whichever way it goes."""
        if self._original is None:
            self._original = Bundle.parse(self.record().notes[OLD_ROOTS], f"record of rotation {self.id}")
        return self._original

    @property
    def old(self) -> Bundle:
        """The roots to be turned away from."""
        if self.direction == "forward":
            return self.original
        return Bundle.of(self.retired.root) if self.retired else Bundle()

    @property
    def stays(self) -> Bundle:
        """The roots to be trusted in the end: the new one, or on the way back exactly those there were.

        Raises:
            InvalidInput: The new one was not minted yet (a step was called before `mint`).
        """
        return Bundle.of(self.new_root) if self.direction == "forward" else self.original

    @property
    def both(self) -> Bundle:
        """Old and new, in the same order whichever way the rotation goes.

        Raises:
            InvalidInput: As `stays`.
        """
        return self.original.union(self.stays).union(self.old)

    @property
    def new_root(self) -> Certificate:
        """The root of the issuers to be had in the end.

        Raises:
            InvalidInput: It was not minted yet (a step was called before `mint`).
        """
        return self.required_target().root

    @property
    def new(self) -> Goal:
        """Fingerprint of the root to stay, on the way back all of them; None while none is minted."""
        if self.direction == "back":
            return self.original.fingerprints
        return self.target.root.fingerprint if self.target else self.record().new or None

    @property
    def command(self) -> str:
        """What runs this again, for messages."""
        return f"capstan {'rotate' if self.direction == 'forward' else 'rollback'} --rotation {self.id}"

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
        yield from self.original
        for side in (self.target, self.retired):
            if side is not None:
                yield side.root
                yield from side.issuers.values()

    def observe(self) -> Observation:
        """Read all clusters now."""
        self._last = observe_domain(tuple(self.systems.values()), tuple(self.known()), now=self.now)
        note_look(self, self._last)
        return self._last

    @property
    def seen(self) -> Observation | None:
        """The last observation, however old, unless a step of ours has acted since; never a new one."""
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
        old, new, back = self.old.fingerprints, self.new, self.direction == "back"
        return plan(observation, old, new, plan_policy(self.domain), back=back)

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Time a phase and tell whoever watches."""
        watcher().phase(phase.value)
        began = time.monotonic()
        with audited_phase(phase.value):
            self.note("phase-entered", {"phase": phase.value, "direction": self.direction})
            yield
            self._phases.append(PhaseTime(phase.value, time.monotonic() - began))
            self.note("phase-left", {"phase": phase.value})
            head = self.evidence.head
            self.remember(
                lambda record: record.model_copy(
                    update={"notes": {**record.notes, EVIDENCE_HEAD: head}, "budget": BUDGET}
                )
            )

    def deadline(self, gate: str) -> datetime | None:
        """When the wait for a gate ends at the latest, as an earlier process of this run wrote it down."""
        record = self.record()
        return record.deadlines.get(_deadline_key(record, gate))

    def keep_deadline(self, look: Look) -> None:
        """Write down until when is waited, before this process is left."""
        self.remember(
            lambda record: record.model_copy(
                update={"deadlines": {**record.deadlines, _deadline_key(record, look.gate): look.until}}
            )
        )

    def drop_deadline(self, gate: str) -> None:
        """Forget when a wait was to end: it has ended."""
        self.remember(
            lambda record: record.model_copy(
                update={"deadlines": {k: v for k, v in record.deadlines.items() if k != _deadline_key(record, gate)}}
            )
        )

    def _completed(self, seen: Observation) -> bool:
        if self.direction == "forward":
            return self.plan(seen).phase is Phase.DONE and bool(self.old_root_refused)
        if self.retired is None:  # nothing was minted: there was nothing to take back
            return True
        # A way back that has ended is not taken again, and its account holds the proof.
        proven = bool(self.old_root_refused) or self.record().finished is not None
        return self.plan(seen).phase is Phase.DONE and proven

    def outcome(self) -> Outcome:
        """What this run came to, judged from the last observation."""
        last = self._last or self.observe()
        bundles = {root for cluster in last.clusters for root in cluster.bundle}
        return Outcome(
            rotation=self.id,
            direction=self.direction,
            completed=self._completed(last),
            resumed=self.resumed,
            phases=tuple(self._phases),
            roots_before=tuple(sorted(self.old.fingerprints)),
            roots_after=tuple(sorted(bundles)),
            peers=len(last.peers),
            old_root_refused=self.old_root_refused,
            api_requests=self.api_requests,
            evidence=str(self.evidence.path),
        )


def _deadline_key(record: RotationRecord, gate: str) -> str:
    return f"turn {record.turn}, gate {gate}"


def plan_policy(domain: TrustDomain) -> Policy:
    """The domain's policy as the planner knows it."""
    return Policy(approvals=frozenset(Phase(name) for name in domain.policy.approvals))


@contextlib.contextmanager
def open_rotation(
    domain: TrustDomain,
    rotation: str | None = None,
    *,
    claimant: Claimant | None = None,
    take_over: bool = False,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Rotation]:
    """Take the domain's locks and go on with its rotation, or begin one.

    Args:
        rotation: Id of the rotation. An unfinished one is always gone on with; without an id a new one is named after
            today (UTC), so that calling twice in a day cannot rotate twice by accident.
        claimant: The run this is called in, if it can leave its process without ending.
        take_over: Go on with a rotation that another, unfinished run has claimed.

    Raises:
        LockHeld: Another run holds a cluster's Lease, or has claimed the rotation.
        InvalidInput: Another rotation is unfinished, or the clusters' records disagree.
    """
    from capstan.systems.opening import open_systems

    clusters, systems = open_systems(domain)
    with contextlib.ExitStack() as held:
        for cluster in clusters.values():
            held.callback(cluster.close)
        owner = claimant or Unclaimed()
        locks = {
            name: held.enter_context(locked(cluster, domain.name, owner, now)) for name, cluster in clusters.items()
        }
        stores = {name: RecordStore(cluster, domain.name, lease=locks[name]) for name, cluster in clusters.items()}
        with audited_step("begin"):
            record, resumed = _begin(domain, rotation, systems, stores, now, owner, take_over=take_over)
        vault = open_vault(domain.vault_url())
        evidence = open_account(domain, record, signer_from_vault(vault), now)
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
        try:
            yield session
        except Exception:
            # This run has failed and will not come back by itself: whoever is launched next may go on at once.
            if owner.claim(now()) is not None:
                with contextlib.suppress(CapstanError):
                    session.remember(lambda record: record.model_copy(update={"claim": None}))
            raise


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


def _begin(
    domain: TrustDomain,
    wanted: str | None,
    systems: Mapping[str, TrustSystem],
    stores: Mapping[str, RecordStore],
    now: Callable[[], datetime],
    owner: Claimant,
    *,
    take_over: bool,
) -> tuple[RotationRecord, bool]:
    """The rotation's record, the same in every cluster and claimed; (record, whether it was there before)."""
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
    for name, record in unfinished.items():
        before = require_unclaimed(record, owner, now(), where=stores[name].where, take_over=take_over)
        if before is not None:
            _log.warning("taking over %s from %s", stores[name].where, describe(before))
            watcher().note(f"taking over from {describe(before)}")
    claim = owner.claim(now())
    # One durable run is one rotation: killed after the rotation had finished and started again, it only ends.
    own = {record.rotation_id for record in records.values() if claim and _same_run(record.claim, claim)}
    name = next(iter(ids), None) or wanted or next(iter(own), None) or now().strftime("%Y-%m-%d")
    same = [record for record in records.values() if record.rotation_id == name]
    if len(same) == len(stores):
        present = same[0]
        if present.finished is None and not _same_run(present.claim, claim):
            for store in stores.values():
                store.update(lambda record: record.model_copy(update={"claim": claim}))
        return present, True
    template = same[0] if same else _new_record(domain, name, systems, now)
    template = template.model_copy(update={"claim": claim})
    begun = [store.begin(template) for store in stores.values()]
    return begun[0], bool(same)


def _same_run(one: Claim | None, other: Claim | None) -> bool:
    return (one and one.run) == (other and other.run)


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
