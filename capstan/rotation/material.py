"""The key material of one rotation: minted once into the vault, met again there by every later run.

Only this module and the refusal probe hold private keys, each inside one call.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from capstan.errors import GateRefused, InvalidCertificate
from capstan.pki.bundle import Bundle
from capstan.pki.mint import IssuerPolicy, Minted, RootPolicy, mint_issuer, mint_root
from capstan.pki.verify import STRICT, verify_issuer
from capstan.systems.base import IssuerMaterial
from capstan.vaults.base import ROTATION_TAG, Reference, State, Vault
from capstan.vaults.material import Material

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from capstan.config import RotationPolicy
    from capstan.pki.inspect import Certificate

_GENERATION = re.compile(r" G[1-9][0-9]*$")


@dataclass(frozen=True, slots=True)
class Target:
    """One side of a rotation: public certificates only.

    Attributes:
        root: The new root; of what there was before, the root of the (first cluster's) issuer.
        issuers: Cluster name -> its issuer.
        references: Vault entries, by purpose (`root`, `issuer/CLUSTER`). Of what there was before, an issuer has one
            only where it was ever replaced.
    """

    root: Certificate
    issuers: Mapping[str, Certificate]
    references: Mapping[str, Reference]


def secret_name(domain: str, purpose: str) -> str:
    """Name of a vault secret: letters, digits and hyphens, as Key Vault demands."""
    return f"capstan-{domain}-{purpose}".replace("/", "-")


def root_policy(current: Certificate, policy: RotationPolicy) -> RootPolicy:
    """How the next root looks: the present one's name, with a generation that makes it distinct."""
    return RootPolicy(
        common_name=_GENERATION.sub("", current.common_name),
        validity=policy.root_validity,
        algorithm=policy.root_algorithm,
    )


def mint_target(
    vault: Vault,
    *,
    domain: str,
    rotation: str,
    old: Bundle,
    issuers: Mapping[str, Certificate],
    policy: RotationPolicy,
    now: datetime,
) -> Target:
    """The new root and one new issuer per cluster, from the vault; minted there if this rotation has none yet.

    Args:
        old: The roots to be replaced; the first self-signed one that the issuers chain to gives the name.
        issuers: Cluster name -> its present issuer, whose name the new one keeps.

    Raises:
        VerificationFailed: A verifier refuses what was minted (or what the vault held).
        Permanent, Retryable: As the vault.
    """
    tags = {ROTATION_TAG: rotation, "capstan-domain": domain}

    def new_root() -> Minted:
        shape = root_policy(_present_root(old, issuers), policy)
        return mint_root(shape, shape.next_generation(old), now)

    root_reference = vault.ensure(secret_name(domain, "root"), lambda: Material.of(new_root()), tags)
    root = vault.get(root_reference).minted(str(root_reference))
    references = {"root": root_reference}
    new_issuers: dict[str, Certificate] = {}
    for cluster, present in issuers.items():
        issuer_shape = IssuerPolicy(common_name=present.common_name, validity=policy.issuer_validity)
        reference = vault.ensure(
            secret_name(domain, f"issuer-{cluster}"), partial(_new_issuer, issuer_shape, root, now), tags
        )
        issuer = vault.get(reference).minted(str(reference))
        verify_issuer(issuer.certificate, [root.certificate], now, relax=STRICT)
        references[f"issuer/{cluster}"] = reference
        new_issuers[cluster] = issuer.certificate
    return Target(root.certificate, new_issuers, references)


def back_up_issuer(vault: Vault, *, domain: str, rotation: str, cluster: str, present: IssuerMaterial) -> Reference:
    """Keep a cluster's present issuer, once per rotation: the way back, and the key of the refusal probe.

    Raises:
        Permanent, Retryable: As the vault.
    """
    return vault.ensure(
        secret_name(domain, f"previous-issuer-{cluster}"),
        lambda: Material(present.chain_pem(), present.key.pem().decode("ascii"), where=f"issuer of {cluster}"),
        {ROTATION_TAG: rotation, "capstan-domain": domain},
    )


def issuer_material(vault: Vault, reference: Reference) -> IssuerMaterial:
    """An issuer with its key, to be written into the cluster.

    Raises:
        NotFound, InvalidInput, Retryable: As the vault.
    """
    kept = vault.get(reference)
    chain = Bundle.parse(kept.certificate_pem, str(reference)).certificates
    return IssuerMaterial.of(kept.minted(str(reference)), chain[1:])


def minted_before(vault: Vault, *, domain: str, rotation: str, clusters: Iterable[str]) -> Target:
    """What this rotation minted, as the vault has it; nothing is minted here.

    Raises:
        GateRefused: A part of it is not in the vault, or was destroyed.
        Permanent, Retryable: As the vault.
    """

    def kept(purpose: str) -> tuple[Reference, Certificate]:
        name = secret_name(domain, purpose)
        reference = entry(vault, rotation, name)
        if reference is None:
            raise GateRefused(
                "what this rotation minted cannot be read, so the way back cannot be taken or proven",
                where=f"{name} in {vault.url}",
                observed=f"no usable entry tagged rotation {rotation}",
                expected="the root and the issuers that it minted",
                next_command="use the vault that this rotation was begun with (--vault)",
            )
        return reference, vault.get(reference).minted(str(reference)).certificate

    root_reference, root = kept("root")
    references, issuers = {"root": root_reference}, {}
    for cluster in clusters:
        references[f"issuer/{cluster}"], issuers[cluster] = kept(f"issuer-{cluster}")
    return Target(root, issuers, references)


def previous_issuer(vault: Vault, *, domain: str, rotation: str, cluster: str) -> Reference | None:
    """The backup of the issuer that this rotation replaced; None if there is none that can be read."""
    return entry(vault, rotation, secret_name(domain, f"previous-issuer-{cluster}"))


def entry(vault: Vault, rotation: str, name: str) -> Reference | None:
    """The entry of this rotation under a name, if it can be read."""
    found = [each for each in vault.find({ROTATION_TAG: rotation}, name) if each.state is State.ENABLED]
    return found[-1] if found else None


def _new_issuer(policy: IssuerPolicy, root: Minted, now: datetime) -> Material:
    return Material.of(mint_issuer(policy, root, now))


def _present_root(old: Bundle, issuers: Mapping[str, Certificate]) -> Certificate:
    """The root that signs now; its name is the one to continue."""
    for issuer in issuers.values():
        for root in old:
            if issuer.signed_by(root) or issuer.fingerprint == root.fingerprint:
                return root
    raise InvalidCertificate(
        "no present issuer chains to a root of the bundle",
        observed=f"issuers {', '.join(c.fingerprint[:16] for c in issuers.values())}",
        expected=f"one of the roots {', '.join(root.fingerprint[:16] for root in old)}",
        next_command="capstan check",
    )
