"""Phase 1: is the domain fit, and what will it turn to? Nothing in the cluster changes but our own record."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from capstan.audit import audited_step
from capstan.errors import GateRefused
from capstan.progress import watcher
from capstan.rotation import material
from capstan.systems.base import Severity, Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capstan.cluster.record import RotationRecord
    from capstan.pki.inspect import Certificate
    from capstan.rotation.session import Rotation
    from capstan.systems.base import CheckResult

# A pod that is just coming or going fails a check for a moment; a mesh that is not healthy fails it each time.
FURTHER_LOOKS = 2
BETWEEN_LOOKS = 2.0


def preflight(rotation: Rotation) -> None:
    """Refuse to begin (or to go on) on a domain whose checks fail.

    Raises:
        GateRefused: A check whose failure is fatal or an error failed; names each with its hint.
    """
    with audited_step("preflight"):
        watcher().step("preflight checks")
        failed = []
        for name, system in rotation.systems.items():
            results = system.checks(now=rotation.now())
            bad = _failing(results)
            for _ in range(FURTHER_LOOKS):
                if not bad:
                    break
                rotation.sleep(BETWEEN_LOOKS)
                results = system.checks(now=rotation.now())
                bad = _failing(results)
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


def _failing(results: Iterable[CheckResult]) -> list[CheckResult]:
    return [result for result in results if result.status is Status.ERROR and result.level is not Severity.WARNING]


def mint(rotation: Rotation) -> None:
    """Mint the new root and each cluster's new issuer into the vault, once per rotation, and verify them twice.

    Raises:
        VerificationFailed: A verifier refuses the new material.
    """
    with audited_step("mint"):
        watcher().step("mint", f"new root and {len(rotation.systems)} issuer(s) into {rotation.vault.url}")
        issuers = _present_issuers(rotation)
        target = material.mint_target(
            rotation.vault,
            domain=rotation.domain.name,
            rotation=rotation.id,
            old=rotation.old,
            issuers=issuers,
            policy=rotation.domain.policy,
            now=rotation.now(),
        )
        rotation.target = target
        references = {purpose: f"{ref.name}@{ref.version}" for purpose, ref in target.references.items()}
        for name, store in rotation.stores.items():
            minted = {"new": target.root.fingerprint, "issuer": target.issuers[name].fingerprint}
            store.update(partial(_with_minted, minted, references))
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


def _with_minted(minted: dict[str, str], references: dict[str, str], record: RotationRecord) -> RotationRecord:
    return record.model_copy(update={**minted, "vault": {**record.vault, **references}})


def _present_issuers(rotation: Rotation) -> dict[str, Certificate]:
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
