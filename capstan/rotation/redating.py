"""The steps of a re-date: Istio's self-signed root with the same key, the same name and another life.

What `root-transition.sh` of Istio's documentation does by hand. It cures an end that comes near, and no theft: who has
the old key has the new one's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from capstan.audit import audited_step
from capstan.errors import InvalidInput
from capstan.pki.mint import Minted
from capstan.progress import watcher
from capstan.rotation import material
from capstan.rotation.changing import Counting, note_changes, note_restarts, stamp_of
from capstan.rotation.preparing import keep_target
from capstan.systems.istio import redate
from capstan.systems.istio.adapter import Istio
from capstan.trust.phase import Phase
from capstan.vaults.material import Material

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, timedelta

    from capstan.pki.inspect import Certificate
    from capstan.rotation.session import Rotation
    from capstan.systems.base import IssuerMaterial, TrustSystem
    from capstan.vaults.base import Reference


def mint_redated(rotation: Rotation) -> None:
    """Make each cluster's root anew with another life, in the vault, once per rotation.

    The root as it is, with its key, is backed up there first: the way back.

    Raises:
        InvalidInput: This is no Istio, or the new root would not end later.
        GateRefused: A plug-in CA is in use, so that this root is not what signs.
        InvalidCertificate: What signs is no self-signed root.
        Permanent, Retryable: As the vault and the clusters.
    """
    with audited_step("mint-redated"):
        issuers: dict[str, Certificate] = {}
        references: dict[str, Reference] = {}
        domain, tags = rotation.domain, material.tags_of(rotation.domain.name, rotation.id)
        for name in rotation.systems:
            istio = _istio(rotation, name)
            redate.require_self_signed(istio.cluster, istio.namespace)
            present = redate.present(istio.cluster, istio.namespace)
            watcher().step("re-date", f"{present.certificate.subject} of cluster {name}, into {rotation.vault.url}")
            if present.certificate.fingerprint == rotation.issuers_before.get(name):
                material.back_up_issuer(
                    rotation.vault, domain=domain.name, rotation=rotation.id, cluster=name, present=present
                )
            validity, now = domain.policy.root_validity, rotation.now()
            reference = rotation.vault.ensure(
                material.secret_name(domain.name, f"issuer-{name}"), partial(_redated, present, validity, now), tags
            )
            references[f"issuer/{name}"] = reference
            issuers[name] = rotation.vault.get(reference).minted(str(reference)).certificate
        root = next(iter(issuers.values()))
        keep_target(rotation, material.Target(root, issuers, references, dict(issuers)))


def redate_root(rotation: Rotation, cluster: str) -> None:
    """Write the re-dated certificate where the cluster's root is kept; nothing is deleted.

    On the way back the certificate there was is written again.

    Raises:
        GateRefused: A plug-in CA is in use. OwnedElsewhere, Conflict: As for every write. Nothing was written.
    """
    with audited_step(f"redate-root/{cluster}"):
        rotation.acted()
        watcher().step("root := the same with another life", cluster)
        istio, new = _istio(rotation, cluster), rotation.required_target().issuers[cluster]
        changes = redate.ensure_redated(istio.cluster, istio.namespace, new, now=rotation.now(), accept=istio.accept)
        note_changes(rotation, "root-redated", cluster, changes)


def restart_redated(rotation: Rotation, cluster: str) -> None:
    """Start every istiod (or Citadel) of the cluster anew, once per turn of the rotation.

    Raises:
        GateTimedOut: A restart did not end in time.
    """
    with audited_step(f"restart-redated/{cluster}"):
        rotation.acted()
        watcher().step("restart what signs", cluster)
        istio, counting = _istio(rotation, cluster), Counting(rotation)
        report = redate.restart_signers(
            istio.cluster, istio.namespace, stamp_of(rotation, Phase.TRUST),
            seconds=rotation.domain.policy.restart_deadline.total_seconds(), on_progress=counting, now=rotation.now,
        )  # fmt: skip
        note_restarts(rotation, cluster, Phase.TRUST, "control plane", report, counting.ended)


def require_redatable(systems: Iterable[TrustSystem], validity: timedelta, now: datetime) -> None:
    """Refuse what `mint_redated` would refuse, before anything is made.

    Raises:
        As `mint_redated`.
    """
    for system in systems:
        if isinstance(system, Istio):
            redate.require_self_signed(system.cluster, system.namespace)
            redate.redated(redate.present(system.cluster, system.namespace), validity, now)


def _redated(present: IssuerMaterial, validity: timedelta, now: datetime) -> Material:
    return Material.of(Minted(redate.redated(present, validity, now), present.key))


def _istio(rotation: Rotation, cluster: str) -> Istio:
    system = rotation.systems[cluster]
    if not isinstance(system, Istio):
        raise InvalidInput(
            "only Istio has a self-signed root that is re-dated", where=f"cluster {cluster}",
            observed=f"trust system {rotation.domain.system.value}", expected="trust system istio",
            next_command="capstan rotate",
        )  # fmt: skip
    return system
