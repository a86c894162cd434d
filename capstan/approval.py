"""Who decides before a phase changes the live mesh, and what the decision is bound to.

A decision is bound to the digest of what was shown (`Request.digest`): approvals are kept in the rotation record under
that digest, so one given for another plan never counts, and one given before a crash is not asked for again.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from capstan.errors import ApprovalRequired

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Request:
    """What a person is asked to approve.

    Attributes:
        rotation: Rotation id.
        phase: Phase that would begin: trust, issue or distrust.
        digest: SHA-256 (hex) of the plan this request shows; the decision counts for exactly this.
        preview: What will happen, the evidence so far, what becomes irreversible and how to go back, as plain text.
    """

    rotation: str
    phase: str
    digest: str
    preview: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided.

    Attributes:
        approved: Whether the phase may begin.
        by: Who says so. On the terminal and in Prefect's open-source server this is a claim, not a proof.
        at: When, aware UTC.
        comment: Ticket or reason.
    """

    approved: bool
    by: str
    at: datetime
    comment: str = ""


class Approver(Protocol):
    """Whoever can be asked."""

    def __call__(self, request: Request) -> Decision:
        """Ask, and wait for the answer.

        Raises:
            ApprovalRequired: Nobody can be asked here; the rotation stops, to be run again once approved.
        """


def nobody(request: Request) -> Decision:
    """The default: where nobody was named to ask, nothing is approved."""
    raise ApprovalRequired(
        f"phase {request.phase} waits for approval",
        where=f"rotation {request.rotation}",
        observed="nobody can be asked: this is no terminal, and no approver was named",
        expected=f"a decision on plan {request.digest[:12]}",
        next_command="run `capstan rotate` again on a terminal, or with `--approve auto`; it goes on from here",
    )


_approver: ContextVar[Approver] = ContextVar("capstan_approver", default=nobody)


def approver() -> Approver:
    """Whoever decides in this context."""
    return _approver.get()


@contextmanager
def decided_by(who: Approver) -> Iterator[None]:
    """Requests in the enclosed calls go to `who`."""
    token = _approver.set(who)
    try:
        yield
    finally:
        _approver.reset(token)
