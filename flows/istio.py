"""Upstream Istio: root and intermediate, plugged in (`cacerts`) or self-signed, turned without dropping a handshake.

Follows what Istio's own test of the plug-in CA does and its vendors prescribe (A -> A+B -> A+B signed by B -> B), in
that order; what we do more is marked (+). Istio's documentation of the plug-in CA has no rotation at all; that of the
self-signed root (`root-transition.sh`) keeps the key, and is `redate_root` here. Why each barrier stands where it does:
docs/istio.md, and `capstan.trust.explore`, which proves the order.

What a step means for Istio: a proxy takes roots and leaf together, from whichever istiod it asks next. So every istiod
has to hold a thing before any proxy is waited for, and proxies are waited for and not restarted, unless the domain's
policy says so.
"""

from __future__ import annotations

from prefect import flow

from capstan.config import TrustDomain
from capstan.rotation import Outcome, Rotation
from capstan.trust.phase import Phase
from flows.approval import redate_approved
from flows.directions import carried_out, taken_back
from flows.offline import mint_or_have_signed
from flows.phases import cleared, distrust, issue, renew, rolled_out, taken_over_unseen
from flows.running import running
from flows.waiting import await_gate, await_window
from tasks import steps


@flow(
    name="istio-root",
    flow_run_name="{domain.name}: rotate root",
    retries=0,
    persist_result=False,
    log_prints=False,
)
def rotate_root(
    domain: TrustDomain, rotation: str | None = None, take_over: bool = False, forward: bool = False
) -> Outcome:
    """Rotate the root and the intermediates of one mesh.

    Killed anywhere and run again, it goes on from where the certificates say it is. A self-signed mesh moves to
    `cacerts` by it: istiod has no way to another key of its own.

    Args:
        domain: The trust domain: its clusters, control plane, vault and policy.
        rotation: Id of this rotation; an unfinished one is gone on with, else a new one is named after today.
        take_over: Go on with a rotation that another, unfinished run has claimed: only if that run is never to go on.
        forward: Turn a rotation that is being rolled back, and go forward again; everything is asked for anew.
    """
    return carried_out(domain, rotation, to_another_root, kind="anchor", take_over=take_over, forward=forward)


@flow(
    name="istio-intermediate",
    flow_run_name="{domain.name}: rotate intermediate",
    retries=0,
    persist_result=False,
    log_prints=False,
)
def rotate_intermediate(
    domain: TrustDomain, rotation: str | None = None, take_over: bool = False, forward: bool = False
) -> Outcome:
    """Rotate the intermediates of one mesh under the root there is.

    Nobody's trust changes. The replaced intermediate stays trusted until it expires: to be rid of one whose key was
    stolen, rotate the root.

    Args:
        domain, rotation, take_over, forward: As `rotate_root`.
    """
    return carried_out(domain, rotation, to_another_intermediate, kind="issuer", take_over=take_over, forward=forward)


@flow(
    name="istio-redate",
    flow_run_name="{domain.name}: re-date root",
    retries=0,
    persist_result=False,
    log_prints=False,
)
def redate_root(
    domain: TrustDomain, rotation: str | None = None, take_over: bool = False, forward: bool = False
) -> Outcome:
    """Give a self-signed root another life: `root-transition.sh`, with the same key and the same name byte for byte.

    Cures an end that comes near, and no theft: for another key, rotate the root. It is asked for once.

    Args:
        domain: The trust domain: its clusters, control plane, vault and policy (`root_validity` is the new life).
        rotation: Id of this rotation; an unfinished one is gone on with, else a new one is named after today.
        take_over: Go on with a rotation that another, unfinished run has claimed: only if that run is never to go on.
        forward: Turn a re-date that is being rolled back, and go forward again; it is asked for anew.
    """
    with running(domain, rotation, take_over=take_over, kind="re-date") as opened:
        steps.face_forward(opened, again=forward)
        with opened.phase(Phase.PREPARE):
            await_gate(opened, Phase.PREPARE)  # check-root, check-version: (+) and everything that can be read
            steps.preflight(opened)
            steps.mint_redated(opened)  # (+) backed up and made in the vault; the key is never in a file
        if steps.locate(opened) is not Phase.DONE:
            with opened.phase(Phase.TRUST):
                await_gate(opened, Phase.TRUST)
                redate_approved(opened)
                await_window(opened, Phase.TRUST)
                for cluster in opened.systems:
                    steps.redate_root(opened, cluster)  # root-transition: (+) one entry replaced, nothing deleted
                    # (+) a running istiod or Citadel comes upon it late, or never
                    steps.restart_redated(opened, cluster)
                await_gate(opened, Phase.DONE)  # verify-certs: (+) every proxy, and not only the Secrets
        elif opened.signers_admit_as_they_began:
            with opened.phase(Phase.TRUST):  # (+) killed right after the write: proxies have it, istiod began before it
                for cluster in opened.systems:
                    steps.restart_redated(opened, cluster)
        steps.finish(opened)
        return opened.outcome()


