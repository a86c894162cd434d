"""What an approver is shown: what will happen, to whom, on what evidence, and how to go back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.trust.phase import Phase
from capstan.trust.steps import StepKind

if TYPE_CHECKING:
    from capstan.rotation.session import Rotation
    from capstan.trust.plan import Plan

_MEANING = {
    Phase.TRUST: "Every bundle gets the new root beside the old; control plane and workloads are restarted.",
    Phase.ISSUE: "The issuer is replaced by one under the new root; leaves renew by themselves.",
    Phase.DISTRUST: "The old root is removed from every bundle; control plane and workloads are restarted.",
}


def preview(rotation: Rotation, plan: Plan, phase: Phase) -> str:
    """Plain text of at most 100 columns."""
    last = rotation.recent()
    lines = [
        f"Rotation {rotation.id} of trust domain {rotation.domain.name}: phase {phase.value}",
        "",
        _MEANING[phase],
        "",
        f"  clusters   {', '.join(rotation.systems)}",
        f"  peers      {len(last.peers)} live proxies, {len({peer.owner for peer in last.peers})} workloads",
        f"  old roots  {', '.join(root.fingerprint[:16] for root in rotation.old)}",
        f"  new root   {rotation.new_root.fingerprint[:16]}, {rotation.new_root.common_name},"
        f" until {rotation.new_root.not_after:%Y-%m-%d}",
        f"  now        {plan.verdict}",
        f"  plan       {plan.digest()}",
        "",
    ]
    steps = [step for step in plan.steps if step.phase is phase and step.kind is not StepKind.APPROVE]
    lines += [f"  {step.kind.value:<22} {step.changes}" for step in steps if not step.done]
    lines += ["", f"  way back: {steps[0].reversible}"]
    return "\n".join(lines)
