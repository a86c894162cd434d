"""Approval before a phase that changes the live mesh: asked once, kept in the record, bound to what was shown."""

from __future__ import annotations

from capstan.approvals import Decision, Request, approver
from capstan.audit import audited_step
from capstan.cluster.record import Approval, RotationRecord
from capstan.errors import ApprovalRejected
from capstan.rotation import Rotation
from capstan.rotation.preview import preview
from capstan.trust.phase import Phase


def approved(rotation: Rotation, phase: Phase) -> None:
    """Return when the phase may begin.

    An approval in the record counts if it was given for the plan as it is now, or if the phase it was given for has
    begun to take effect (its own progress does not take it back).

    Raises:
        ApprovalRequired: Nobody can be asked here.
        ApprovalRejected: A person said no; nothing was changed.
    """
    if phase.value not in rotation.domain.policy.approvals:
        return
    plan = rotation.plan(rotation.recent())
    record = rotation.record()
    given = record.approval_for(phase.value, plan.digest())
    if given is None and plan.entered(phase):
        given = _last_for(record, phase)
    if given is not None and given.decision == "approved":
        _account_for(rotation, given)
        return
    with audited_step(f"approve/{phase.value}"):
        decision = approver()(Request(rotation.id, phase.value, plan.digest(), preview(rotation, plan, phase)))
        _keep(rotation, phase, plan.digest(), decision)
    if not decision.approved:
        raise ApprovalRejected(
            f"phase {phase.value} was rejected by {decision.by}",
            where=f"rotation {rotation.id}",
            observed=decision.comment or "no comment",
            expected="an approval",
            next_command="capstan status",
        )


def _keep(rotation: Rotation, phase: Phase, digest: str, decision: Decision) -> None:
    entry = Approval(
        gate=phase.value,
        decision="approved" if decision.approved else "rejected",
        by=decision.by,
        at=decision.at,
        digest=digest,
        comment=decision.comment,
    )
    rotation.remember(lambda record: record.model_copy(update={"approvals": (*record.approvals, entry)}))
    _account_for(rotation, entry)


def _account_for(rotation: Rotation, given: Approval) -> None:
    """Note a decision in the account, unless it is there: a run may have died between the record and the account."""
    body = given.model_dump(mode="json")
    if not any(entry.kind == "approval" and entry.body == body for entry in rotation.evidence.entries):
        rotation.note("approval", body)


def _last_for(record: RotationRecord, phase: Phase) -> Approval | None:
    matching = [entry for entry in record.approvals if entry.gate == phase.value]
    return matching[-1] if matching else None
