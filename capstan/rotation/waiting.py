"""The gates: observe until the evidence is there, with a bound, and a list of who is being waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capstan.audit import audited_step
from capstan.config import System
from capstan.errors import GateRefused, GateTimedOut
from capstan.progress import watcher
from capstan.rotation.expired import advice
from capstan.rotation.mending import require_signing
from capstan.systems.glancing import everybody_read, glance
from capstan.trust.phase import Phase

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from capstan.rotation.session import Rotation
    from capstan.trust.gates import GateResult
    from capstan.trust.observation import Observation

# Seconds between two looks: in proportion to what is left of the wait, within these.
MIN_PAUSE = 0.5
MAX_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class Look:
    """What watching a gate came to.

    Attributes:
        gate: Name of what may begin when it opens.
        open: Whether it did.
        done: Peers that have arrived.
        total: Live peers.
        waiting_for: Who has not arrived, with the reason.
        until: When the wait ends at the latest, aware UTC.
        observed: Whether that is the end of a leaf that is waited for, which the next look sees as well.
        assumed: Whether it is the end of a leaf that cannot be seen, which no later look puts off.
    """

    gate: str
    open: bool
    done: int
    total: int
    waiting_for: tuple[str, ...]
    until: datetime
    observed: bool = False
    assumed: bool = False

    @property
    def wait(self) -> str:
        """Names the wait in the record. A bound that is observed anew each time is not taken for one that is not."""
        if self.assumed:
            return _unread(self.gate)
        return f"{self.gate}, for leaves" if self.observed else self.gate


def watch_gate(rotation: Rotation, phase: Phase, patience: timedelta | None = None) -> Look:
    """Observe until the gate before `phase` is open, or patience ends.

    The wait is bounded: by the last observed expiry of the leaves waited for, where there is one, else by the domain's
    restart deadline, counted from when the wait began (the record remembers it where a run leaves its process).
    Evidence ends it early.

    Args:
        patience: Longest time to watch in this process; None means until the gate opens or the bound passes.

    Raises:
        GateRefused: The evidence contradicts going on.
        GateTimedOut: The bound passed; names who did not arrive.
    """
    with audited_step(f"gate/{phase.value}"):
        watcher().step(f"gate before {phase.value}")
        aim = rotation.aim
        return _watch(
            rotation, phase.value, phase, patience,
            lambda seen: aim.may_enter(phase, seen, rotation.now(), old_leaf_refused=rotation.old_root_refused),
        )  # fmt: skip


def watch_convergence(rotation: Rotation, patience: timedelta | None = None) -> Look:
    """Observe until every live trust store is exactly the new root: all that the last gate asks but the probe.

    Args, Raises:
        As `watch_gate`.
    """
    with audited_step("gate/probe"):
        watcher().step("gate before the refusal probe")
        aim = rotation.aim
        return _watch(rotation, "probe", Phase.DISTRUST, patience, lambda seen: aim.may_probe(seen, rotation.now()))


def _watch(
    rotation: Rotation,
    gate: str,
    phase: Phase,
    patience: timedelta | None,
    judge: Callable[[Observation], GateResult],
) -> Look:
    began, aim = rotation.now(), rotation.aim
    # The bound of a wait that an earlier process began; looked at only once something has to be waited for.
    kept: datetime | None = None
    unseen = _Unseen(rotation, gate)
    systems = tuple(rotation.systems.values())
    seen = rotation.recent()
    while True:
        require_signing(rotation, phase, seen)
        result = judge(seen)
        behind = aim.behind(phase)
        done, total = 0, len(seen.peers)
        if behind is not None:
            far = aim.progress(seen, behind)
            done, total = far.done, far.total
            watcher().count(done, total, far.waiting_for)
        bound = unseen.bound(result, rotation.now()) or kept
        if _decides(rotation, result, bound) and not everybody_read(systems):
            seen = rotation.observe()
            continue
        if result.open:
            if patience is not None:  # only a run that may leave its process writes deadlines down
                rotation.drop_deadlines(gate)
            _note_open(rotation, phase, result, len(seen.peers), (rotation.now() - began).total_seconds())
            return Look(gate, True, done, total, (), rotation.now())
        if result.contradictions or result.overdue:
            rotation.note("gate-refused", {"phase": phase.value, "evidence": list(result.evidence)})
            if patience is not None:
                rotation.drop_deadlines(gate)  # whoever runs this again has seen to it: the wait begins anew
            try:
                result.require()
            except GateRefused as error:
                error.next_command = _cure(rotation, seen) or error.next_command
                raise
        now = rotation.now()
        if result.bound is None and kept is None:
            # While leaves bounded the wait it did not run; what is still missing now has the time of a restart.
            kept = rotation.deadline(gate) or now + rotation.domain.policy.restart_deadline
        bound = bound or kept
        assert bound is not None  # noqa: S101  # one of the two was just set
        if now > bound:
            rotation.drop_deadlines(gate)  # whoever runs this again has seen to the stragglers: the wait begins anew
            raise _timed_out(rotation, phase, result, bound)
        if patience is not None and not unseen.late and now - began >= patience and bound - now > patience:
            observed, assumed = result.bound is not None, bool(result.assumed)
            return Look(gate, False, done, total, result.waiting_for, bound, observed, assumed)
        watcher().until(bound)
        rotation.sleep(_pause(now, bound))
        seen = glance(systems, rotation.observe)


class _Unseen:
    """The bound of a wait for leaves that nobody can see: one life of a leaf from when the same one was first missing.

    Whose are missing may be others at each look: pods that are just starting. Each of them is waited for anew.
    """

    def __init__(self, rotation: Rotation, gate: str) -> None:
        self.late = False
        """An earlier process waited to the end of it: who is missing now has the time of a restart, in this process."""
        self._rotation = rotation
        self._gate = gate
        self._bound: datetime | None = None
        self._missing: frozenset[str] | None = None

    def bound(self, result: GateResult, now: datetime) -> datetime | None:
        """The bound of a result, its own where it was seen."""
        if not result.assumed:
            self._missing, self.late = frozenset(), False
            return result.bound
        missing = frozenset(result.assumed)
        if self._missing is None:
            self._bound, self._missing = self._rotation.deadline(_unread(self._gate)), missing
            if self._bound is not None and self._bound < now:
                self._bound, self.late = now + self._rotation.domain.policy.restart_deadline, True
        self._missing &= missing
        if not self._missing or self._bound is None:
            self._bound, self._missing, self.late = result.bound, missing, False
        return max((end for end in (result.observed, self._bound) if end is not None), default=None)


def _unread(gate: str) -> str:
    return f"{gate}, for what cannot be read"


def _decides(rotation: Rotation, result: GateResult, bound: datetime | None) -> bool:
    """Whether a wait would end by this result, one way or another: then everybody has to be read for it."""
    ends = result.open or bool(result.contradictions) or bool(result.overdue)
    return ends or (bound is not None and rotation.now() > bound)


def _cure(rotation: Rotation, seen: Observation) -> str:
    """What to run where something of Linkerd's has expired: waiting and ordinary rotations do not help; else empty."""
    if rotation.domain.system is not System.LINKERD or rotation.kind == "webhooks":
        return ""
    certificates = {f: c for system in rotation.systems.values() for f, c in system.certificates().items()}
    return advice(seen, certificates, rotation.now())


def _note_open(rotation: Rotation, phase: Phase, result: GateResult, peers: int, waited: float) -> None:
    evidence = list(result.evidence)
    body = {"phase": phase.value, "evidence": evidence, "peers": peers, "waited_seconds": round(waited, 3)}
    rotation.note("gate-open", body)


def _timed_out(rotation: Rotation, phase: Phase, result: GateResult, bound: datetime) -> GateTimedOut:
    return GateTimedOut(
        f"the gate before {phase.value} did not open in time",
        stragglers=result.waiting_for,
        where=f"trust domain {rotation.domain.name}",
        observed="; ".join(result.waiting_for[:20]),
        expected=f"nobody to wait for by {bound:%F %T}Z",
        next_command=f"restart or remove the ones named, then go on from here: {rotation.command}",
    )


def _pause(now: datetime, bound: datetime) -> float:
    return min(MAX_PAUSE, max(MIN_PAUSE, (bound - now).total_seconds() / 40))
