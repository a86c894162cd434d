"""A rotation opened inside a flow run: who watches, who is asked, whose it is, and what is told when it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from capstan.approvals import decided_by
from capstan.config import TrustDomain
from capstan.errors import CapstanError
from capstan.rotation import Rotation, open_rotation
from flows.claims import FlowRunClaimant
from flows.durable import deployed
from flows.events import EventName, raise_event
from flows.suspending import ask_by_suspending
from flows.watching import watched_in_prefect


@contextmanager
def running(domain: TrustDomain, rotation: str | None, *, take_over: bool = False) -> Iterator[Rotation]:
    """Open a rotation for the flow run around the call.

    In a deployment it is watched through Prefect and approved by suspending the run; anywhere else by whoever started
    the flow (the command line sets its own watcher and approver).

    Args:
        rotation: As `capstan.rotation.open_rotation`.
        take_over: Go on with what another, unfinished run has claimed.

    Raises:
        As `open_rotation`.
    """
    with ExitStack() as stack:
        if deployed():
            stack.enter_context(watched_in_prefect(domain.name))
            stack.enter_context(decided_by(ask_by_suspending))
        try:
            opened = open_rotation(domain, rotation, claimant=FlowRunClaimant(), take_over=take_over)
            yield stack.enter_context(opened)
        except CapstanError as error:
            raise_event(EventName.FAILED, domain, rotation, _told(error))
            raise


def _told(error: CapstanError) -> dict[str, str]:
    return {
        "message": error.what,
        "error": type(error).__name__,
        "where": error.where,
        "observed": error.observed,
        "expected": error.expected,
        "next_command": error.next_command,
    }
