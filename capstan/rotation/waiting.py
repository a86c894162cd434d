"""The gates: observe until the evidence is there, with a bound, and a list of who is being waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.audit import audited_step
from capstan.errors import GateTimedOut
from capstan.progress import watcher
from capstan.trust.gates import GateResult, may_enter, may_probe
from capstan.trust.phase import Phase, progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from capstan.rotation.session import Rotation
    from capstan.trust.observation import Observation

# Seconds between two looks: in proportion to what is left of the wait, within these.
MIN_PAUSE = 0.5
MAX_PAUSE = 30.0


def await_gate(rotation: Rotation, phase: Phase) -> GateResult:
    """Observe until the gate before `phase` is open.

    The wait is bounded: by the last observed expiry of the leaves waited for, where there is one, else by the domain's
    restart deadline. Evidence ends it early.

    Raises:
        GateRefused: The evidence contradicts going on.
        GateTimedOut: The bound passed; names who did not arrive.
    """
    with audited_step(f"gate/{phase.value}"):
        watcher().step(f"gate before {phase.value}")
        return _await(rotation, phase, lambda seen: may_enter(
            phase, seen, rotation.old.fingerprints, rotation.new, rotation.now(),
            old_leaf_refused=rotation.old_root_refused,
        ))  # fmt: skip


def await_convergence(rotation: Rotation) -> GateResult:
    """Observe until every live trust store is exactly the new root: all that the last gate asks but the probe.

    Raises:
        As `await_gate`.
    """
    with audited_step("gate/probe"):
        watcher().step("gate before the refusal probe")
        return _await(
            rotation, Phase.DISTRUST,
            lambda seen: may_probe(seen, rotation.old.fingerprints, rotation.new, rotation.now()),
        )  # fmt: skip


def _await(rotation: Rotation, phase: Phase, judge: Callable[[Observation], GateResult]) -> GateResult:
    began = rotation.now()
    patience = began + rotation.domain.policy.restart_deadline
    behind = {Phase.ISSUE: Phase.TRUST, Phase.DISTRUST: Phase.ISSUE, Phase.DONE: Phase.DISTRUST}.get(phase)
    look = rotation.recent
    while True:
        seen = look()
        look = rotation.observe
        result = judge(seen)
        if behind is not None:
            far = progress(seen, behind, rotation.old.fingerprints, rotation.new)
            watcher().count(far.done, far.total, far.waiting_for)
        if result.open:
            rotation.note(
                "gate-open",
                {
                    "phase": phase.value,
                    "evidence": list(result.evidence),
                    "peers": len(seen.peers),
                    "waited_seconds": round((rotation.now() - began).total_seconds(), 3),
                },
            )
            return result
        if result.contradictions or result.overdue:
            rotation.note("gate-refused", {"phase": phase.value, "evidence": list(result.evidence)})
            result.require()
        bound = result.bound or patience
        if rotation.now() > bound:
            raise GateTimedOut(
                f"the gate before {phase.value} did not open in time",
                stragglers=result.waiting_for,
                where=f"trust domain {rotation.domain.name}",
                observed="; ".join(result.waiting_for[:20]),
                expected=f"nobody to wait for by {bound:%F %T}Z",
                next_command="restart or remove the ones named, then run `capstan rotate` again: it goes on from here",
            )
        rotation.sleep(_pause(rotation.now(), bound))


def _pause(now: datetime, bound: datetime) -> float:
    return min(MAX_PAUSE, max(MIN_PAUSE, (bound - now).total_seconds() / 40))
