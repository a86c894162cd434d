"""What has expired in a Linkerd is replaced: anchor or issuer or every leaf. The mesh is down already; it is made fast.

Follows Linkerd's "Replacing expired certificates": everything is written at once, then everything is started anew. What
we do more is marked (+). Why nothing waits here, and in which order it heals: docs/linkerd.md.
"""

from __future__ import annotations

from prefect import flow

from capstan.config import TrustDomain
from capstan.rotation import Outcome, Rotation
from capstan.trust.expired import Scope
from capstan.trust.phase import Phase
from flows.approval import replacement_approved
from flows.directions import carried_out
from flows.offline import mint_or_have_signed
from flows.waiting import await_gate
from tasks import steps


@flow(
    name="linkerd-expired",
    flow_run_name="{domain.name}: replace what has expired",
    retries=0,
    persist_result=False,
    log_prints=False,
)
def replace_expired(
    domain: TrustDomain, rotation: str | None = None, take_over: bool = False, forward: bool = False
) -> Outcome:
    """Replace what has expired in one trust domain: its anchor, its issuers, or leaves that nobody renewed.

    Refused while nothing has expired: an ordinary rotation drops no handshake, this one would. It takes the place of an
    ordinary rotation that is under way and can go neither on nor back. Asked for once, whatever the policy's phases; no
    maintenance window is waited for. Killed anywhere and run again, it goes on. There is no way back once it has begun:
    what there was before has expired.

    Args:
        domain: The trust domain: its clusters, control plane, vault and policy.
        rotation: Id of this rotation; an unfinished one is gone on with, else a new one is named after today.
        take_over: Go on with a rotation that another, unfinished run has claimed: only if that run is never to go on.
        forward: Turn one that was rejected, and go forward again; it is asked for anew.
    """
    return carried_out(domain, rotation, to_what_lives, kind="expired", take_over=take_over, forward=forward)


def to_what_lives(rotation: Rotation) -> None:
    """Look, make, ask, write, start anew, and see that everybody is back."""
    with rotation.phase(Phase.PREPARE):
        scope = steps.diagnose_expired(rotation)  # (+) what is down since when; what is good is kept
        if scope in (Scope.ANCHOR, Scope.ISSUER) and rotation.domain.policy.offline_root:
            mint_or_have_signed(rotation)
        else:
            steps.mint_replacement(rotation)
        steps.settle_roots(rotation)  # (+) a root that somebody still lives by stays
    with rotation.phase(Phase.ISSUE):
        if steps.locate(rotation) is not Phase.DONE:
            replacement_approved(rotation)
            for cluster in rotation.systems:
                steps.replace_roots(rotation, cluster)
                steps.replace_issuer(rotation, cluster)
            for cluster in rotation.systems:
                steps.restart_dead_control_plane(rotation, cluster)
                steps.restart_dead_data_plane(rotation, cluster)
        # (+) the documented procedure trusts the restarts; we ask every proxy what it holds and presents.
        await_gate(rotation, Phase.DONE)
        steps.account_for_outage(rotation)
