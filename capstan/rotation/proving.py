"""The end: show that the old root is refused by every live proxy, and close the account."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from capstan.audit import audited_step
from capstan.errors import GateRefused, NotYet
from capstan.pki.mint import mint_leaf
from capstan.progress import watcher
from capstan.rotation import material
from capstan.rotation.accounts import EVIDENCE_HEAD
from capstan.systems.base import Verdict
from capstan.vaults.base import ROTATION_TAG

if TYPE_CHECKING:
    from capstan.rotation.session import Rotation
    from capstan.vaults.base import Reference

# Life of the leaf that is presented to show that its root is refused. It exists in memory only.
PROBE_LIFE = timedelta(minutes=10)


def prove_refusal(rotation: Rotation) -> None:
    """Present a leaf of the old issuer, and one of the new, to every live proxy: the first is refused, the second not.

    Raises:
        GateRefused: A proxy still accepts the old root, or refuses the new one.
        NotYet: A proxy gave no answer; that is never proof of a refusal.
    """
    with audited_step("prove-refusal"):
        for cluster, system in rotation.systems.items():
            watcher().step("prove that the old root is refused", cluster)
            previous = _previous_issuer(rotation, cluster)
            wrong: list[str] = []
            silent: list[str] = []
            asked = 0
            for which, reference, wanted in (
                ("old", previous, Verdict.REFUSED),
                ("new", rotation.required_target().references[f"issuer/{cluster}"], Verdict.ACCEPTED),
            ):
                issuer = rotation.vault.get(reference).minted(str(reference))
                remaining = issuer.certificate.not_after - rotation.now()
                leaf = mint_leaf(
                    issuer,
                    f"capstan-probe.{rotation.domain.name}.invalid",
                    rotation.now(),
                    validity=min(PROBE_LIFE, remaining),
                )
                chain = f"{leaf.certificate.pem()}\n{issuer.certificate.pem()}\n".encode("ascii")
                report = system.probe(chain, leaf.key)
                asked = len(report.probes)
                silent += [f"{p.peer}: {p.detail}" for p in report.of(Verdict.NO_ANSWER)]
                wrong += [
                    f"{probe.peer} {probe.verdict.value} a leaf of the {which} root"
                    for probe in report.probes
                    if probe.verdict not in (wanted, Verdict.NO_ANSWER)
                ]
            rotation.note("probe", {"cluster": cluster, "asked": asked, "wrong": wrong[:50], "silent": silent[:50]})
            if wrong:
                rotation.old_root_refused = False
                raise GateRefused(
                    f"{len(wrong)} proxies judge the roots wrongly",
                    where=f"cluster {cluster}",
                    observed="; ".join(wrong[:10]),
                    expected="each refuses the old root's leaf and accepts the new root's",
                    next_command="capstan check",
                )
            if silent or not asked:
                raise NotYet(
                    f"{len(silent)} of {asked} proxies gave no answer to the probe",
                    waiting_for=silent,
                    where=f"cluster {cluster}",
                    observed="; ".join(silent[:10]) or "no live proxy",
                    expected="an answer from every live proxy",
                )
        rotation.old_root_refused = True


def finish(rotation: Rotation) -> None:
    """Close the account, then the record."""
    with audited_step("finish"):
        watcher().step("finish")
        rotation.evidence.finish(
            "completed",
            {"root": rotation.new_root.fingerprint, "retired": sorted(rotation.old.fingerprints)},
        )
        head, at = rotation.evidence.head, rotation.now()
        rotation.remember(
            lambda record: (
                record
                if record.finished
                else record.model_copy(
                    update={
                        "finished": at,
                        "outcome": "completed",
                        "notes": {**record.notes, EVIDENCE_HEAD: head},
                    }
                )
            )
        )


def _previous_issuer(rotation: Rotation, cluster: str) -> Reference:
    name = material.secret_name(rotation.domain.name, f"previous-issuer-{cluster}")
    found = rotation.vault.find({ROTATION_TAG: rotation.id}, name)
    if not found:
        raise GateRefused(
            "the old root's refusal cannot be proven: the previous issuer is not in the vault",
            where=f"{name} in {rotation.vault.url}",
            observed="no entry of this rotation",
            expected="the backup made before the issuer was switched",
            next_command="use the vault that this rotation was begun with (--vault)",
        )
    return found[-1]
