"""The way back of a rotation: the moves of its flow with old and new exchanged, from anywhere.

Nothing is remembered about how far the rotation had come: the domain is observed, and what is true already is passed
over. So a rotation that had only widened its bundles narrows them again; one whose issuer was switched, in some of its
clusters or in all, switches it back first; and one that was complete takes the whole way. Why this order holds from
everywhere: `capstan.trust.explore`, which turns the rotation round at every step.

A rotation of the issuers alone has one move to take back: the issuers.
"""

from __future__ import annotations

from capstan.rotation import Rotation
from capstan.rotation.turning import ROLLED_BACK, rejected
from capstan.trust.phase import Phase
from flows.approval import way_back_approved
from flows.claims import FlowRunClaimant
from flows.phases import narrowed, refusal_proven, rolled_out, taken_over_unseen
from flows.waiting import await_gate
from tasks import steps


def roll_back_when_approved(rotation: Rotation) -> None:
    """Look back, ask once for the whole way, and take it. A rotation that is turned already is not asked for again.

    Raises:
        GateRefused: The way back is closed; nothing was changed.
        ApprovalRequired: Nobody can be asked here.
        ApprovalRejected: A person said no; the rotation stays as it is, and may go on forward.
        Pause: The process is left; the run goes on later.
    """
    record = rotation.record()
    unasked = record.direction == "back" or not record.new  # nothing was minted: there is no change to be asked about
    if unasked or rotation.kind == "expired":  # what took the place of something expired cannot be taken back
        back(rotation)
        return
    steps.recall(rotation)
    way_back_approved(rotation, lambda: rotation.plan(rotation.recent()))
    back(rotation)


def back(rotation: Rotation, why: str = "it was asked for") -> None:
    """Turn the rotation round and take it back to what there was before. Killed anywhere and run again, it goes on.

    Asks for no approval: call it once the way back is decided, by `roll_back_when_approved` or by a rejection.

    Raises:
        As `roll_back_when_approved`, but for the approval.
    """
    if rotation.direction == "forward":
        steps.recall(rotation)  # before anything is changed: all that the way back needs is there, and is good
    if rotation.record().outcome == ROLLED_BACK:
        return
    steps.turn_back(rotation, FlowRunClaimant().claim(rotation.now()), why=why)
    if rotation.retired is not None and rotation.kind == "issuer":
        if steps.locate(rotation) is not Phase.DONE or steps.pending(rotation, Phase.ISSUE):
            issuer_again(rotation)
    elif rotation.retired is not None and rotation.kind == "re-date":
        redate_again(rotation)
    elif rotation.retired is not None and rotation.kind == "webhooks":
        webhooks_again(rotation)
    elif rotation.retired is not None:
        if steps.locate(rotation).number <= Phase.TRUST.number or steps.pending(rotation, Phase.TRUST):
            trust_again(rotation)
        if steps.pending(rotation, Phase.ISSUE):
            issue_again(rotation)
        distrust_new(rotation)
    steps.finish(rotation)


def goes_back_by_itself(rotation: Rotation, forward: bool) -> bool:
    """Whether a run of the rotation goes on with the way back that a rejection began.

    The word to go forward again is a parameter of the run, and a run starts at the top each time it has left its
    process: it must not take back the rejection that came in the run itself.
    """
    record = rotation.record()
    own = FlowRunClaimant().claim(rotation.now())
    return rejected(record) and (not forward or (own is not None and rejected(record, own)))


def trust_again(rotation: Rotation) -> None:
    """Bundle the old anchor with the new one again, and restart whoever does not hold it.

    There is no gate before it: a root more is trusted, so that it can only mend what is broken. Istio's replicas are
    started anew even where they hold it: what was written before the turn may still be on its way to them.
    """
    with rotation.phase(Phase.TRUST):
        for cluster in rotation.systems:
            steps.widen_bundle(rotation, cluster)
        rolled_out(rotation, Phase.TRUST)
        await_gate(rotation, Phase.ISSUE)


def issue_again(rotation: Rotation) -> None:
    """Write the old issuer back where it was replaced, and wait until nobody presents a leaf of the new one.

    Identity is restarted even where its issuer was never seen to be replaced: what it has in memory cannot be read.
    """
    with rotation.phase(Phase.ISSUE):
        await_gate(rotation, Phase.ISSUE)
        _issuers_written_back(rotation)
        await_gate(rotation, Phase.DISTRUST)


def issuer_again(rotation: Rotation) -> None:
    """Write the old issuer back, and wait until nobody presents a leaf of the new one; both are under trusted roots."""
    with rotation.phase(Phase.ISSUE):
        await_gate(rotation, Phase.ISSUE)
        _issuers_written_back(rotation)
        await_gate(rotation, Phase.DONE)


def _issuers_written_back(rotation: Rotation) -> None:
    for cluster in rotation.systems:
        steps.switch_issuer(rotation, cluster)
        steps.restart_control_plane(rotation, cluster, Phase.ISSUE)
        if rotation.restarts_workloads(Phase.ISSUE):
            steps.restart_data_plane(rotation, cluster, Phase.ISSUE)


def redate_again(rotation: Rotation) -> None:
    """Write the root's certificate of before again, and wait until everybody has it; either verifies all leaves."""
    with rotation.phase(Phase.TRUST):
        for cluster in rotation.systems:
            steps.redate_root(rotation, cluster)
            steps.restart_redated(rotation, cluster)
        await_gate(rotation, Phase.DONE)


def webhooks_again(rotation: Rotation) -> None:
    """The way of webhook certificates with old and new exchanged: caBundles hold both while Secrets are put back."""
    if steps.locate(rotation).number <= Phase.TRUST.number:
        with rotation.phase(Phase.TRUST):
            for hook in rotation.systems:
                steps.widen_ca_bundle(rotation, hook)
            await_gate(rotation, Phase.ISSUE)
    if steps.pending(rotation, Phase.ISSUE):
        with rotation.phase(Phase.ISSUE):
            await_gate(rotation, Phase.ISSUE)
            steps.settle_ca_bundle(rotation)
            for hook in rotation.systems:
                steps.switch_serving(rotation, hook)
            steps.reload_serving(rotation)
            await_gate(rotation, Phase.DISTRUST)
    with rotation.phase(Phase.DISTRUST):
        if steps.locate(rotation) is not Phase.DONE:
            await_gate(rotation, Phase.DISTRUST)
            for hook in rotation.systems:
                steps.narrow_ca_bundle(rotation, hook)
        await_gate(rotation, Phase.DONE)


def distrust_new(rotation: Rotation) -> None:
    """Make every bundle what it was, restart whoever holds more, and show that the new anchor is refused."""
    with rotation.phase(Phase.DISTRUST):
        if steps.locate(rotation) is not Phase.DONE:
            await_gate(rotation, Phase.DISTRUST)
            narrowed(rotation)
        else:
            taken_over_unseen(rotation, Phase.DISTRUST)
        refusal_proven(rotation)
