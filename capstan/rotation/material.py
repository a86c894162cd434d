"""The key material of one rotation: minted once into the vault, met again there by every later run.

Only this module and the refusal probe hold private keys, each inside one call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from capstan.errors import GateRefused, InvalidCertificate
from capstan.pki.bundle import Bundle
from capstan.pki.mint import IssuerPolicy, Minted, RootPolicy, mint_issuer, mint_root
from capstan.pki.verify import STRICT, verify_issuer
from capstan.rotation.naming import root_name
from capstan.systems.base import IssuerMaterial
from capstan.vaults.base import ROTATION_TAG, Reference, State, Vault
from capstan.vaults.material import Material

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from capstan.config import RotationPolicy
    from capstan.pki.inspect import Certificate

DOMAIN_TAG = "capstan-domain"


@dataclass(frozen=True, slots=True)
class Target:
    """One side of a rotation: public certificates only.

    Attributes:
        root: The new root; of what there was before, the root of the (first cluster's) issuer.
        issuers: Cluster name -> its issuer.
        references: Vault entries, by purpose (`root`, `issuer/CLUSTER`). Of what there was before, an issuer has one
            only where it was ever replaced.
        anchored: Cluster -> the root its issuer chains to, where that is not `root`.
    """

    root: Certificate
    issuers: Mapping[str, Certificate]
    references: Mapping[str, Reference]
    anchored: Mapping[str, Certificate] = field(default_factory=dict)

    def anchors(self) -> dict[str, frozenset[str]]:
        """Cluster -> fingerprint of the root its issuer chains to, as a set."""
        return {c: frozenset({self.anchored.get(c, self.root).fingerprint}) for c in self.issuers}


def secret_name(domain: str, purpose: str) -> str:
    """Name of a vault secret: letters, digits and hyphens, as Key Vault demands."""
    return f"capstan-{domain}-{purpose}".replace("/", "-")


def root_policy(current: Certificate, policy: RotationPolicy) -> RootPolicy:
    """How the next root looks: the present one's name, with a generation that makes it distinct."""
    return RootPolicy(
        common_name=root_name(current),
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
    names: Mapping[str, str],
    policy: RotationPolicy,
    now: datetime,
) -> Target:
    """The new root and one new issuer per cluster, from the vault; minted there if this rotation has none yet.

    Args:
        old: The roots to be replaced; the first self-signed one that the issuers chain to gives the name.
        issuers: Cluster name -> its present issuer.
        names: Cluster name -> common name of its new issuer.

    Raises:
        VerificationFailed: A verifier refuses what was minted (or what the vault held).
        Permanent, Retryable: As the vault.
    """

    def new_root() -> Minted:
        shape = root_policy(present_root(old, issuers), policy)
        return mint_root(shape, shape.next_generation(old), now)

    root_reference = vault.ensure(
        secret_name(domain, "root"), lambda: Material.of(new_root()), tags_of(domain, rotation)
    )
    root = vault.get(root_reference).minted(str(root_reference))
    minted = mint_issuers(vault, root, domain=domain, rotation=rotation, names=names, policy=policy, now=now)
    return Target(minted.root, minted.issuers, {"root": root_reference, **minted.references})


def mint_issuers(
    vault: Vault,
    root: Minted,
    *,
    domain: str,
    rotation: str,
    names: Mapping[str, str],
    policy: RotationPolicy,
    now: datetime,
) -> Target:
    """One new issuer per cluster under this root, from the vault; minted there if this rotation has none yet.

    Args:
        names: Cluster name -> common name of its new issuer.

    Raises:
        VerificationFailed: A verifier refuses what was minted (or what the vault held).
        InvalidInput: An issuer would outlive the root.
        Permanent, Retryable: As the vault.
    """
    tags = tags_of(domain, rotation)
    references: dict[str, Reference] = {}
    new_issuers: dict[str, Certificate] = {}
    for cluster, name in names.items():
        issuer_shape = IssuerPolicy(common_name=name, validity=policy.issuer_validity)
        reference = vault.ensure(
            secret_name(domain, f"issuer-{cluster}"), partial(_new_issuer, issuer_shape, root, now), tags
        )
        issuer = vault.get(reference).minted(str(reference))
        verify_issuer(issuer.certificate, [root.certificate], now, relax=STRICT)
        references[f"issuer/{cluster}"] = reference
        new_issuers[cluster] = issuer.certificate
    return Target(root.certificate, new_issuers, references)


def signing_root(vault: Vault, root: Certificate, *, domain: str) -> Minted | None:
    """A root with its key, if an entry of this domain in the vault holds it; None if none does.

    It is there where Capstan minted the root, or backed it up as an issuer that was a root itself.

    Raises:
        Permanent, Retryable: As the vault.
    """
    for reference in vault.find({DOMAIN_TAG: domain}):
        if reference.fingerprint == root.fingerprint and reference.state is State.ENABLED:
            kept = vault.get(reference)
            if kept.has_private_key:
                return kept.minted(str(reference))
    return None


def back_up_issuer(vault: Vault, *, domain: str, rotation: str, cluster: str, present: IssuerMaterial) -> Reference:
    """Keep a cluster's present issuer, once per rotation: the way back, and the key of the refusal probe.

    Raises:
        Permanent, Retryable: As the vault.
    """
    return vault.ensure(
        secret_name(domain, f"previous-issuer-{cluster}"),
        lambda: Material(present.chain_pem(), present.key.pem().decode("ascii"), where=f"issuer of {cluster}"),
        tags_of(domain, rotation),
    )


def issuer_material(vault: Vault, reference: Reference) -> IssuerMaterial:
    """An issuer with its key, to be written into the cluster.

    Raises:
        NotFound, InvalidInput, Retryable: As the vault.
    """
    kept = vault.get(reference)
    chain = Bundle.parse(kept.certificate_pem, str(reference)).certificates
    return IssuerMaterial.of(kept.minted(str(reference)), chain[1:], kept_in(reference))


def kept_in(reference: Reference) -> str:
    """Where an entry is, for a person, with the command that reads it where there is one."""
    where = f"{reference.name}, version {reference.version}, in {reference.vault}"
    if not reference.vault.startswith("https://"):
        return where
    identifier = f"{reference.vault.rstrip('/')}/secrets/{reference.name}/{reference.version}"
    return f"{where}: az keyvault secret show --id {identifier} --query value -o tsv"


def minted_before(
    vault: Vault, *, domain: str, rotation: str, clusters: Iterable[str], root: Certificate | None = None
) -> Target:
    """What this rotation minted, as the vault has it; nothing is minted here.

    Args:
        root: The issuers' root where the vault has no entry of it: kept offline, or there before the rotation.

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

    references: dict[str, Reference] = {}
    issuers: dict[str, Certificate] = {}
    if root is None:
        references["root"], root = kept("root")
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


def tags_of(domain: str, rotation: str) -> dict[str, str]:
    """Tags of every entry of a rotation."""
    return {ROTATION_TAG: rotation, DOMAIN_TAG: domain}


def present_root(old: Bundle, issuers: Mapping[str, Certificate]) -> Certificate:
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
