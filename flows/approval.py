"""Approval before a phase that changes the live mesh: asked once, kept in the record, bound to what was shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import uuid4

from capstan.approvals import Decision, Proposal, Question, Request, Tally, approver, approver_policy, tally
from capstan.approvals.policy import ApproverPolicy
from capstan.approvals.proposal import Gate
from capstan.audit import audited_step
from capstan.cluster.record import Approval, Asked, RotationRecord
from capstan.errors import ApprovalRejected
from capstan.evidence.story import ASKED
from capstan.rotation import Rotation
from capstan.rotation.proposing import propose
from capstan.rotation.proposing_expired import propose_replacement
from capstan.trust.phase import Phase
from capstan.trust.plan import Plan

# Answers kept in the record; with signatures of at most 8 kB, far below a ConfigMap's 1 MiB. The account has them all.
_KEPT: Final = 60

ROLL_BACK: Final = "roll-back"
_GATES: Final[dict[Phase, Gate]] = {Phase.TRUST: "trust", Phase.ISSUE: "issue", Phase.DISTRUST: "distrust"}


def approved(rotation: Rotation, phase: Phase) -> None:
    """Return when the phase may begin.

    Approvals in the record count if they were given for what is proposed now, or if the phase they were given for has
    begun to take effect (its own progress does not take them back). Signatures are verified each time.

    Raises:
        ApprovalRequired: Nobody can be asked here.
        ApprovalRejected: A person said no; this phase was not begun.
        Pause: The run is suspended until somebody answers.
    """
    if phase.value not in approver_policy(rotation.domain).gates:
        return

    def proposed() -> tuple[Proposal, bool]:
        plan = rotation.plan(rotation.recent())
        return propose(rotation, plan, _GATES[phase]), plan.entered(phase)

    _approved(rotation, proposed)


def way_back_approved(rotation: Rotation, plan: Callable[[], Plan]) -> None:
    """Return when the way back may begin.

    Args:
        plan: Plans the way back from the domain as it is now.

    Raises:
        As `approved`.
    """
    _approved(rotation, lambda: (propose(rotation, plan(), ROLL_BACK), False))


def redate_approved(rotation: Rotation) -> None:
    """Return when the root may be re-dated: asked once, whatever the policy's phases.

    Raises:
        As `approved`.
    """

    def proposed() -> tuple[Proposal, bool]:
        plan = rotation.plan(rotation.recent())
        return propose(rotation, plan, "re-date"), plan.entered(Phase.TRUST)

    _approved(rotation, proposed)


def replacement_approved(rotation: Rotation) -> None:
    """Return when what has expired may be replaced: asked once, whatever the policy's phases.

    Raises:
        As `approved`.
    """

    def proposed() -> tuple[Proposal, bool]:
        plan = rotation.plan(rotation.recent())
        return propose_replacement(rotation, plan), plan.entered(Phase.ISSUE)

    _approved(rotation, proposed)


def _approved(rotation: Rotation, proposed: Callable[[], tuple[Proposal, bool]]) -> None:
    policy = approver_policy(rotation.domain)
    while True:
        # Proposed anew after each answer: the cluster may have moved on while somebody was thinking.
        proposal, entered = proposed()
        gate = proposal.gate
        record = rotation.record()
        found = _found(record, proposal, policy, entered=entered)
        if found is not None and found.state == "approved":
            for given in found.counted:
                _account_for(rotation, given)
            return
        if found is not None and found.state == "rejected":
            raise _rejected(rotation, gate, found)
        with audited_step(f"approve/{gate}"):
            held = found is not None and found.state == "held"
            asked = _asking(rotation, proposal, record.asked.get(gate), anew=held)
            notes = found.notes(asked.id) if found is not None else ()
            request = Request(
                rotation.domain.name, rotation.id, gate, proposal.digest, asked.id, asked.until,
                proposal.text(), proposal.markdown(asked.id, asked.until, notes),
                turn=record.turn, approvers=policy.names, answered=asked.answered,
            )  # fmt: skip
            _keep(rotation, request, approver()(request))
            rotation.acted()


def _found(record: RotationRecord, proposal: Proposal, policy: ApproverPolicy, *, entered: bool) -> Tally | None:
    """What the answers to the last request come to; None if it was for something else, or nobody was asked."""
    question = Question.of(record, proposal.gate)
    if question is None or not (entered or question.digest == proposal.digest):
        return None
    return tally(record, proposal.gate, policy)


def _asking(rotation: Rotation, proposal: Proposal, asked: Asked | None, *, anew: bool) -> Asked:
    """The request to be answered: the open one, or a new one where what is proposed has changed, or it was answered."""
    now = rotation.now()
    if asked is not None and asked.digest == proposal.digest and not anew and now < asked.until:
        _account_for_asking(rotation, proposal.gate, asked)
        return asked
    fresh = Asked(
        id=uuid4().hex[:12], digest=proposal.digest, at=now, until=now + rotation.domain.policy.approval_timeout
    )
    rotation.remember(lambda record: record.model_copy(update={"asked": {**record.asked, proposal.gate: fresh}}))
    _account_for_asking(rotation, proposal.gate, fresh)
    return fresh


def _account_for_asking(rotation: Rotation, gate: str, asked: Asked) -> None:
    """Note in the account that somebody was asked, once, as `_account_for` does."""
    if not any(entry.kind == ASKED and entry.body.get("request") == asked.id for entry in rotation.evidence.entries):
        body = {"gate": gate, "request": asked.id, "digest": asked.digest, "until": asked.until.isoformat()}
        rotation.note(ASKED, body)


def _keep(rotation: Rotation, request: Request, decision: Decision) -> None:
    """Write down an answer, and that it was looked at, in one: neither is there without the other."""
    entry = Approval(
        gate=request.gate,
        decision=decision.choice,
        by=decision.by,
        at=decision.at,
        digest=request.digest,
        request=request.id,
        signature=decision.signature,
        ticket=decision.ticket,
        comment=decision.comment,
    )

    def answered(record: RotationRecord) -> RotationRecord:
        asked = record.asked[request.gate]
        if asked.id != request.id or asked.answered >= decision.answered:
            return record  # written already, by a process that died right after
        looked_at = asked.model_copy(update={"answered": decision.answered})
        kept = (*record.approvals, entry)[-_KEPT:]
        return record.model_copy(update={"approvals": kept, "asked": {**record.asked, request.gate: looked_at}})

    rotation.remember(answered)
    _account_for(rotation, entry)


def _account_for(rotation: Rotation, given: Approval) -> None:
    """Note a decision in the account, unless it is there: a run may have died between the record and the account."""
    body = given.model_dump(mode="json")
    if not any(entry.kind == "approval" and entry.body == body for entry in rotation.evidence.entries):
        rotation.note("approval", body)


def _rejected(rotation: Rotation, gate: str, found: Tally) -> ApprovalRejected:
    last = found.counted[-1]
    return ApprovalRejected(
        f"{gate} was rejected by {last.by}",
        where=f"rotation {rotation.id}",
        observed=last.comment or "no comment",
        expected="an approval",
        next_command="capstan status",
    )
