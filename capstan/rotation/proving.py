"""The end: show that what was turned away from is refused by every live proxy, and close the account."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from capstan.audit import audited_step
from capstan.errors import GateRefused, NotYet
from capstan.pki.mint import Minted, mint_leaf
from capstan.progress import watcher
from capstan.rotation import material
from capstan.rotation.accounts import EVIDENCE_HEAD
from capstan.systems.base import Verdict

if TYPE_CHECKING:
    from typing import Any

    from capstan.cluster.record import RotationRecord
    from capstan.pki.inspect import Certificate
    from capstan.rotation.session import Rotation
    from capstan.systems.base import IssuerMaterial, ProbeReport, TrustSystem

# Life of the leaf that is presented to show that its root is refused. It exists in memory only.
PROBE_LIFE = timedelta(minutes=10)
_SHORTEST = timedelta(seconds=1)  # what can be minted at least: certificates count whole seconds


def prove_refusal(rotation: Rotation) -> None:
    """Present a leaf of the old issuer, and one of the new, to every live proxy: the first is refused, the second not.

    On the way back the rotation's new root is the old one, here as everywhere. An old issuer that has ended meanwhile
    has no leaf to present that its date alone would not have refused: then the account says so, and what every trust
    store was read to hold, which the gate before this asks for, has to do.

    Raises:
        GateRefused: A proxy still accepts the root that has gone, or refuses the one that stays; or the issuer that is
            to stay has ended.
        NotYet: A proxy gave no answer, or nobody was there to give one; that is never proof of a refusal.
    """
    with audited_step("prove-refusal"):
        for cluster, system in rotation.systems.items():
            gone, stays = ("old", "new") if rotation.direction == "forward" else ("new", "old")
            watcher().step(f"prove that the {gone} root is refused", cluster)
            wrong: list[str] = []
            silent: list[str] = []
            asked: list[int] = []
            unpresented = ""
            for which, own, wanted in (
                (gone, _issuer_gone(rotation, cluster), Verdict.REFUSED),
                (stays, _issuer_that_stays(rotation, cluster), Verdict.ACCEPTED),
            ):
                if own.certificate.not_after - rotation.now() < _SHORTEST:
                    unpresented = _unpresented(cluster, which, own.certificate, stays=wanted is Verdict.ACCEPTED)
                    continue
                report = _presented(rotation, system, own)
                asked.append(len(report.probes))
                silent += [f"{p.peer}: {p.detail}" for p in report.of(Verdict.NO_ANSWER)]
                wrong += [
                    f"{probe.peer} {probe.verdict.value} a leaf of the {which} root"
                    for probe in report.probes
                    if probe.verdict not in (wanted, Verdict.NO_ANSWER)
                ]
            fewest = min(asked)
            told = {"cluster": cluster, "asked": fewest, "wrong": wrong[:50], "silent": silent[:50]}
            rotation.note("probe", {**told, "not_presented": unpresented} if unpresented else told)
            if wrong:
                rotation.old_root_refused = False
                raise GateRefused(
                    f"{len(wrong)} proxies judge the roots wrongly",
                    where=f"cluster {cluster}",
                    observed="; ".join(wrong[:10]),
                    expected=f"each refuses the {gone} root's leaf and accepts the {stays} root's",
                    next_command="capstan check",
                )
            if silent or not fewest:
                raise NotYet(
                    f"{len(silent)} of {fewest} proxies gave no answer to the probe",
                    waiting_for=silent,
                    where=f"cluster {cluster}",
                    observed="; ".join(silent[:10]) or "no live proxy",
                    expected="an answer from every live proxy",
                )
        rotation.old_root_refused = True


def _presented(rotation: Rotation, system: TrustSystem, own: IssuerMaterial) -> ProbeReport:
    """What the live proxies do with a leaf that this issuer signs now."""
    leaf = mint_leaf(
        Minted(own.certificate, own.key),
        system.probe_identity(rotation.domain.name),
        rotation.now(),
        validity=min(PROBE_LIFE, own.certificate.not_after - rotation.now()),
    )
    return system.probe(f"{leaf.certificate.pem()}\n{own.chain_pem()}\n".encode("ascii"), leaf.key)


def _unpresented(cluster: str, which: str, issuer: Certificate, *, stays: bool) -> str:
    """Why no leaf of an issuer is presented, for the account."""
    ended = f"the {which} issuer {issuer.fingerprint[:16]} ended on {issuer.not_after:%F %T}Z"
    if stays:
        raise GateRefused(
            "the issuer that is to stay has ended", where=f"cluster {cluster}", observed=ended,
            expected="an issuer whose leaves live", next_command="capstan check",
        )  # fmt: skip
    watcher().note(f"{cluster}: {ended}: no leaf of it is left to be presented")
    return ended


def finish(rotation: Rotation) -> None:
    """Close the account, then the record."""
    with audited_step("finish"):
        watcher().step("finish")
        outcome = "completed" if rotation.direction == "forward" else "rolled back"
        rotation.evidence.finish(outcome, _end(rotation))
        head, at = rotation.evidence.head, rotation.now()

        def closed(record: RotationRecord) -> RotationRecord:
            if record.finished:
                return record
            notes = {**record.notes, EVIDENCE_HEAD: head}
            return record.model_copy(update={"finished": at, "outcome": outcome, "notes": notes})

        rotation.remember(closed)


def _end(rotation: Rotation) -> dict[str, Any]:
    """What the account's last entry says of the roots."""
    if rotation.kind != "anchor":
        kept = {
            name: issuer.fingerprint for name, issuer in (rotation.target.issuers if rotation.target else {}).items()
        }
        if rotation.kind == "webhooks":
            return {"serving": kept}
        return {"roots": sorted(rotation.stays.fingerprints), "issuers": kept}
    if rotation.direction == "forward":
        return {"root": rotation.new_root.fingerprint, "retired": sorted(rotation.old.fingerprints)}
    body: dict[str, Any] = {"roots": sorted(rotation.stays.fingerprints)}
    if rotation.retired is not None:
        # It stays in the vault under its rotation's tag, where no other rotation ever looks for its own.
        minted = {purpose: f"{ref.name}@{ref.version}" for purpose, ref in rotation.retired.references.items()}
        body["discarded"] = {"root": rotation.retired.root.fingerprint, "vault": minted}
    return body


def _issuer_gone(rotation: Rotation, cluster: str) -> IssuerMaterial:
    """The issuer of the root that was turned away from."""
    if rotation.retired is not None:
        return material.issuer_material(rotation.vault, rotation.retired.references[f"issuer/{cluster}"])
    domain = rotation.domain.name
    reference = material.previous_issuer(rotation.vault, domain=domain, rotation=rotation.id, cluster=cluster)
    if reference is None:
        raise GateRefused(
            "the old root's refusal cannot be proven: the previous issuer is not in the vault",
            where=f"previous issuer of cluster {cluster} in {rotation.vault.url}",
            observed="no usable entry of this rotation",
            expected="the backup made before the issuer was switched",
            next_command="use the vault that this rotation was begun with (--vault)",
        )
    return material.issuer_material(rotation.vault, reference)


def _issuer_that_stays(rotation: Rotation, cluster: str) -> IssuerMaterial:
    """The issuer that the cluster has in the end; from the cluster itself where the rotation never replaced it."""
    reference = rotation.required_target().references.get(f"issuer/{cluster}")
    if reference is None:
        return rotation.systems[cluster].read_issuer()
    return material.issuer_material(rotation.vault, reference)
