"""Phase 1: is the domain fit, and what will it turn to? Nothing in the cluster changes but our own record."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from capstan.audit import audited_step
from capstan.errors import GateRefused
from capstan.progress import watcher
from capstan.rotation import material
from capstan.rotation.naming import issuer_name
from capstan.rotation.session import NEW_ROOT
from capstan.systems.base import Severity, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from capstan.cluster.record import RotationRecord
    from capstan.pki.bundle import Bundle
    from capstan.pki.inspect import Certificate
    from capstan.pki.mint import Minted
    from capstan.rotation.material import Target
    from capstan.rotation.session import Rotation
    from capstan.systems.base import CheckResult
    from capstan.trust.observation import Fingerprint
    from capstan.vaults.base import Vault

# A pod that is just coming or going fails a check for a moment; a mesh that is not healthy fails it each time.
PATIENCE = 4.0
BETWEEN_LOOKS = 2.0
RESUMED_PATIENCE = 60.0
"""Seconds: where this rotation has written before, a rollout that it began may still be under way."""


def preflight(rotation: Rotation) -> None:
    """Refuse to begin (or to go on) on a domain whose checks fail.

    A rotation that was killed between a write and its taking over is met with readers that hold what was there before.
    Its steps, and nothing else, will bring them on: that is no reason to refuse to take them. What they hold has to be
    of this rotation, though.

    Raises:
        GateRefused: A check whose failure is fatal or an error failed; names each with its hint.
    """
    with audited_step("preflight"):
        watcher().step("preflight checks")
        own = _own_material(rotation)
        until = rotation.now() + timedelta(seconds=RESUMED_PATIENCE if own else PATIENCE)
        failed, told = [], ""
        for name, system in rotation.systems.items():
            while True:
                results = system.checks(now=rotation.now())
                bad = _failing(results, own)
                if not bad or rotation.now() >= until:
                    break
                why = f"{name} fails: {'; '.join(each.description for each in bad)}"
                if why != told:
                    watcher().note(f"looking again for up to {(until - rotation.now()).total_seconds():.0f} s: {why}")
                    told = why
                rotation.sleep(BETWEEN_LOOKS)
            failed += [f"{name}: {result.description}: {result.message} ({result.hint})" for result in bad]
            counts = {status.value: sum(r.status is status for r in results) for status in Status}
            rotation.note("preflight", {"cluster": name, **counts})
        if failed:
            raise GateRefused(
                f"{len(failed)} preflight checks failed",
                where=f"trust domain {rotation.domain.name}",
                observed="\n            ".join(failed),
                expected="no check that fails",
                next_command="capstan check",
            )


def _own_material(rotation: Rotation) -> frozenset[Fingerprint]:
    """Roots and issuers of before and after; none before anything was minted, for then nothing was written either."""
    record = rotation.record()
    if not record.new and not record.issuers:
        return frozenset()
    issuers = {*record.issuers_before.values(), *record.issuers.values()}
    return record.old | issuers | ({record.new} if record.new else set())


def _failing(results: Iterable[CheckResult], own: frozenset[Fingerprint]) -> list[CheckResult]:
    """Failures that count; where the rotation has written, not those which it is in the middle of curing."""
    return [
        result
        for result in results
        if result.status is Status.ERROR
        and result.level is not Severity.WARNING
        and not (own and result.lagging is not None and result.lagging <= own)
    ]


def mint(rotation: Rotation) -> None:
    """Mint the new root and each cluster's new issuer into the vault, once per rotation, and verify them twice.

    Of a rotation of the issuers alone: the issuers, under the present root, whose key has to be in the vault.

    Raises:
        VerificationFailed: A verifier refuses the new material.
        GateRefused: The present root's key, which is to sign, is not in the vault.
    """
    with audited_step("mint"):
        what = "new root and " if rotation.kind == "anchor" else ""
        watcher().step("mint", f"{what}{len(rotation.systems)} issuer(s) into {rotation.vault.url}")
        issuers = present_issuers(rotation)
        domain, policy, now = rotation.domain, rotation.domain.policy, rotation.now()
        names = {name: issuer_name(domain.system, name, present) for name, present in issuers.items()}
        if rotation.kind == "anchor":
            target = material.mint_target(
                rotation.vault, domain=domain.name, rotation=rotation.id, old=rotation.old,
                issuers=issuers, names=names, policy=policy, now=now,
            )  # fmt: skip
        else:
            target = material.mint_issuers(
                rotation.vault, root_with_key(rotation.vault, domain.name, rotation.original, issuers),
                domain=domain.name, rotation=rotation.id,
                names=names, policy=policy, now=now,
            )  # fmt: skip
        keep_target(rotation, target)


def keep_target(rotation: Rotation, target: Target) -> None:
    """Make this what the rotation goes to, and write down what it is: fingerprints, and where the vault has it."""
    rotation.target = target
    references = {purpose: f"{ref.name}@{ref.version}" for purpose, ref in target.references.items()}
    elsewhere = {} if "root" in target.references else {NEW_ROOT: target.root.pem()}
    issuers = {name: issuer.fingerprint for name, issuer in target.issuers.items()}
    for name, store in rotation.stores.items():
        minted = {"new": target.root.fingerprint, "issuer": issuers[name], "issuers": issuers}
        store.update(partial(_with_minted, minted, references, elsewhere))
    rotation.note(
        "minted",
        {
            "root": {
                "fingerprint": target.root.fingerprint,
                "subject": target.root.subject,
                "not_after": target.root.not_after.isoformat(),
                "key": target.root.key_algorithm,
            },
            "issuers": {
                name: {"fingerprint": issuer.fingerprint, "not_after": issuer.not_after.isoformat()}
                for name, issuer in target.issuers.items()
            },
            "vault": references,
            "verified_by": ["cryptography", "OpenSSL"],
        },
    )


def _with_minted(
    minted: Mapping[str, object], references: dict[str, str], notes: dict[str, str], record: RotationRecord
) -> RotationRecord:
    return record.model_copy(
        update={**minted, "vault": {**record.vault, **references}, "notes": {**record.notes, **notes}}
    )


def root_with_key(vault: Vault, domain: str, roots: Bundle, issuers: Mapping[str, Certificate]) -> Minted:
    """The root that the issuers are under, with its key: it signs new ones.

    Args:
        domain: Name of the trust domain.
        roots: As they are trusted.
        issuers: Cluster -> its issuer.

    Raises:
        GateRefused: As `signing_root_of`; or its key is not in the vault.
    """
    root = signing_root_of(roots, issuers)
    found = material.signing_root(vault, root, domain=domain)
    if found is None:
        raise no_key(root, vault.url)
    return found


def no_key(root: Certificate, vault: str) -> GateRefused:
    """A vault does not hold the key of the root that is to sign."""
    return GateRefused(
        "no new issuer can be minted: the present root's key is not in the vault",
        where=f"root {root.common_name or root.subject} {root.fingerprint[:16]}, vault {vault}",
        observed="no usable entry of this trust domain with that certificate and its key",
        expected="the vault that the root was minted into; or a root that is kept offline",
        next_command="use that vault (--vault); or set policy offline_root: true, and sign with `capstan sign`; "
        "or give the domain another root: capstan rotate",
    )


def signing_root_of(roots: Bundle, issuers: Mapping[str, Certificate]) -> Certificate:
    """The present root, under which new issuers can be had.

    On a later run the issuers may be the new ones already: they are under the same root.

    Raises:
        GateRefused: A cluster signs with the root itself: there is no issuer to be replaced.
    """
    signing = {name: issuer for name, issuer in issuers.items() if issuer.fingerprint in roots.fingerprints}
    if signing:
        raise GateRefused(
            "there is no issuer to rotate: leaves are signed by the root itself",
            where=f"cluster {', '.join(sorted(signing))}",
            observed="; ".join(f"{c.subject} {c.fingerprint[:16]} signs leaves" for c in signing.values()),
            expected="an issuing CA under the root",
            next_command="rotate the root: the new one gets an issuer under it (capstan rotate --what root)",
        )
    return material.present_root(roots, issuers)


def present_issuers(rotation: Rotation) -> dict[str, Certificate]:
    """Each cluster's present issuer; on a later run, when it may be the new one already, that serves for its name."""
    observation = rotation.recent()
    issuers = {}
    for cluster in observation.clusters:
        if cluster.issuer is None:
            raise GateRefused(
                "the present issuer cannot be read",
                where=f"cluster {cluster.name}",
                observed="no readable issuer",
                expected="the issuer that the control plane signs with",
                next_command="capstan check",
            )
        issuers[cluster.name] = rotation.systems[cluster.name].certificates()[cluster.issuer.fingerprint]
    return issuers
