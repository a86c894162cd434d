"""A flow's rotation from its opening to its outcome: forward by the flow's own phases, or back.

Called in the flow itself: only a top flow can leave its process for an approval or a wait, and come back.
"""

from __future__ import annotations

from collections.abc import Callable

from capstan.cluster.record import Kind
from capstan.config import TrustDomain
from capstan.errors import ApprovalRejected
from capstan.rotation import Outcome, Rotation
from capstan.rotation.turning import REJECTED
from flows.claims import cancel_waiting_run
from flows.rolling_back import back, goes_back_by_itself, roll_back_when_approved
from flows.running import running
from tasks import steps


def carried_out(
    domain: TrustDomain,
    rotation: str | None,
    way: Callable[[Rotation], None],
    *,
    kind: Kind,
    take_over: bool,
    forward: bool,
) -> Outcome:
    """Take a rotation forward to its end; or back, once an approval was rejected where the policy says so.

    Args:
        way: Its phases, each of which passes over what is true already.
        kind: What it rotates.
        forward: The word to go forward again after a turn.

    Raises:
        CapstanError: As the steps; the rotation stays where it is.
        Pause: The process is left; the run goes on later.
    """
    with running(domain, rotation, take_over=take_over, kind=kind) as opened:
        if goes_back_by_itself(opened, forward):
            back(opened)
            return opened.outcome()
        try:
            steps.face_forward(opened, again=forward)
            way(opened)
            steps.finish(opened)
        except ApprovalRejected:
            if domain.policy.on_reject == "stop":
                raise
            back(opened, REJECTED)
        return opened.outcome()


def taken_back(domain: TrustDomain, rotation: str | None, *, take_over: bool) -> Outcome:
    """Take the rotation under way, or the last one, back to what there was before it.

    Raises:
        As `roll_back_when_approved`; NotFound where there never was one.
    """
    found = steps.look_back(domain, rotation).record  # before anything is stopped: is there a way back?
    cancel_waiting_run(found)
    with running(domain, found.rotation_id, take_over=take_over) as opened:
        roll_back_when_approved(opened)
        return opened.outcome()
