"""The AKS Istio add-on with a plug-in CA in Azure Key Vault: its root and intermediate, without dropping a handshake.

Follows Microsoft's "Plug in CA certificates for Istio-based service mesh add-on on Azure Kubernetes Service", in its
order; what we do more is marked (+). A rotation makes new versions of four Key Vault secrets and asks nothing of ARM.

One thing is done otherwise, because it has to be: the documented root rotation goes from {A+B, signed by A} to {B,
signed by B} in one update. Until the last leaf is renewed, proxies that trust B alone then meet leaves under A, and
refuse them. Here the phase {A+B, signed by B} stands between (docs/aks.md; `capstan.trust.explore` shows both).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from prefect import flow

from capstan.config import TrustDomain
from capstan.errors import GateRefused
from capstan.rotation import Outcome, Rotation
from capstan.rotation.enabling import ID, Enabled
from capstan.rotation.material import Target
from capstan.trust.phase import Phase
from capstan.vaults.base import Vault
from capstan.vaults.opening import open_vault
from flows.directions import carried_out, taken_back
from flows.offline import Wanted, have_signed, mint_or_have_signed
from flows.phases import cleared, distrust, issue, renew, rolled_out, taken_over_unseen
from flows.running import running_without_rotation
from flows.waiting import await_gate
from tasks import steps


@flow(
    name="aks-istio-root",
    flow_run_name="{domain.name}: rotate root",
    retries=0,
    persist_result=False,
    log_prints=False,
)
def rotate_root(
    domain: TrustDomain, rotation: str | None = None, take_over: bool = False, forward: bool = False
) -> Outcome:
    """Rotate the root and the intermediate of the add-on.

    Killed anywhere and run again, it goes on from where the certificates say it is.

    Args:
        domain: The trust domain: its clusters, each with `plugin_ca`, vault and policy.
        rotation: Id of this rotation; an unfinished one is gone on with, else a new one is named after today.
        take_over: Go on with a rotation that another, unfinished run has claimed: only if that run is never to go on.
        forward: Turn a rotation that is being rolled back, and go forward again; everything is asked for anew.
    """
    return carried_out(domain, rotation, to_another_root, kind="anchor", take_over=take_over, forward=forward)


@flow(
    name="aks-istio-intermediate",
    flow_run_name="{domain.name}: rotate intermediate",
    retries=0,
    persist_result=False,
    log_prints=False,
)
def rotate_intermediate(
    domain: TrustDomain, rotation: str | None = None, take_over: bool = False, forward: bool = False
) -> Outcome:
    """Rotate the intermediate of the add-on under the root there is ("Intermediate certificate authority rotation").

    Nobody's trust changes. The replaced intermediate stays trusted until it expires: to be rid of one whose key was
    stolen, rotate the root.

    Args:
        domain, rotation, take_over, forward: As `rotate_root`.
    """
    return carried_out(domain, rotation, to_another_intermediate, kind="issuer", take_over=take_over, forward=forward)


@flow(
    name="aks-istio-enable",
    flow_run_name="{domain.name}: enable plug-in CA",
    retries=0,
    persist_result=False,
    log_prints=False,
)
def enable_plugin_ca(domain: TrustDomain, key_vault_id: str = "", revision: str = "", adopt: bool = False) -> Enabled:
    """Enable the add-on with a plug-in CA of its own, on clusters that do not have the add-on yet.

    Whoever launches it has decided it: there is no mesh yet whose traffic could be harmed, and on a running mesh with a
    self-signed root it refuses (Azure would have to disable the add-on first, which deletes the mesh).

    Args:
        domain: The trust domain: its clusters, each with `plugin_ca.cluster_id`, and the names of four secrets.
        key_vault_id: ARM id of the Key Vault; may be left out where every cluster's profile names it.
        revision: Revision of the add-on, such as `asm-1-30`; default: Azure's choice.
        adopt: Enable it with the CA that is in the Key Vault already; nothing is made, and nothing written there.
    """
    with running_without_rotation(domain):
        now, vault = utc_now, open_vault(domain.vault_url())
        access = steps.enable_guard(domain, key_vault_id)  # (+) before anything is made
        revisions = {}
        if adopt:
            target = steps.enable_adopt(domain, key_vault_id, now)  # (+) checked by the rules that istiod reads it with
        else:
            target = signed_or_minted(domain, vault)  # "generate root and intermediate": (+) once, in a vault
            for cluster in domain.clusters:
                # "Create secrets in Azure Key Vault": (+) checked first; (+) another CA there is never written over.
                steps.enable_upload(domain, cluster, key_vault_id, vault, target, now)
        for cluster in domain.clusters:
            # "Enable the secrets provider", (+) with rotation of secrets, and "enable the add-on": one request.
            revisions[cluster.name] = steps.enable_add_on(domain, cluster, key_vault_id, revision)
        steps.enable_await_signing(domain, target, now, time.sleep)  # (+) each istiod is asked for a leaf
        issuers = {name: issuer.fingerprint for name, issuer in target.issuers.items()}
        return Enabled(target.root.fingerprint, issuers, revisions, access)


@flow(
    name="aks-istio-roll-back",
    flow_run_name="{domain.name}: roll back",
    retries=0,
    persist_result=False,
    log_prints=False,
)
def roll_back(domain: TrustDomain, rotation: str | None = None, take_over: bool = False) -> Outcome:
    """Take a rotation back to the roots and the intermediate there were before it, from whatever phase it is in.

    The values there were are written again, as new versions. It is asked for once, with the whole way back shown. A run
    of the rotation that waits, or is suspended for an approval, is cancelled; one at work has to be cancelled first.

    Args:
        domain: The trust domain: its clusters, each with `plugin_ca`, vault and policy.
        rotation: Id of the rotation; by default the one under way, else the last one.
        take_over: Go on with a rotation that another, unfinished run has claimed: only if that run is never to go on.
    """
    return taken_back(domain, rotation, take_over=take_over)


def signed_or_minted(domain: TrustDomain, vault: Vault) -> Target:
    """The root and the intermediates of an add-on that is to be enabled."""
    if not domain.policy.offline_root:
        return steps.enable_mint(domain, vault, utc_now())
    target = steps.enable_recall_signed(domain, vault)
    if target is None:
        asked = steps.enable_request_signing(domain, vault)
        have_signed(
            Wanted(
                domain, ID, 1, "run the same command again", asked, utc_now() + domain.policy.approval_timeout,
                lambda text, where: steps.enable_accept_signed(domain, vault, asked, text, where, utc_now()),
                utc_now, time.sleep,
            )
        )  # fmt: skip
        target = steps.enable_recall_signed(domain, vault)
    if target is None:
        raise GateRefused(
            "the signed intermediates cannot be read back from the vault", where=vault.url,
            observed="no complete set of entries", expected="the entries that were just written",
            next_command="run the same command again",
        )  # fmt: skip
    return target


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def to_another_root(rotation: Rotation) -> None:
    """{A, signed by A} -> {A+B, signed by A} -> {A+B, signed by B} -> {B, signed by B}; passes over what is done."""
    prepare(rotation)
    if steps.pending(rotation, Phase.TRUST):
        trust(rotation)
    elif steps.pending(rotation, Phase.ISSUE):
        with rotation.phase(Phase.TRUST):  # proxies took it while nobody looked: istiods are still to be looked at
            taken_over_unseen(rotation, Phase.TRUST)
    if steps.pending(rotation, Phase.ISSUE):
        # (+) Update ca-cert, ca-key and cert-chain to B's; root-cert stays A+B: the documented procedure skips this.
        # Refused while any live proxy or istiod would not trust it; then each istiod is asked for a leaf.
        issue(rotation)
    # Update root-cert to B alone: the rest of the documented last step, once nothing under A is presented any more;
    # (+) a leaf under A is refused by every live proxy.
    distrust(rotation)


def to_another_intermediate(rotation: Rotation) -> None:
    """Update ca-cert, ca-key and cert-chain to another intermediate's; root-cert stays as it is."""
    prepare(rotation)
    if steps.locate(rotation) is not Phase.DONE:
        renew(rotation)  # the documented procedure ends with istiod's log; (+) every proxy is asked whose leaf it has


