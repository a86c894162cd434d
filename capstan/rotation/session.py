"""One run of a rotation: its records, vault, evidence, and the live view of all clusters of the domain.

Which phase the domain is in is asked of the certificates each time (`locate`), never remembered. The record only keeps
what cannot be observed: the rotation's id, what it minted, who approved what, and when it ended.
"""

from __future__ import annotations

import contextlib
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from capstan.audit import audited_phase
from capstan.cluster.record import BUDGET
from capstan.config import System
from capstan.errors import InvalidInput, NotFound
from capstan.pki.bundle import Bundle
from capstan.progress import watcher
from capstan.rotation.accounts import EVIDENCE_HEAD
from capstan.rotation.hook_notes import hook_aim
from capstan.rotation.looks import note_look
from capstan.rotation.naming import rotate_command
from capstan.rotation.outcome import Direction, Outage, Outcome, PhaseTime
from capstan.systems.base import observe_domain
from capstan.trust.aim import Aim, IssuerAim, RootAim
from capstan.trust.expired import Scope
from capstan.trust.phase import Goal, Phase
from capstan.trust.redating import RedateAim
from capstan.trust.replacing import ExpiredAim
from capstan.trust.steps import LeafRenewal, Policy, StepKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from capstan.cluster.record import Kind, RecordStore, RotationRecord
    from capstan.config import TrustDomain
    from capstan.evidence import Evidence
    from capstan.pki.inspect import Certificate
    from capstan.rotation.material import Target
    from capstan.rotation.waiting import Look
    from capstan.systems.base import TrustSystem
    from capstan.trust.observation import Observation
    from capstan.trust.plan import Plan
    from capstan.vaults.base import Vault

# Names of notes in the rotation record.
OLD_ROOTS = "old-roots.pem"
NEW_ROOT = "new-root.pem"  # where the vault has no entry of it: it is kept offline, or was there before

# How long one look serves the questions asked right after it. Far below any leaf's renewal or a rollout.
_RECENT = timedelta(seconds=5)


