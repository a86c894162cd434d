"""An issuer that cannot do what it is for: found in the middle of a rotation, and put right before anybody needs it.

Whatever signs leaves goes on with what it has in memory, so that a wrong issuer hurts nobody at first, and everybody
once leaves have to be renewed. So what stops the rotation also puts the good issuer back, where there is one that the
rotation vouches for:

    after the switch, the Secret was replaced by somebody else's     the rotation's own issuer
    what signs does not take the rotation's issuer                   the one before, from its backup

Then it stops: somebody has to see why. Run again, the rotation goes on from what it finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.errors import CapstanError, GateRefused, IssuerNotTaken
from capstan.progress import watcher
from capstan.rotation import material
from capstan.trust.phase import Phase

if TYPE_CHECKING:
    from capstan.rotation.session import Rotation
    from capstan.systems.base import Change
    from capstan.trust.observation import ClusterObservation, Observation
    from capstan.vaults.base import Reference


def issuer_refused(rotation: Rotation, cluster: str, error: IssuerNotTaken) -> IssuerNotTaken:
    """Put a good issuer in the place of one that what signs does not take; the error to stop with.

    Never raises for what could not be put back: the error says so.
    """
    seen = next((each for each in rotation.observe().clusters if each.name == cluster), None)
    ours = rotation.required_target().issuers[cluster].fingerprint
    foreign = seen is not None and (seen.issuer is None or seen.issuer.fingerprint != ours)
    if seen is not None and not foreign and seen.signing_faults:
        foreign = True  # our certificate with somebody else's key
    reference = _ours(rotation, cluster) if foreign else _before(rotation, cluster)
    done = _put(rotation, cluster, reference, "the rotation's own issuer" if foreign else "the issuer of before")
    return IssuerNotTaken(
        error.what, where=error.where, observed=f"{error.observed}; {done}", expected=error.expected,
        next_command=error.next_command,
    )  # fmt: skip


def require_signing(rotation: Rotation, phase: Phase, seen: Observation) -> None:
    """From the switch on, every configured issuer is one that can sign.

    Args:
        phase: The phase whose gate is watched. Before the switch of a first run nothing is vouched for, and nothing is
            put back; a run that comes to that gate again has the backup.

    Raises:
        GateRefused: One cannot; names who wrote it, and what was put back.
    """
    if phase.number < Phase.ISSUE.number or rotation.target is None:
        return
    wrong: list[str] = []
    for cluster in seen.clusters:
        why = _why_not(rotation, cluster)
        if not why:
            continue
        switched = phase is not Phase.ISSUE
        reference = (_ours if switched else _before)(rotation, cluster.name)
        if reference is None:
            continue  # the gate refuses, too, and says why
        what = "the rotation's own issuer" if switched else "the issuer of before"
        wrong.append(f"{cluster.name}: {why}; {_put(rotation, cluster.name, reference, what)}")
    if wrong:
        raise GateRefused(
            f"the issuer of {len(wrong)} cluster(s) was replaced by one that cannot sign",
            where=f"trust domain {rotation.domain.name}",
            observed="\n            ".join(wrong),
            expected="an issuer that this rotation put there, or found there",
            next_command=f"see who writes to the issuer's secret, then go on from here: {rotation.command}",
        )


def _why_not(rotation: Rotation, cluster: ClusterObservation) -> str:
    """Why a cluster's issuer cannot do what leaves need; empty if it can."""
    if cluster.roots_with_leaf:
        return ""  # its signers are asked one by one, and each gate waits for them
    if cluster.signing_faults:
        return "; ".join(cluster.signing_faults)
    wanted = rotation.required_target().issuers.get(cluster.name)
    issuer = cluster.issuer
    if wanted is None or issuer is None or issuer.fingerprint == wanted.fingerprint or issuer.anchors & cluster.bundle:
        return ""
    return f"issuer {issuer.fingerprint[:16]} verifies against none of the trust roots"


def _ours(rotation: Rotation, cluster: str) -> Reference | None:
    return rotation.required_target().references.get(f"issuer/{cluster}")


def _before(rotation: Rotation, cluster: str) -> Reference | None:
    """The issuer that the rotation found; on the way back that is where it goes to, and there is nothing before it."""
    if rotation.direction == "back":
        return None
    return material.previous_issuer(rotation.vault, domain=rotation.domain.name, rotation=rotation.id, cluster=cluster)


def _put(rotation: Rotation, cluster: str, reference: Reference | None, what: str) -> str:
    """Write an issuer of the vault; what came of it, as a clause."""
    if reference is None:
        return "nothing was put back: the vault has no issuer for it"
    rotation.acted()
    watcher().note(f"{cluster}: putting back {what}")
    try:
        issuer = material.issuer_material(rotation.vault, reference)
        changes: tuple[Change, ...] = rotation.systems[cluster].ensure_issuer(issuer)
    except CapstanError as error:
        return f"{what} could not be put back: {error.what}: {error.observed}"
    for change in changes:
        rotation.note(
            "issuer-put-back",
            {
                "cluster": cluster,
                "place": change.place,
                "before": list(change.before),
                "after": list(change.after),
                "written": change.written,
                "why": what,
                "resource_version": change.version_after,
            },
        )
    return f"{what} ({reference.fingerprint[:16]}) was put back"
