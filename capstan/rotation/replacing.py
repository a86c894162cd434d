"""The steps that replace what has expired: look, make, write at once, start anew.

Every step may be repeated, and killed at any instruction: what is to be made was written down before it was made.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from capstan.audit import audited_step
from capstan.errors import GateRefused, InvalidInput
from capstan.pki.bundle import Bundle
from capstan.progress import watcher
from capstan.rotation import material
from capstan.rotation.changing import Counting, note_changes, note_restarts, stamp_of
from capstan.rotation.expired import FOUND, ROOTS_AFTER, Found, look, remembered, usable_until
from capstan.rotation.naming import issuer_name
from capstan.rotation.preparing import keep_target, present_issuers
from capstan.systems.linkerd import expired as linkerds
from capstan.systems.linkerd.adapter import Linkerd
from capstan.trust.expired import Scope
from capstan.trust.phase import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstan.cluster.record import RotationRecord
    from capstan.pki.inspect import Certificate
    from capstan.rotation.session import Rotation
    from capstan.trust.expired import Diagnosis

_BEFORE_ROOT: Final = timedelta(minutes=1)  # an issuer ends so long before its root


def diagnose(rotation: Rotation) -> Scope:
    """What has expired, and what has to be made anew; written down once, before anything is made.

    Raises:
        GateRefused: Nothing has expired any more, or restarted workloads would come back without their proxy.
    """
    with audited_step("diagnose"):
        found = Found.of(rotation.record())
        if found is None:
            watcher().step("what has expired?")
            found = _looked(rotation)
            text = found.text()
            rotation.remember(lambda record: record.model_copy(update={"notes": {FOUND: text} | record.notes}))
        rotation.scope = found.scope
        body = {"scope": found.scope.value, "ended": list(found.ended), "without_identity": found.without,
                "proxies": found.proxies, "since": found.since, "workloads": found.workloads}  # fmt: skip
        if not any(entry.kind == "expired-found" for entry in rotation.evidence.entries):
            rotation.note("expired-found", body)
        watcher().note(found.told())
        return found.scope


def mint(rotation: Rotation) -> None:
    """Make what has to be made anew into the vault, once per rotation; of what lives, note that it stays.

    Raises:
        VerificationFailed: A verifier refuses the new material.
        Permanent, Retryable: As the vault and the clusters.
    """
    with audited_step("mint-replacement"):
        found, present = _found(rotation), present_issuers(rotation)
        domain, now = rotation.domain, rotation.now()
        watcher().step("mint what has to be made anew", rotation.vault.url)
        names = {name: issuer_name(domain.system, name, present[name]) for name in found.dead}
        kept = {name: issuer for name, issuer in present.items() if name not in found.dead}
        common: dict[str, Any] = {"domain": domain.name, "rotation": rotation.id, "names": names, "now": now}
        match found.scope:
            case Scope.ANCHOR:
                made = material.mint_target(
                    rotation.vault, old=rotation.original, issuers=present, policy=domain.policy, **common
                )
            case Scope.ISSUER:
                root = _root(rotation, found.signer)
                signing = material.signing_root(rotation.vault, root, domain=domain.name)
                if signing is None:
                    raise GateRefused(
                        "the anchor's key is not in the vault any more", where=rotation.vault.url,
                        observed=f"no usable entry of root {root.fingerprint[:16]}",
                        expected="the vault that this rotation was begun with",
                        next_command=f"{rotation.command} --vault URL",
                    )  # fmt: skip
                longest = root.not_after - now - _BEFORE_ROOT
                policy = domain.policy.model_copy(
                    update={"issuer_validity": min(domain.policy.issuer_validity, longest)}
                )
                made = material.mint_issuers(rotation.vault, signing, policy=policy, **common)
            case _:
                _keep(rotation, material.Target(material.present_root(_living(rotation, found), present), present, {}))
                return
        keep_target(rotation, material.Target(made.root, {**kept, **made.issuers}, made.references))


def settle(rotation: Rotation) -> None:
    """Which roots are trusted in the end, written down once: those that live, or the new one with whatever somebody
    still lives by.

    Raises:
        InvalidInput: Called before `mint`.
    """
    with audited_step("settle-roots"):
        target, found = rotation.required_target(), _found(rotation)
        if any(f"issuer/{name}" in target.references for name in target.issuers if name not in found.dead):
            # An offline root signs for every cluster; one whose issuer lives keeps it.
            present = present_issuers(rotation)
            issuers = {name: new if name in found.dead else present[name] for name, new in target.issuers.items()}
            needed = {f"issuer/{name}" for name in found.dead} | {"root"}
            target = material.Target(target.root, issuers, {k: v for k, v in target.references.items() if k in needed})
            _keep(rotation, target)
        text = rotation.record().notes.get(ROOTS_AFTER)
        if text is None:
            roots = _living(rotation, found)
            if target.root.fingerprint not in rotation.original.fingerprints:
                lived_by = _lived_by(rotation, found)
                roots = Bundle.of(target.root, *(root for root in roots if root.fingerprint in lived_by))
            text = roots.pem()
            noted = {ROOTS_AFTER: text}
            rotation.remember(lambda record: record.model_copy(update={"notes": noted | record.notes}))
            text = rotation.record().notes[ROOTS_AFTER]
        rotation.roots_after = Bundle.parse(text, f"record of rotation {rotation.id}")
        for root in rotation.roots_after:
            if root.fingerprint in found.living and target.root.fingerprint not in found.living:
                watcher().note(
                    f"{root.common_name} ({root.fingerprint[:8]}) stays beside the new root: somebody lives by it; "
                    "an ordinary rotation removes it"
                )


def replace_roots(rotation: Rotation, cluster: str) -> None:
    """Make every place that declares the cluster's roots hold exactly those to be trusted in the end.

    Raises:
        GateRefused: A living leaf needs another living root. OwnedElsewhere, Conflict. Nothing was written.
    """
    with audited_step(f"replace-roots/{cluster}"):
        rotation.acted()
        watcher().step("bundle := roots that live", cluster)
        changes = linkerds.replace_roots(
            _linkerd(rotation, cluster), rotation.stays, tuple(rotation.known()), rotation.now()
        )
        note_changes(rotation, "roots-replaced", cluster, changes)


def replace_issuer(rotation: Rotation, cluster: str) -> None:
    """Make the cluster's issuer the one made for it; a cluster whose issuer lives keeps it.

    Raises:
        GateRefused: It does not verify against the declared roots. OwnedElsewhere, Conflict. Nothing was written.
    """
    with audited_step(f"replace-issuer/{cluster}"):
        reference = rotation.required_target().references.get(f"issuer/{cluster}")
        if reference is None:
            return
        rotation.acted()
        watcher().step("issuer := new", cluster)
        issuer = material.issuer_material(rotation.vault, reference)
        changes = linkerds.replace_issuer(_linkerd(rotation, cluster), issuer, rotation.now())
        note_changes(rotation, "issuer-replaced", cluster, changes)


def restart_control_plane(rotation: Rotation, cluster: str) -> None:
    """Start identity anew, then every other part of the control plane that is behind.

    Raises:
        GateRefused: Identity would not start. GateTimedOut: It did not come up in time.
    """
    with audited_step(f"restart-dead-control-plane/{cluster}"):
        rotation.acted()
        watcher().step("restart control plane", cluster)
        counting, wanted = Counting(rotation), rotation.required_target().issuers[cluster].fingerprint
        report = linkerds.restart_control_plane(
            _linkerd(rotation, cluster), rotation.stays.fingerprints, wanted, stamp_of(rotation, Phase.ISSUE),
            seconds=rotation.domain.policy.restart_deadline.total_seconds(), on_progress=counting, now=rotation.now,
        )  # fmt: skip
        note_restarts(rotation, cluster, Phase.ISSUE, "control plane", report, counting.ended)


def restart_data_plane(rotation: Rotation, cluster: str) -> None:
    """Start every workload anew that cannot come back by itself.

    Raises:
        GateRefused: Pods came back without their proxy. GateTimedOut: Names the workloads that did not end.
    """
    with audited_step(f"restart-dead-data-plane/{cluster}"):
        rotation.acted()
        watcher().step("restart workloads", cluster)
        linkerd, policy, counting = _linkerd(rotation, cluster), rotation.domain.policy, Counting(rotation)
        linkerds.require_injection(linkerd.cluster, linkerd.namespace, rotation.now())
        report = linkerds.restart_data_plane(
            linkerd, rotation.stays.fingerprints, rotation.required_target().issuers[cluster].fingerprint,
            stamp_of(rotation, Phase.ISSUE), seconds=policy.restart_deadline.total_seconds(),
            parallel=policy.parallel_restarts, on_progress=counting, now=rotation.now,
        )  # fmt: skip
        note_restarts(rotation, cluster, Phase.ISSUE, "workloads", report, counting.ended)


def _keep(rotation: Rotation, target: material.Target) -> None:
    """Make this what the rotation goes to; nothing of it was minted here."""
    rotation.target = target
    issuers = {name: issuer.fingerprint for name, issuer in target.issuers.items()}
    for name, store in rotation.stores.items():
        kept = {"new": target.root.fingerprint, "issuer": issuers[name], "issuers": issuers}
        store.update(partial(_with, kept))


def _with(kept: Mapping[str, object], record: RotationRecord) -> RotationRecord:
    return record.model_copy(update=kept)


def _looked(rotation: Rotation) -> Found:
    seen, now = rotation.observe(), rotation.now()
    certificates = {f: c for system in rotation.systems.values() for f, c in system.certificates().items()}
    found = look(seen, certificates, now)
    if not found.anything:
        raise GateRefused(
            "nothing has expired any more", where=f"trust domain {rotation.domain.name}",
            observed=f"{found.proxies} live proxies, each with a valid identity",
            expected="an anchor, an issuer or a leaf that has ended",
            next_command=f"capstan rollback --rotation {rotation.id}, which ends this one",
        )  # fmt: skip
    for name in rotation.systems:
        linkerd = _linkerd(rotation, name)
        linkerds.require_injection(linkerd.cluster, linkerd.namespace, now)
    living = [root for root in rotation.original if root.not_after > now]
    scope, signer = _scope(rotation, found, certificates, living)
    return remembered(found, scope, signer, certificates, living, now)


def _scope(
    rotation: Rotation, found: Diagnosis, certificates: Mapping[str, Certificate], living: list[Certificate]
) -> tuple[Scope, str]:
    """What has to be made, and which root signs it: one that lives long enough and whose key can be had."""
    if not found.issuers:
        return (Scope.LEAVES if found.workloads else Scope.REMNANT), ""
    policy, seen = rotation.domain.policy, rotation.recent()
    needed = usable_until(max(c.leaf_lifetime for c in seen.clusters), policy.restart_deadline, rotation.now())
    dead = [
        certificates[cluster.issuer.fingerprint]
        for cluster in seen.clusters
        if cluster.name in found.issuers and cluster.issuer is not None
    ]
    for root in living:
        if root.not_after < needed or any(issuer.fingerprint == root.fingerprint for issuer in dead):
            continue
        if policy.offline_root:
            if any(issuer.signed_by(root) for issuer in dead):
                return Scope.ISSUER, root.fingerprint
        elif material.signing_root(rotation.vault, root, domain=rotation.domain.name) is not None:
            return Scope.ISSUER, root.fingerprint
    return Scope.ANCHOR, ""


def _living(rotation: Rotation, found: Found) -> Bundle:
    return Bundle.of(*(root for root in rotation.original if root.fingerprint in found.living))


def _lived_by(rotation: Rotation, found: Found) -> frozenset[str]:
    """Roots that living leaves and issuers chain to."""
    seen = rotation.recent()
    leaves = [p.leaf.anchors for p in seen.peers if p.leaf is not None and p.leaf.not_after > seen.taken_at]
    issuers = [c.issuer.anchors for c in seen.clusters if c.issuer is not None and c.name not in found.dead]
    return frozenset().union(*leaves, *issuers)


def _root(rotation: Rotation, fingerprint: str) -> Certificate:
    return next(root for root in rotation.original if root.fingerprint == fingerprint)


def _found(rotation: Rotation) -> Found:
    found = Found.of(rotation.record())
    if found is None:
        raise InvalidInput("nobody has looked yet", where=f"rotation {rotation.id}", next_command="diagnose first")
    return found


def _linkerd(rotation: Rotation, cluster: str) -> Linkerd:
    system = rotation.systems[cluster]
    if not isinstance(system, Linkerd):
        raise InvalidInput(
            "only Linkerd's expired certificates are replaced", where=f"cluster {cluster}",
            observed=f"trust system {rotation.domain.system.value}", expected="trust system linkerd",
            next_command="capstan rotate --help",
        )  # fmt: skip
    return system