@flow(
    name="istio-roll-back",
    flow_run_name="{domain.name}: roll back",
    retries=0,
    persist_result=False,
    log_prints=False,
)
def roll_back(domain: TrustDomain, rotation: str | None = None, take_over: bool = False) -> Outcome:
    """Take a rotation back to the roots and intermediates there were before it, from whatever phase it is in.

    It is asked for once, with the whole way back shown. A rotation that is complete can be taken back as long as the
    previous intermediate is in the vault and has not expired. A run of the rotation that waits, or is suspended for an
    approval, is cancelled; one that is at work has to be cancelled first.

    Args:
        domain: The trust domain: its clusters, control plane, vault and policy.
        rotation: Id of the rotation; by default the one under way, else the last one.
        take_over: Go on with a rotation that another, unfinished run has claimed: only if that run is never to go on.
    """
    return taken_back(domain, rotation, take_over=take_over)


def to_another_root(rotation: Rotation) -> None:
    """{A, signed by A} -> {A+B, signed by A} -> {A+B, signed by B} -> {B, signed by B}; passes over what is done."""
    prepare(rotation)
    if steps.pending(rotation, Phase.TRUST):
        trust(rotation)
    elif steps.pending(rotation, Phase.ISSUE):
        with rotation.phase(Phase.TRUST):  # proxies took it while nobody looked: istiods are still to be looked at
            taken_over_unseen(rotation, Phase.TRUST)
    if steps.pending(rotation, Phase.ISSUE):
        # The intermediate := B's, root-cert.pem still A+B; leaves renew at half of their life. (+) Refused while any
        # live proxy or istiod would not trust it; then each istiod is asked for a leaf.
        issue(rotation)
    # root-cert.pem := B alone, once no istiod signs and no proxy presents what is under A, (+) with one restart of
    # istiod: whom it lets in by certificate it has known since its start. (+) Every live proxy refuses a leaf under A.
    distrust(rotation)


def to_another_intermediate(rotation: Rotation) -> None:
    """The intermediate := another one under the same root; leaves renew at half of their life."""
    prepare(rotation)
    if steps.locate(rotation) is not Phase.DONE:
        renew(rotation)


def prepare(rotation: Rotation) -> None:
    """Generate the new root and an intermediate under it, or the intermediate alone. Nothing in the mesh changes."""
    with rotation.phase(Phase.PREPARE):
        await_gate(rotation, Phase.PREPARE)  # (+) every proxy and every istiod can be read; everyone trusts everyone
        steps.preflight(rotation)  # (+) istiod's own rules for its files, versions that lose roots, names of roots
        mint_or_have_signed(rotation)  # (+) into the vault, once; the root's key may stay offline; two verifiers agree


def trust(rotation: Rotation) -> None:
    """root-cert.pem := A+B, the signer as it is; every istiod hands out both before any proxy is waited for."""
    with rotation.phase(Phase.TRUST):
        cleared(rotation, Phase.TRUST)
        for cluster in rotation.systems:
            # Exact bytes, old text first: istiod up to 1.29 takes a changed bundle only if one text contains the other.
            steps.widen_bundle(rotation, cluster)
        # (+) proven replica by replica: reloaded, or restarted where version and flags cannot reload; then the
        # ConfigMaps of all namespaces and the webhooks' caBundle.
        rolled_out(rotation, Phase.TRUST)
        # (+) vendors wait for 24 h, or restart and hope; we ask every proxy what it holds, until its leaf would end.
        await_gate(rotation, Phase.ISSUE)
