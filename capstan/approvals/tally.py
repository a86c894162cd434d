"""Which answers count, and what they come to. Asked at every read: what the record holds is a claim until then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from capstan.approvals.signing import verify
from capstan.approvals.statement import Question
from capstan.errors import VerificationFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capstan.approvals.policy import ApproverPolicy
    from capstan.cluster.record import Approval, RotationRecord

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Tally:
    """What the answers to one request come to.

    Attributes:
        state: approved, rejected or held; open while more answers are needed.
        counted: The answers that count, one a person, in the order they were given.
        refused: Answers that do not, each with the reason.
        missing: Who has approved, and how many more approvals are needed, for a person; empty once decided.
    """

    state: Literal["approved", "rejected", "held", "open"]
    counted: tuple[Approval, ...] = ()
    refused: tuple[tuple[Approval, str], ...] = ()
    missing: str = ""

    def notes(self, request: str) -> tuple[str, ...]:
        """What became of the answers to one request so far, for whoever is asked next."""
        lines = [
            f"An answer by {given.by} does not count: {why}." for given, why in self.refused if given.request == request
        ]
        return (*lines[-_SHOWN:], *([f"So far: {self.missing}."] if self.missing else []))


def tally(record: RotationRecord, gate: str, policy: ApproverPolicy) -> Tally:
    """Count the answers to the request last made for a gate; open, with nothing counted, if nobody was asked yet."""
    question = Question.of(record, gate)
    return Tally("open") if question is None else count(record.approvals, question, policy)


def count(decisions: Sequence[Approval], question: Question, policy: ApproverPolicy) -> Tally:
    """Count the answers to one request.

    With nobody listed, the last answer decides. With approvers listed, only verified signatures of theirs count: the
    last verified answer of each person; any rejection rejects, any hold holds, a quorum of different people approves.

    Args:
        decisions: The record's approvals, oldest first; those of other gates are passed over.
    """
    refused: list[tuple[Approval, str]] = []
    last: dict[str, Approval] = {}
    for given in decisions:
        if given.gate != question.gate:
            continue
        reason = _why_not(given, question, policy)
        if reason:
            refused.append((given, reason))
        else:
            person = given.by if policy.keys else ""
            last.pop(person, None)  # so that the order is that of the answers that stand
            last[person] = given
    counted = tuple(last.values())
    approving = [given.by for given in counted if given.decision == "approved"]
    state: Literal["approved", "rejected", "held", "open"]
    if any(given.decision == "rejected" for given in counted):
        state = "rejected"
    elif any(given.decision == "held" for given in counted):
        state = "held"
    else:
        state = "approved" if len(approving) >= max(1, policy.quorum) else "open"
    return Tally(state, counted, tuple(refused), _missing(policy, approving) if state == "open" else "")


def _why_not(given: Approval, question: Question, policy: ApproverPolicy) -> str:
    """Why an answer does not count; empty if it does."""
    if given.request != question.request:
        return f"it answers another request ({given.request or 'none'})"
    if given.digest != question.digest:
        return f"it was given for something else (digest {given.digest[:12]})"
    if not policy.keys:
        return ""
    keys = policy.keys_of(given.by)
    if not keys:
        return f"{given.by!r} is not listed as an approver"
    if not given.signature:
        return "it is not signed"
    reasons = []
    for key in keys:
        try:
            verify(question.statement(given), given.signature, key, asked=question.asked, given=given.at)
        except VerificationFailed as error:
            reasons.append(f"{error.what}: {error.observed}")
        else:
            return ""
    return "; ".join(dict.fromkeys(reasons))


def _missing(policy: ApproverPolicy, approving: Sequence[str]) -> str:
    if not policy.keys:
        return ""
    left = [name for name in policy.names if name not in approving]
    so_far = f"approved by {', '.join(approving)}; " if approving else ""
    return f"{so_far}{policy.quorum - len(approving)} more of {', '.join(left)} needed"
