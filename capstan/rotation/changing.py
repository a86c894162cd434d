"""The steps that change the live mesh: who is trusted, who issues, and the restarts that make both real.

Every step observes, acts on the difference and verifies; it may be repeated, and killed at any instruction. Keys stay
inside the step that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capstan.audit import audited_step
from capstan.errors import GateRefused, IssuerNotTaken
from capstan.progress import watcher
from capstan.rotation import material
from capstan.rotation.mending import issuer_refused
from capstan.trust.phase import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from capstan.cluster.restart import RestartReport, Step
    from capstan.rotation.session import Rotation
    from capstan.systems.base import Change


def widen_bundle(rotation: Rotation, cluster: str) -> None:
    """Make every place that declares the cluster's roots hold old + new."""
    with audited_step(f"widen-bundle/{cluster}"):
        rotation.acted()
        watcher().step("bundle := old + new", cluster)
        note_changes(rotation, "bundle-widened", cluster, rotation.systems[cluster].ensure_bundle(rotation.both))


def narrow_bundle(rotation: Rotation, cluster: str) -> None:
    """Make every place that declares the cluster's roots hold only what is to stay.

    Raises:
        GateRefused: Somebody still presents a chain of an old root; nothing was written.
    """
    with audited_step(f"narrow-bundle/{cluster}"):
        rotation.acted()
        watcher().step(f"bundle := {_stays(rotation)}", cluster)
        note_changes(rotation, "bundle-narrowed", cluster, rotation.systems[cluster].ensure_bundle(rotation.stays))


def restart_control_plane(rotation: Rotation, cluster: str, phase: Phase) -> None:
    """Restart the control plane's parts in order, each proven live before the next; in phase issue, what signs.

    Raises:
        GateRefused: Restarting now would break it. GateTimedOut: It did not come up in time; names what holds it up.
        IssuerNotTaken: What signs does not take the issuer; a good one was put back in its place.
    """
    with audited_step(f"restart-control-plane/{phase.value}/{cluster}"):
        rotation.acted()
        watcher().step("restart control plane", cluster)
        system, stamp, counting = rotation.systems[cluster], stamp_of(rotation, phase), Counting(rotation)
        seconds = rotation.domain.policy.restart_deadline.total_seconds()
        issuer = rotation.required_target().issuers[cluster].fingerprint
        try:
            if phase is Phase.ISSUE:
                # No roots change here. The signers alone have to be younger than the switch, in this turn of it.
                report = system.restart_signers(
                    stamp, seconds=seconds, issuer=issuer, afresh=rotation.turned, on_progress=counting
                )
            else:
                report = system.restart_control_plane(
                    _wanted_roots(rotation, phase),
                    stamp,
                    seconds=seconds,
                    issuer=None if phase is Phase.TRUST else issuer,
                    afresh=rotation.turned,
                    on_progress=counting,
                )
        except IssuerNotTaken as error:
            if phase is Phase.TRUST:
                raise  # nothing was switched yet: there is no issuer that the rotation vouches for
            raise issuer_refused(rotation, cluster, error) from error
        note_restarts(rotation, cluster, phase, "control plane", report, counting.ended)


def restart_data_plane(rotation: Rotation, cluster: str, phase: Phase) -> None:
    """Restart every workload with a proxy that does not hold the phase's roots, under its disruption budgets.

    In phase issue those with a leaf of another issuer, too: where the policy does not wait for them to renew.

    Raises:
        GateTimedOut: Some did not end in time; names them.
    """
    with audited_step(f"restart-data-plane/{phase.value}/{cluster}"):
        rotation.acted()
        watcher().step("restart workloads", cluster)
        counting = Counting(rotation)
        issuer = rotation.required_target().issuers[cluster].fingerprint if phase is Phase.ISSUE else None
        report = rotation.systems[cluster].restart_data_plane(
            _wanted_roots(rotation, phase),
            stamp_of(rotation, phase),
            seconds=rotation.domain.policy.restart_deadline.total_seconds(),
            issuer=issuer,
            parallel=rotation.domain.policy.parallel_restarts,
            on_progress=counting,
        )
        note_restarts(rotation, cluster, phase, "workloads", report, counting.ended)


