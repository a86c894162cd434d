"""The serving certificates of Linkerd's webhooks: replaced without failing a call of the API server.

Linkerd's page "Rotating webhooks certificates" deletes the Secrets and upgrades: until every server has read its new
pair, the API server refuses what it serves. Here caBundle holds old and new for that time; our additions are all of it.
"""

from __future__ import annotations

from prefect import flow

from capstan.config import TrustDomain
from capstan.rotation import Outcome, Rotation
from capstan.trust.phase import Phase
from flows.directions import carried_out
from flows.phases import cleared
from flows.waiting import await_gate
from tasks import steps


@flow(
    name="linkerd-webhooks",
    flow_run_name="{domain.name}: rotate webhook certificates",
    retries=0,
    persist_result=False,
    log_prints=False,
)
def rotate_webhooks(
    domain: TrustDomain, rotation: str | None = None, take_over: bool = False, forward: bool = False
) -> Outcome:
    """Rotate the serving certificates of proxy-injector, sp-validator, policy-validator, and of viz's tap and
    tap-injector where they are installed.

    Killed anywhere and run again, it goes on from where the certificates say it is. Refused where cert-manager, Argo CD
    or Flux keep them.

    Args:
        domain: The trust domain: its clusters, control plane, vault and policy.
        rotation: Id of this rotation; an unfinished one is gone on with, else a new one is named after today.
        take_over: Go on with a rotation that another, unfinished run has claimed: only if that run is never to go on.
        forward: Turn a rotation that is being rolled back, and go forward again; everything is asked for anew.
    """
    return carried_out(domain, rotation, to_other_pairs, kind="webhooks", take_over=take_over, forward=forward)


def to_other_pairs(rotation: Rotation) -> None:
    """The whole way: old + new in caBundle, then the Secrets, then new alone."""
    prepare(rotation)
    if steps.locate(rotation).number <= Phase.TRUST.number:
        trust(rotation)
    if steps.pending(rotation, Phase.ISSUE):
        serve(rotation)
    distrust(rotation)


def prepare(rotation: Rotation) -> None:
    """Make a new pair for each server. Nothing in the cluster changes."""
    with rotation.phase(Phase.PREPARE):
        await_gate(rotation, Phase.PREPARE)  # every process that serves can be read
        steps.guard_webhooks(rotation)  # refused where a tool would undo it
        steps.mint_serving(rotation)  # into the vault, once


def trust(rotation: Rotation) -> None:
    """Tell the API server to accept the new certificates beside the old."""
    with rotation.phase(Phase.TRUST):
        cleared(rotation, Phase.TRUST)
        for hook in rotation.systems:
            steps.widen_ca_bundle(rotation, hook)
        await_gate(rotation, Phase.ISSUE)


def serve(rotation: Rotation) -> None:
    """Replace the Secrets, and wait until every replica serves what its Secret holds."""
    with rotation.phase(Phase.ISSUE):
        cleared(rotation, Phase.ISSUE)
        for hook in rotation.systems:
            steps.back_up_serving(rotation, hook)  # the way back
        steps.settle_ca_bundle(rotation)
        for hook in rotation.systems:
            steps.switch_serving(rotation, hook)
        steps.reload_serving(rotation)  # by themselves; a server that does not read its Secret is restarted
        await_gate(rotation, Phase.DISTRUST)


def distrust(rotation: Rotation) -> None:
    """Tell the API server to accept nothing but the new certificates."""
    with rotation.phase(Phase.DISTRUST):
        if steps.locate(rotation) is not Phase.DONE:
            cleared(rotation, Phase.DISTRUST)
            for hook in rotation.systems:
                steps.narrow_ca_bundle(rotation, hook)
        await_gate(rotation, Phase.DONE)
