"""Who is asked before a phase changes the live mesh, what they are shown, and what they answer.

An answer is bound to the request it was given to: `Request.digest` covers what was shown, `Request.id` this one asking.
Approvals are kept in the rotation record under both, so one given for another plan never counts, and one given before a
crash is not asked for again.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from capstan.errors import ApprovalRequired

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

Choice = Literal["approved", "rejected", "held"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a person is asked to approve.

    Attributes:
        domain: Trust domain.
        rotation: Rotation id.
        gate: What would begin: phase trust, issue or distrust, or roll-back.
        digest: SHA-256 (hex) of what this request shows; the answer counts for exactly this.
        id: Names this asking; never used twice.
        until: When it runs out, aware UTC.
        text: The preview as plain text of at most 100 columns: what will happen, the evidence so far, what becomes
            irreversible, how long it may take, how to go back.
        markdown: The same for a page.
        turn: Turn of the rotation.
        approvers: Names whose signed answers count; empty where whoever can answer decides.
        answered: How many answers to this request were looked at already.
    """

    domain: str
    rotation: str
    gate: str
    digest: str
    id: str
    until: datetime
    text: str
    markdown: str
    turn: int = 1
    approvers: tuple[str, ...] = ()
    answered: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided.

    Attributes:
        choice: approved, rejected, or held (not now; ask again).
        by: Who says so. On the terminal and in Prefect's open-source server this is a claim, not a proof.
        at: When, aware UTC.
        ticket: Reference to the change in whatever system keeps changes.
        comment: Reason.
        signature: Over request and choice (`capstan.approvals.signing`); empty where none was given.
        answered: How many answers to the request were looked at, this one included.
    """

    choice: Choice
    by: str
    at: datetime
    ticket: str = ""
    comment: str = ""
    signature: str = ""
    answered: int = 1


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
        f"{request.gate} waits for approval",
        where=f"rotation {request.rotation}",
        observed="nobody can be asked: this is no terminal, and no approver was named",
        expected=f"a decision on plan {request.digest[:12]}",
        next_command="run the same command again on a terminal, or with `--approve auto`; it goes on from here",
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