def back_up_issuer(rotation: Rotation, cluster: str) -> None:
    """Keep the present issuer in the vault, once per rotation: the way back, and the refusal probe's key."""
    with audited_step(f"back-up-issuer/{cluster}"):
        watcher().step("back up issuer", cluster)
        purpose = f"previous-issuer/{cluster}"
        reference = material.previous_issuer(
            rotation.vault, domain=rotation.domain.name, rotation=rotation.id, cluster=cluster
        )
        if reference is None:
            present = rotation.systems[cluster].read_issuer()
            if present.certificate.fingerprint == rotation.required_target().issuers[cluster].fingerprint:
                raise GateRefused(
                    "the issuer was switched, but no backup of the one before it is in the vault",
                    where=f"cluster {cluster}, vault {rotation.vault.url}",
                    observed=f"issuer {present.certificate.fingerprint[:16]}, no secret tagged rotation {rotation.id}",
                    expected="the previous issuer, kept for the way back",
                    next_command="use the vault that this rotation was begun with (--vault)",
                )
            reference = material.back_up_issuer(
                rotation.vault,
                domain=rotation.domain.name,
                rotation=rotation.id,
                cluster=cluster,
                present=present,
            )
        entry = f"{reference.name}@{reference.version}"
        rotation.stores[cluster].update(
            lambda record: record.model_copy(update={"vault": {**record.vault, purpose: entry}})
        )
        rotation.note("issuer-backed-up", {"cluster": cluster, "fingerprint": reference.fingerprint, "vault": entry})


def switch_issuer(rotation: Rotation, cluster: str) -> None:
    """Make the cluster's issuer the new one, after every live peer was seen to trust it.

    On the way back the new one is the one before; where that was never replaced, there is nothing to do. Where the
    issuers alone are rotated nobody's trust changes: the new one is under a root that everybody trusts already.

    Raises:
        GateRefused: A live peer or the control plane does not trust the new root; nothing was written.
    """
    with audited_step(f"switch-issuer/{cluster}"):
        rotation.acted()
        watcher().step(f"issuer := {_stays(rotation)}", cluster)
        target = rotation.required_target()
        reference = target.references.get(f"issuer/{cluster}")
        if reference is None:
            return
        issuer = material.issuer_material(rotation.vault, reference)
        note_changes(rotation, "issuer-switched", cluster, rotation.systems[cluster].ensure_issuer(issuer))


def _stays(rotation: Rotation) -> str:
    return "new" if rotation.direction == "forward" else "old"


def _wanted_roots(rotation: Rotation, phase: Phase) -> frozenset[str]:
    return (rotation.stays if phase is Phase.DISTRUST else rotation.both).fingerprints


def stamp_of(rotation: Rotation, phase: Phase) -> str:
    """Names the wanted state: a workload that carries it was restarted for it and is only waited for.

    The turn is in it because the same state may have to be reached again after the rotation was turned round.
    """
    turn = rotation.record().turn
    return f"{rotation.domain.name}/{rotation.id}/{turn}/{phase.value}/{rotation.new_root.fingerprint[:16]}"


class Counting:
    """Turns a restart's news into counts of owners, for whoever watches, and keeps when each had ended."""

    def __init__(self, rotation: Rotation) -> None:
        self.ended: dict[str, str] = {}
        self._rotation = rotation
        # Workloads are restarted by threads of their own, which do not inherit whoever watches here.
        self._watcher = watcher()
        self._seen: dict[Any, bool] = {}
        self._until = rotation.now() + rotation.domain.policy.restart_deadline

    def __call__(self, step: Step) -> None:
        seen = self._seen
        seen[step.owner] = seen.get(step.owner, False) or step.done
        if step.done:
            self.ended.setdefault(str(step.owner), self._rotation.now().isoformat(timespec="milliseconds"))
        waiting = [str(owner) for owner, done in seen.items() if not done]
        self._watcher.count(len(seen) - len(waiting), len(seen), waiting)
        if waiting:
            self._watcher.until(self._until)


def note_changes(rotation: Rotation, kind: str, cluster: str, changes: Sequence[Change]) -> None:
    """Put what a step wrote, or found written, into the account."""
    for change in changes:
        rotation.note(
            kind,
            {
                "cluster": cluster,
                "place": change.place,
                "before": list(change.before),
                "after": list(change.after),
                "written": change.written,
                "why": change.why,
                "resource_version": change.version_after,
            },
        )


def note_restarts(
    rotation: Rotation, cluster: str, phase: Phase, what: str, report: RestartReport, ended: Mapping[str, str]
) -> None:
    """Put what a step restarted into the account."""
    for skipped in report.skipped:
        watcher().note(f"{skipped.owner} was not restarted: {skipped.reason}")
    rotation.note(
        "restarted",
        {
            "cluster": cluster,
            "phase": phase.value,
            "what": what,
            "owners": [str(item.owner) for item in report.restarted],
            "ended": dict(ended),
            "skipped": [f"{item.owner}: {item.reason}" for item in report.skipped],
        },
    )