def prepare(rotation: Rotation) -> None:
    """Generate the new root and an intermediate, or the intermediate alone. Nothing in the Key Vault's four changes."""
    with rotation.phase(Phase.PREPARE):
        await_gate(rotation, Phase.PREPARE)  # (+) every proxy and every istiod can be read; everyone trusts everyone
        # (+) secret rotation is enabled, no revision is being upgraded unread, names of roots
        steps.preflight(rotation)
        mint_or_have_signed(rotation)  # (+) into the vault, once; the root's key may stay offline; two verifiers agree


def trust(rotation: Rotation) -> None:
    """Update the secret root-cert to A+B; the other three stay ("update Azure Key Vault secret root-cert")."""
    with rotation.phase(Phase.TRUST):
        cleared(rotation, Phase.TRUST)
        for cluster in rotation.systems:
            steps.widen_bundle(rotation, cluster)
        # "Wait for the time of --rotation-poll-interval", "verify that istiod has picked up the new CA": (+) each
        # istiod of each revision is asked for a leaf; then ConfigMaps and webhooks.
        rolled_out(rotation, Phase.TRUST)
        # "Wait for 24 hours, or restart workloads": (+) every proxy is asked what it holds, until its leaf would end.
        await_gate(rotation, Phase.ISSUE)
