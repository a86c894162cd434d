"""Linkerd's trust anchor and issuer, held by Helm, the CLI or plain objects: rotated without dropping a handshake.

Follows Linkerd's "Manually rotating control plane TLS credentials", in its order; what we do more is marked (+).
Why each barrier stands where it does: docs/linkerd.md, and `capstan.trust.explore`, which proves the order.
"""

from __future__ import annotations

from prefect import flow

from capstan.config import TrustDomain
from capstan.rotation import Outcome, Rotation
from capstan.trust.phase import Phase
from flows.directions import carried_out, taken_back
from flows.offline import mint_or_have_signed
from flows.phases import cleared, distrust, issue, renew, rolled_out
from flows.waiting import await_gate
from tasks import steps


@flow(
    name="linkerd-trust-anchor",
    flow_run_name="{domain.name}: rotate trust anchor",
    retries=0,
    persist_result=False,
    log_prints=False,
)
def rotate_trust_anchor(
    domain: TrustDomain, rotation: str | None = None, take_over: bool = False, forward: bool = False
) -> Outcome:
    """Rotate the trust anchor and the issuer of one trust domain.

    Killed anywhere and run again, it goes on from where the certificates say it is.

    Args:
        domain: The trust domain: its clusters, control plane, vault and policy.
        rotation: Id of this rotation; an unfinished one is gone on with, else a new one is named after today.
        take_over: Go on with a rotation that another, unfinished run has claimed: only if that run is never to go on.
        forward: Turn a rotation that is being rolled back, and go forward again; everything is asked for anew.
    """
    return carried_out(domain, rotation, to_another_anchor, kind="anchor", take_over=take_over, forward=forward)


@flow(
    name="linkerd-issuer",
    flow_run_name="{domain.name}: rotate issuer",
    retries=0,
    persist_result=False,
    log_prints=False,
)
def rotate_issuer(
    domain: TrustDomain, rotation: str | None = None, take_over: bool = False, forward: bool = False
) -> Outcome:
    """Rotate the issuer of one trust domain under the trust anchor there is.

    Nobody's trust changes, so that no workload is restarted: leaves renew by themselves. The new issuer is signed by
    the anchor's key in the vault, or by an anchor that is kept offline. Refused where the issuer is the anchor itself,
    as the CLI installs it by default: there the anchor has to be rotated, which gives it an issuer of its own.

    The replaced issuer stays trusted until it expires: to be rid of one whose key was stolen, rotate the anchor.

    Args:
        domain, rotation, take_over, forward: As `rotate_trust_anchor`.
    """
    return carried_out(domain, rotation, to_another_issuer, kind="issuer", take_over=take_over, forward=forward)


@flow(
    name="linkerd-roll-back",
    flow_run_name="{domain.name}: roll back",
    retries=0,
    persist_result=False,
    log_prints=False,
)
def roll_back(domain: TrustDomain, rotation: str | None = None, take_over: bool = False) -> Outcome:
    """Take a rotation back to the roots and issuers there were before it, from whatever phase it is in.

    It is asked for once, with the whole way back shown. A rotation that is complete can be taken back as long as the
    previous issuer is in the vault and has not expired. A run of the rotation that waits, or is suspended for an
    approval, is cancelled; one that is at work has to be cancelled first.

    Args:
        domain: The trust domain: its clusters, control plane, vault and policy.
        rotation: Id of the rotation; by default the one under way, else the last one.
        take_over: Go on with a rotation that another, unfinished run has claimed: only if that run is never to go on.
    """
    return taken_back(domain, rotation, take_over=take_over)


def to_another_anchor(rotation: Rotation) -> None:
    """The documented procedure, phase by phase; what an earlier run has done is passed over."""
    prepare(rotation)
    if steps.locate(rotation).number <= Phase.TRUST.number:
        trust(rotation)
    if steps.pending(rotation, Phase.ISSUE):
        # Replace the issuer; (+) wait until nobody presents a leaf of the old one. (+) Identity's Events can be lost
        # and its watcher can die: it is restarted, and what each replica signs is seen. The documented second restart
        # of every workload is by choice: leaves renew by themselves at 70 % of their life.
        issue(rotation)
    # Remove the old anchor from the bundle, and restart the control plane and every meshed workload; (+) a leaf of the
    # old anchor is refused by every live proxy.
    distrust(rotation)


def to_another_issuer(rotation: Rotation) -> None:
    """The same for the issuer alone, under the anchor there is."""
    prepare(rotation)
    if steps.locate(rotation) is not Phase.DONE:
        renew(rotation)


def prepare(rotation: Rotation) -> None:
    """Generate the new anchor and an issuer under it, or the issuer alone. Nothing in the cluster changes."""
    with rotation.phase(Phase.PREPARE):
        await_gate(rotation, Phase.PREPARE)  # (+) every live proxy can be read, and everyone trusts everyone
        steps.preflight(rotation)  # (+) refuse to begin on a mesh that is not healthy
        mint_or_have_signed(rotation)  # (+) into the vault, once; the root's key may stay offline; two verifiers agree


def trust(rotation: Rotation) -> None:
    """Bundle the new anchor with the old one, and restart the control plane and every meshed workload."""
    with rotation.phase(Phase.TRUST):
        cleared(rotation, Phase.TRUST)
        for cluster in rotation.systems:
            steps.widen_bundle(rotation, cluster)
        rolled_out(rotation, Phase.TRUST)
        # (+) the documented procedure trusts the restart; we ask every proxy what it holds.
        await_gate(rotation, Phase.ISSUE)
