"""The steps of a rotation of webhook certificates: of each of Linkerd's servers that the API server calls.

Each webhook is a trust system of its own (`capstan.systems.linkerd.webhooks`), by the name `CLUSTER/HOOK`. A rotation
takes those that there are when it begins; one whose extension is uninstalled meanwhile is passed over. Keys go from the
vault into the Secret inside one step.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from capstan.audit import audited_step
from capstan.cluster.record import RotationRecord
from capstan.errors import CapstanError, GateRefused, InvalidInput
from capstan.pki.bundle import Bundle
from capstan.pki.serving import mint_serving
from capstan.progress import watcher
from capstan.rotation import material
from capstan.rotation.changing import Counting, note_changes, note_restarts, stamp_of
from capstan.rotation.hook_notes import anchors_before, notes_of
from capstan.rotation.material import Target
from capstan.rotation.session import OLD_ROOTS
from capstan.systems.linkerd.checks_webhooks import serving_problem
from capstan.systems.linkerd.webhooks import LinkerdWebhook
from capstan.systems.opening import open_webhooks
from capstan.trust.phase import Phase
from capstan.vaults.material import Material

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime, timedelta

    from capstan.cluster.client import Cluster
    from capstan.config import TrustDomain
    from capstan.pki.inspect import Certificate
    from capstan.rotation.session import Rotation
    from capstan.systems.base import TrustSystem
    from capstan.trust.observation import Observation
    from capstan.vaults.base import Reference, Vault

SETTLE: Final = 5.0
"""Seconds between the last look at a caBundle and the first Secret: each API server learns of it by its own watch, and
none can be asked whether it has."""
_POLL: Final = 1.0


def of_record(
    domain: TrustDomain, clusters: Mapping[str, Cluster], record: RotationRecord
) -> Mapping[str, TrustSystem]:
    """The webhooks that a rotation is of, as far as they are still installed.

    Raises:
        GateRefused: None of them is.
        CapstanError: A cluster cannot be read.
    """
    found = open_webhooks(domain, clusters)
    ours = {name: system for name, system in found.items() if name in record.issuers_before}
    for gone in sorted(record.issuers_before.keys() - ours.keys()):
        watcher().note(f"{gone} is not installed any more: passed over")
    if not ours:
        raise _none_installed(domain)
    return ours


def new_record(
    domain: TrustDomain, name: str, clusters: Mapping[str, Cluster], now: Callable[[], datetime]
) -> RotationRecord:
    """The record of a rotation that begins: what each caBundle holds, and what each Secret.

    Raises:
        InvalidInput: The domain is no Linkerd's. GateRefused: There is no webhook, or one cannot be rotated as it is.
        OwnedElsewhere: Somebody else renews one; says with which command.
    """
    systems = present(domain, clusters)
    bundles: dict[str, Bundle] = {}
    serving: dict[str, Certificate] = {}
    for each, system in systems.items():
        system.require_writable()
        reading = system.read()
        bundles[each], serving[each] = reading.anchors, reading.chain[0]
    everything = Bundle.of(*(certificate for bundle in bundles.values() for certificate in bundle), *serving.values())
    return RotationRecord(
        rotation_id=name,
        domain=domain.name,
        system=domain.system.value,
        kind="webhooks",
        issuers_before={each: certificate.fingerprint for each, certificate in serving.items()},
        started=now(),
        old=frozenset(root for bundle in bundles.values() for root in bundle.fingerprints),
        notes={OLD_ROOTS: everything.pem(), **notes_of(bundles)},
    )


def guard(rotation: Rotation) -> None:
    """Refuse to begin (or to go on) where a webhook cannot be rotated as it is, or somebody else renews it.

    Raises:
        OwnedElsewhere, GateRefused: As `LinkerdWebhook.require_writable`.
    """
    with audited_step("guard"):
        watcher().step("whose are the webhooks' certificates?")
        for name in rotation.systems:
            hook = _hook(rotation, name)
            hook.require_writable()
            if release := hook.renders_anew():
                watcher().note(f"{name}: Helm release {release} makes another pair at its next upgrade, by itself")


def mint(rotation: Rotation) -> None:
    """Make each server's new certificate and key in the vault, once per rotation.

    Raises:
        Permanent, Retryable: As the vault.
    """
    with audited_step("mint"):
        watcher().step("mint", f"{len(rotation.systems)} serving certificate(s) into {rotation.vault.url}")
        tags = material.tags_of(rotation.domain.name, rotation.id)
        references: dict[str, Reference] = {}
        new: dict[str, Certificate] = {}
        for name in rotation.systems:
            made = partial(_made, _hook(rotation, name).dns_name, rotation.now())
            reference = rotation.vault.ensure(_entry_name(rotation.domain.name, name), made, tags)
            references[f"issuer/{name}"] = reference
            new[name] = rotation.vault.get(reference).minted(str(reference)).certificate
        _keep(rotation, Target(next(iter(new.values())), new, references))


def widen(rotation: Rotation, name: str) -> None:
    """Make a caBundle hold what is to be served beside what it holds.

    Raises:
        NotFound, Conflict, Denied: As for every write.
    """
    with audited_step(f"widen-ca-bundle/{name}"):
        rotation.acted()
        watcher().step("caBundle := old + new", name)
        hook = _hook(rotation, name)
        both = hook.read().anchors.union(_anchors(rotation, name))
        note_changes(rotation, "bundle-widened", name, hook.ensure_bundle(both))


def back_up(rotation: Rotation, name: str) -> None:
    """Keep the present pair in the vault, once per rotation: the way back.

    Raises:
        GateRefused: The Secret holds the new pair already, and the vault has no backup.
    """
    with audited_step(f"back-up-serving/{name}"):
        domain = rotation.domain.name
        reference = material.previous_issuer(rotation.vault, domain=domain, rotation=rotation.id, cluster=name)
        if reference is None:
            present = _hook(rotation, name).read_issuer()
            if present.certificate.fingerprint == rotation.required_target().issuers[name].fingerprint:
                raise GateRefused(
                    "the Secret was replaced, but no backup of what it held is in the vault",
                    where=f"{name}, vault {rotation.vault.url}",
                    observed=f"{present.certificate.fingerprint[:16]}, no secret tagged rotation {rotation.id}",
                    expected="the pair of before, kept for the way back",
                    next_command="use the vault that this rotation was begun with (--vault)",
                )
            reference = material.back_up_issuer(
                rotation.vault, domain=domain, rotation=rotation.id, cluster=name, present=present
            )
        entry = f"{reference.name}@{reference.version}"
        rotation.remember(
            lambda record: record.model_copy(update={"vault": {**record.vault, f"previous-serving/{name}": entry}})
        )
        rotation.note("serving-backed-up", {"cluster": name, "fingerprint": reference.fingerprint, "vault": entry})


def settle(rotation: Rotation) -> None:
    """Leave every API server the time to learn of its caBundle, where a Secret is still to be replaced."""
    held = {hook.name: hook.issuer for hook in rotation.recent().clusters}
    target = rotation.required_target().issuers
    if any(issuer is None or issuer.fingerprint != target[name].fingerprint for name, issuer in held.items()):
        rotation.sleep(SETTLE)


def switch(rotation: Rotation, name: str) -> None:
    """Make a serving Secret hold the new pair, after its caBundle was seen to verify it.

    On the way back the pair of before; where it was never replaced, there is nothing to do.

    Raises:
        GateRefused: caBundle does not verify it; nothing was written.
    """
    with audited_step(f"switch-serving/{name}"):
        rotation.acted()
        watcher().step("serving Secret := " + ("new" if rotation.direction == "forward" else "old"), name)
        reference = rotation.required_target().references.get(f"issuer/{name}")
        if reference is None:
            return
        pair = material.issuer_material(rotation.vault, reference)
        note_changes(rotation, "serving-switched", name, _hook(rotation, name).ensure_issuer(pair))


def reload(rotation: Rotation, patience: timedelta | None = None) -> None:
    """Wait until every replica serves what its Secret holds; start those servers anew that do not read it.

    Some versions of the policy-validator never do (linkerd2 issue 7519). Only a server's own Deployment is restarted,
    and only after it had the time that a kubelet and a reload may take (policy `webhook_reload`).

    Args:
        patience: In place of the policy's.

    Raises:
        GateTimedOut: A restart did not end in time.
    """
    with audited_step("reload-serving"):
        given = patience if patience is not None else rotation.domain.policy.webhook_reload
        watcher().step("wait until every replica serves it", f"restarted after {given.total_seconds():.0f} s else")
        until = rotation.now() + given
        while (far := rotation.aim.progress(rotation.observe(), Phase.ISSUE)).waiting_for:
            watcher().count(far.done, far.total, far.waiting_for)
            watcher().until(until)
            if rotation.now() >= until:
                break
            rotation.sleep(_POLL)
        seconds = rotation.domain.policy.restart_deadline.total_seconds()
        for name, system in rotation.systems.items() if far.waiting_for else ():
            rotation.acted()
            counting = Counting(rotation)
            report = system.restart_signers(
                f"{stamp_of(rotation, Phase.ISSUE)}/{name}", seconds=seconds,
                issuer=rotation.required_target().issuers[name].fingerprint, on_progress=counting,
            )  # fmt: skip
            if report.restarted or report.skipped:
                watcher().note(f"{name} did not read its new Secret: restarted")
                note_restarts(rotation, name, Phase.ISSUE, "servers that did not reload", report, counting.ended)


def narrow(rotation: Rotation, name: str) -> None:
    """Make a caBundle hold only what is to stay.

    Raises:
        GateRefused: A process still serves what that does not verify; nothing was written.
    """
    with audited_step(f"narrow-ca-bundle/{name}"):
        rotation.acted()
        watcher().step("caBundle := " + ("new" if rotation.direction == "forward" else "old"), name)
        changes = _hook(rotation, name).ensure_bundle(_anchors(rotation, name))
        note_changes(rotation, "bundle-narrowed", name, changes)


def minted_before(rotation_id: str, domain: str, vault: Vault, systems: Mapping[str, TrustSystem]) -> Target:
    """What this rotation minted, as the vault has it; nothing is minted here.

    Raises:
        GateRefused: A part of it is not in the vault.
    """
    references: dict[str, Reference] = {}
    new: dict[str, Certificate] = {}
    for name in systems:
        reference = material.entry(vault, rotation_id, _entry_name(domain, name))
        if reference is None:
            raise GateRefused(
                "what this rotation minted cannot be read, so the way back cannot be taken",
                where=f"{_entry_name(domain, name)} in {vault.url}",
                observed=f"no usable entry tagged rotation {rotation_id}",
                expected="the serving certificates that it minted",
                next_command="use the vault that this rotation was begun with (--vault)",
            )
        references[f"issuer/{name}"] = reference
        new[name] = vault.get(reference).minted(str(reference)).certificate
    return Target(next(iter(new.values())), new, references)


def found_before(
    vault: Vault, seen: Observation, record: RotationRecord, systems: Mapping[str, TrustSystem], now: datetime
) -> Target:
    """What a rotation found when it began: the pair to go back to, where the Secret does not hold it still.

    Raises:
        GateRefused: A Secret was replaced, and the pair of before is gone, or is no good any more.
    """
    issuers: dict[str, Certificate] = {}
    references: dict[str, Reference] = {}
    for hook in seen.clusters:
        name, wanted = hook.name, record.issuers_before[hook.name]
        reference = material.previous_issuer(vault, domain=record.domain, rotation=record.rotation_id, cluster=name)
        if reference is not None:
            pair = material.issuer_material(vault, reference)
            anchors = anchors_before(record)[name]
            hostname = _webhook(systems[name]).dns_name
            if problem := serving_problem(pair.chain, hostname, anchors, now):
                raise _closed("the certificate before the rotation is no good any more", name, problem)
            issuers[name], references[f"issuer/{name}"] = pair.certificate, reference
        elif hook.issuer is not None and hook.issuer.fingerprint == wanted:
            issuers[name] = systems[name].certificates()[wanted]
        else:
            raise _closed(
                "the pair before the rotation is not in the vault any more", name,
                f"no usable backup tagged rotation {record.rotation_id} in {vault.url}",
            )  # fmt: skip
    return Target(next(iter(issuers.values())), issuers, references)


def present(domain: TrustDomain, clusters: Mapping[str, Cluster]) -> Mapping[str, LinkerdWebhook]:
    """The webhooks that a new rotation would be of.

    Raises:
        InvalidInput: The domain is no Linkerd's. GateRefused: There is none.
        CapstanError: A cluster cannot be read.
    """
    found = open_webhooks(domain, clusters)
    if not found:
        raise _none_installed(domain)
    return found


def preview(system: LinkerdWebhook) -> tuple[str, ...]:
    """What to know of a webhook before it is rotated, for a person: who refuses it, and who renders it anew."""
    try:
        system.require_writable()
    except CapstanError as error:
        return (f"{system.cluster_name}: {error.what} ({error.observed}); {error.next_command}",)
    release = system.renders_anew()
    if not release:
        return ()
    return (
        f"{system.cluster_name}: Helm release {release} renders another pair at its next upgrade, and replaces this one"
        " in both places at once",
    )


def _anchors(rotation: Rotation, name: str) -> Bundle:
    """What a caBundle is to hold in the end."""
    if rotation.direction == "forward":
        return Bundle.of(rotation.required_target().issuers[name])
    return anchors_before(rotation.record())[name]


def _keep(rotation: Rotation, target: Target) -> None:
    rotation.target = target
    references = {purpose: f"{ref.name}@{ref.version}" for purpose, ref in target.references.items()}
    new = {name: certificate.fingerprint for name, certificate in target.issuers.items()}

    def minted(record: RotationRecord) -> RotationRecord:
        update = {"new": target.root.fingerprint, "issuers": new, "vault": {**record.vault, **references}}
        return record.model_copy(update=update)

    rotation.remember(minted)
    rotation.note(
        "minted",
        {
            "serving": {
                name: {"fingerprint": certificate.fingerprint, "not_after": certificate.not_after.isoformat()}
                for name, certificate in target.issuers.items()
            },
            "vault": references,
        },
    )


def _made(dns_name: str, now: datetime) -> Material:
    return Material.of(mint_serving(dns_name, now))


def _entry_name(domain: str, name: str) -> str:
    return material.secret_name(domain, f"webhook-{name}")


def _hook(rotation: Rotation, name: str) -> LinkerdWebhook:
    return _webhook(rotation.systems[name])


def _webhook(system: TrustSystem) -> LinkerdWebhook:
    if not isinstance(system, LinkerdWebhook):
        raise InvalidInput(
            "only Linkerd's webhooks have such certificates", where=system.cluster_name,
            observed=type(system).__name__, expected="a rotation of kind webhooks", next_command="capstan status",
        )  # fmt: skip
    return system


def _none_installed(domain: TrustDomain) -> GateRefused:
    return GateRefused(
        "there is no webhook of Linkerd to rotate", where=f"trust domain {domain.name}",
        observed=f"none in namespace {domain.control_plane_namespace}, and no viz",
        expected="a Linkerd whose webhooks are installed",
        next_command="kubectl get mutatingwebhookconfigurations,validatingwebhookconfigurations",
    )  # fmt: skip


def _closed(why: str, name: str, observed: str) -> GateRefused:
    return GateRefused(
        f"there is no way back: {why}", where=name, observed=observed,
        expected="the backup made before the Secret was replaced, valid today",
        next_command="go on forward: finish this rotation with `capstan rotate --what webhooks`",
    )  # fmt: skip