class Rotation:
    """An open rotation. Get one with `open_rotation`; it is good only inside that block.

    Attributes:
        direction: Which way this run goes. On the way `back` the same steps are taken with old and new exchanged: `old`
            is the rotation's new root, and `stays` what there was before it.
        target: What `stays`, with the issuers to be had in the end; None until `mint` (or on the way back, `recall`).
        retired: On the way back, what the rotation had minted; None where nothing was.
        kind: What is rotated. Where it is not the roots, none of them goes: `old` is empty, `stays` what there was.
        issuers_before: Cluster -> fingerprint of the issuer it had when the rotation began.
        turn: As in the record.
        scope: Of a replacement of what has expired: what is made anew; None until `replacing.diagnose`.
        roots_after: Of such a one: the roots to be trusted in the end; None until `replacing.settle`.
        outages: Of such a one: how long each workload was without an identity.
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
        kind: Kind = "anchor",
        issuers_before: Mapping[str, str] | None = None,
        turn: int = 1,
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
        self.kind = kind
        self.issuers_before = dict(issuers_before or {})
        self.turn = turn
        self.direction: Direction = "forward"
        self.target: Target | None = None
        self.retired: Target | None = None
        self.old_root_refused: bool | None = None
        self.scope: Scope | None = None
        self.roots_after: Bundle | None = None
        self.outages: tuple[Outage, ...] = ()
        self._requests = requests
        self._phases: list[PhaseTime] = []
        self._last: Observation | None = None
        self._original: Bundle | None = None
        self._begun: RotationRecord | None = None

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
        if self.kind != "anchor":
            return Bundle()
        if self.direction == "forward":
            return self.original
        return Bundle.of(self.retired.root) if self.retired else Bundle()

    @property
    def stays(self) -> Bundle:
        """The roots to be trusted in the end: the new one, or on the way back exactly those there were.

        Raises:
            InvalidInput: The new one was not minted yet (a step was called before `mint`).
        """
        if self.kind == "expired" and self.direction == "forward":
            return self.roots_after or self.original
        anew = self.kind == "anchor" and self.direction == "forward"
        return Bundle.of(self.new_root) if anew else self.original

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
    def aim(self) -> Aim:
        """What the rotation is after in its present direction: how its phases, gates and plan are judged."""
        if self.kind == "anchor":
            return RootAim(self.old.fingerprints, self.new)
        minted = self.target if self.direction == "forward" else self.retired
        if self.kind == "webhooks":
            self._begun = self._begun or self.record()
            made = {name: each.fingerprint for name, each in minted.issuers.items()} if minted else None
            # What a record says of its beginning never changes; what was minted it may have learned since.
            return hook_aim(self._begun if made else self.record(), back=self.direction == "back", new=made)
        new = {c: i.fingerprint for c, i in minted.issuers.items()} if minted else dict(self.record().issuers)
        if self.kind == "expired":
            roots = self.roots_after.fingerprints if self.roots_after else frozenset[str]()
            return ExpiredAim(self.issuers_before, new, self.original.fingerprints, roots)
        if self.kind == "re-date":
            before = self.issuers_before
            return RedateAim(before, new) if self.direction == "forward" else RedateAim(new or before, before)
        anchors = self.target.anchors() if self.target else {}
        if self.direction == "forward":
            return IssuerAim(self.issuers_before, new, anchors)
        return IssuerAim(new or self.issuers_before, self.issuers_before, anchors)

    @property
    def turned(self) -> bool:
        """Whether the rotation was ever turned round: then what is seen may be what there was before."""
        return self.turn > 1

    def restarts_workloads(self, phase: Phase) -> bool:
        """Whether workloads are started anew in a phase, as the plan has it.

        They are where only that gives them other roots, and where the policy does not wait for leaves to renew.
        """
        by_restart = phase is not Phase.ISSUE and self.domain.system is System.LINKERD
        return by_restart or self.domain.policy.leaf_renewal == "restart"

    @property
    def signers_admit_as_they_began(self) -> bool:
        """Whether what signs goes on letting in by the roots it had at its start, whatever roots it hands out.

        Istiod does (pilot/pkg/bootstrap/server.go builds ClientCAs once). No trust store shows it: only a start after
        the last write ends it. A rotation that is over leaves istiods alone.
        """
        return self.domain.system is not System.LINKERD and self.record().finished is None

    @property
    def command(self) -> str:
        """What runs this again, for messages."""
        forward = rotate_command(self.domain.system, self.kind)
        return f"{forward if self.direction == 'forward' else 'capstan rollback'} --rotation {self.id}"

    @property
    def takes_new_root(self) -> bool:
        """Whether new issuers are to be under a root that nobody trusts yet."""
        return self.kind == "anchor" or (self.kind == "expired" and self.scope is Scope.ANCHOR)

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

    def known_new(self) -> Iterable[Certificate]:
        """Of a rotation of webhooks: the certificates that are to be served in the end."""
        return self.target.issuers.values() if self.target is not None else ()

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
        """What was observed before is history: a step is about to change something, under every cluster's lock.

        Raises:
            LockHeld: A lock was taken over. Unreachable: One could not be renewed in time.
        """
        for store in self.stores.values():
            store.require_lock()
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
        back = self.direction == "back"
        return self.aim.plan(observation, plan_policy(self.domain), back=back, turned=self.turned)

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

        def kept(record: RotationRecord) -> RotationRecord:
            others = _without(record, look.gate)
            return record.model_copy(update={"deadlines": {**others, _deadline_key(record, look.wait): look.until}})

        self.remember(kept)

    def keep_until(self, gate: str, patience: timedelta) -> datetime:
        """Until when is waited for a person: as written down when the wait began, unless that has passed."""
        kept = self.deadline(gate)
        if kept is not None and kept > self.now():
            return kept
        until = self.now() + patience

        def with_it(record: RotationRecord) -> RotationRecord:
            return record.model_copy(update={"deadlines": {**record.deadlines, _deadline_key(record, gate): until}})

        self.remember(with_it)
        return until

    def drop_deadlines(self, gate: str) -> None:
        """Forget when the wait for a gate was to end: it has ended."""
        self.remember(lambda record: record.model_copy(update={"deadlines": _without(record, gate)}))

    def _completed(self, seen: Observation) -> bool:
        if self.kind != "anchor" and (self.direction == "forward" or self.retired is not None):
            return self.plan(seen).phase is Phase.DONE
        if self.direction == "forward":
            return self.plan(seen).phase is Phase.DONE and bool(self.old_root_refused)
        if self.retired is None:  # nothing was minted: there was nothing to take back
            return True
        # A way back that has ended is not taken again, and its account holds the proof.
        proven = bool(self.old_root_refused) or self.record().finished is not None
        return self.plan(seen).phase is Phase.DONE and proven

    def _before(self) -> Bundle:
        """The roots that this direction began with; a re-date has others at either end, of the same keys."""
        if self.kind == "re-date" and self.retired is not None:
            return Bundle.of(*dict.fromkeys(self.retired.issuers.values()))
        return self.old if self.kind == "anchor" else self.original

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
            roots_before=tuple(sorted(self._before().fingerprints)),
            roots_after=tuple(sorted(bundles)),
            peers=len(last.peers),
            old_root_refused=self.old_root_refused,
            api_requests=self.api_requests,
            evidence=str(self.evidence.path),
            kind=self.kind,
            issuers_after=tuple(sorted({c.issuer.fingerprint for c in last.clusters if c.issuer is not None})),
            outages=self.outages,
        )


def _deadline_key(record: RotationRecord, gate: str) -> str:
    return f"turn {record.turn}, gate {gate}"


def _without(record: RotationRecord, gate: str) -> dict[str, datetime]:
    key = _deadline_key(record, gate)
    return {k: v for k, v in record.deadlines.items() if k != key and not k.startswith(f"{key}, ")}


def plan_policy(domain: TrustDomain) -> Policy:
    """The domain's policy as the planner knows it."""
    return Policy(
        approvals=frozenset(Phase(name) for name in domain.policy.approvals),
        renewal=LeafRenewal(domain.policy.leaf_renewal),
    )
