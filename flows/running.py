"""A rotation opened inside a flow run: who watches, who is asked, whose it is, and what is told when it fails."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.exceptions import Abort

from capstan.approvals import decided_by
from capstan.cluster.record import Kind
from capstan.config import TrustDomain
from capstan.errors import CapstanError, Retryable, StillRunning
from capstan.rotation import Rotation, open_rotation
from flows.artifacts import shown
from flows.claims import FlowRunClaimant
from flows.durable import deployed
from flows.events import EventName, raise_event
from flows.faults import come_back_later
from flows.handshakes import counted
from flows.suspending import ask_by_suspending
from flows.watching import watched_in_prefect


@contextmanager
def running(
    domain: TrustDomain, rotation: str | None, *, take_over: bool = False, kind: Kind | None = None
) -> Iterator[Rotation]:
    """Open a rotation for the flow run around the call.

    In a deployment it is watched through Prefect and approved by suspending the run; anywhere else by whoever started
    the flow (the command line sets its own watcher and approver).

    Args:
        rotation: As `capstan.rotation.open_rotation`.
        take_over: Go on with what another, unfinished run has claimed.
        kind: What the flow rotates; None for whatever there is.

    Raises:
        As `open_rotation`.
    """
    with ExitStack() as stack:
        if deployed():
            stack.enter_context(watched_in_prefect())
            stack.enter_context(decided_by(ask_by_suspending))
        else:
            stack.enter_context(_terminated_at_once())
        try:
            opened = stack.enter_context(
                open_rotation(domain, rotation, claimant=FlowRunClaimant(), take_over=take_over, kind=kind)
            )
            stack.enter_context(shown(opened))
            stack.enter_context(counted(opened))
            before = opened.record().outcome
            yield opened
            _tell_end(opened, before)
        except StillRunning as error:
            raise Abort(str(error)) from error  # Prefect's signal to leave without a word on the run's state
        except CapstanError as error:
            if isinstance(error, Retryable):
                come_back_later(error)
            raise_event(EventName.FAILED, domain, rotation, _told(error))
            raise


@contextmanager
def running_without_rotation(domain: TrustDomain) -> Iterator[None]:
    """The same for a flow that has no rotation to open: watched, and told when it fails."""
    with ExitStack() as stack:
        if deployed():
            stack.enter_context(watched_in_prefect())
        else:
            stack.enter_context(_terminated_at_once())
        try:
            yield
        except CapstanError as error:
            if isinstance(error, Retryable):
                come_back_later(error)
            raise_event(EventName.FAILED, domain, None, _told(error))
            raise


def _tell_end(rotation: Rotation, before: str) -> None:
    """Tell that the rotation has ended, unless it had before this run: which only found that nothing was left to do."""
    record = rotation.record()
    if record.outcome and record.outcome != before:
        name = EventName.ROLLED_BACK if record.direction == "back" else EventName.FINISHED
        message = f"rotation {rotation.id} of {rotation.domain.name}: {record.outcome}"
        told = {"message": message, "old_roots": sorted(record.old), "new_root": record.new}
        raise_event(name, rotation.domain, rotation.id, told)


@contextmanager
def _terminated_at_once() -> Iterator[None]:
    """Let SIGTERM end this process at once, as it ends any other.

    Prefect takes the signal over while a flow runs and then waits for a server that may have got the same one. A
    rotation may be killed at any instruction, and its Lease is taken over from a process that is seen to be gone. A
    worker's runs keep Prefect's handling: the worker reports them, and they are started again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _told(error: CapstanError) -> dict[str, str]:
    return {
        "message": error.what,
        "error": type(error).__name__,
        "where": error.where,
        "observed": error.observed,
        "expected": error.expected,
        "next_command": error.next_command,
    }
