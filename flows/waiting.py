"""The gates of a flow: watched in the process for a while, then by leaving it and coming back.

A gate opens on evidence alone, as soon as it is there; coming back only means to look again. Without a deployment
nobody would come back, so the whole wait happens here.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from textwrap import shorten

from capstan.errors import GateTimedOut
from capstan.progress import watcher
from capstan.rotation import Rotation
from capstan.rotation.waiting import Look
from capstan.trust.phase import Phase
from flows.durable import deployed, leave_until
from flows.events import EventName, raise_event
from tasks import steps

# Of the time that is left, the part after which to look again: a wait of 24 h is looked at after 6 h, 10.5 h, ...
_PART = 4
_SHOWN = 3
_LONGEST = 90  # characters of a name with its reason; the state's message is one line in Prefect's pages


def await_gate(rotation: Rotation, phase: Phase) -> None:
    """Return when the gate before `phase` is open.

    Raises:
        GateRefused: The evidence contradicts going on.
        GateTimedOut: The bound passed; names who did not arrive.
        Pause: The process is left; the run goes on later.
    """
    _await(rotation, lambda patience: steps.watch_gate(rotation, phase, patience))


def await_convergence(rotation: Rotation) -> None:
    """Return when every live trust store is exactly the new root: all that the last gate asks but the probe.

    Raises:
        As `await_gate`.
    """
    _await(rotation, lambda patience: steps.watch_convergence(rotation, patience))


def await_window(rotation: Rotation, phase: Phase) -> None:
    """Return when a phase that changes the mesh may begin: while the domain's maintenance window is open.

    A phase that has begun to take effect is not held up: to end it soon is the safer half.

    Raises:
        Pause: The process is left; the run goes on when the window opens.
    """
    policy = rotation.domain.policy
    if policy.window is None or rotation.plan(rotation.recent()).entered(phase):
        return
    opens = policy.window.next_opening(rotation.now(), policy.time_zone)
    if opens <= rotation.now():
        return
    why = f"phase {phase.value} begins when the maintenance window opens ({policy.window}, {policy.time_zone})"
    watcher().note(f"{why}: {opens:%Y-%m-%d %H:%M:%S} UTC")
    if deployed():
        leave_until(opens, why)
    rotation.sleep(max(0.0, (opens - rotation.now()).total_seconds()))


def _await(rotation: Rotation, watch: Callable[[timedelta | None], Look]) -> None:
    patience = rotation.domain.policy.leave_process_after if deployed() else None
    try:
        look = watch(patience)
    except GateTimedOut as error:
        raise_event(
            EventName.STRAGGLER,
            rotation.domain,
            rotation.id,
            {
                "message": f"{error.what}: {len(error.stragglers)} did not arrive",
                "waiting_for": list(error.stragglers[:50]),
                "next_command": error.next_command,
            },
        )
        raise
    if not look.open:
        rotation.keep_deadline(look)
        why = _why(look)
        watcher().note(why)
        leave_until(next_look(rotation.now(), look.until, rotation.domain.policy.leave_process_after), why)


def next_look(now: datetime, until: datetime, least: timedelta) -> datetime:
    """When to look again: after a part of what is left, not too often, and once more when the bound is reached."""
    return min(max(until, now), now + max(least, (until - now) / _PART))


def _why(look: Look) -> str:
    names = ", ".join(shorten(name, _LONGEST, placeholder=" ...") for name in look.waiting_for[:_SHOWN])
    more = f" and {len(look.waiting_for) - _SHOWN} more" if len(look.waiting_for) > _SHOWN else ""
    return (
        f"gate before {look.gate}: {look.done} of {look.total} there; "
        f"at the latest until {look.until:%Y-%m-%d %H:%M:%S} UTC; waits for {names}{more}"
    )
