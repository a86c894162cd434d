"""Which phase a rotation is in, read from the certificates alone.

`old` is the set of roots that are to go, `new` what is to stay: one root, or on a way back the several there were. The
phase is the first one whose goal is not reached, so a run that was killed anywhere, or a domain changed behind our
back, is continued at the right place.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from capstan.trust.observation import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.trust.observation import Observation, Peer, Signer


Goal: TypeAlias = Fingerprint | frozenset[Fingerprint] | None
"""What is to stay: the new root; on a way back every root there was before; None while the new root is not minted."""


def staying(new: Goal) -> frozenset[Fingerprint]:
    """The roots that are to stay, as a set; empty while the new one is not minted."""
    if new is None:
        return frozenset()
    return frozenset({new}) if isinstance(new, str) else new


class Phase(StrEnum):
    """The four moves, and the end."""

    PREPARE = "prepare"
    TRUST = "trust"
    ISSUE = "issue"
    DISTRUST = "distrust"
    DONE = "done"

    @property
    def number(self) -> int:
        """1 for PREPARE to 5 for DONE."""
        return list(Phase).index(self) + 1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one phase is.

    Attributes:
        phase: The phase whose goal is measured.
        done: Peers that reached it.
        total: Live peers.
        waiting_for: Everything that has not reached it: peers by name with the reason, and places such as
            `CLUSTER: bundle`. Empty means the goal is reached.
    """

    phase: Phase
    done: int
    total: int
    waiting_for: tuple[str, ...]

    @property
    def reached(self) -> bool:
        """Whether the goal is reached by everybody and everything."""
        return not self.waiting_for


def derive_phase(observation: Observation, old: frozenset[Fingerprint], new: Goal) -> Phase:
    """The first phase whose goal is not reached."""
    if not _introduced(observation, staying(new)):
        return Phase.PREPARE
    for phase in (Phase.TRUST, Phase.ISSUE, Phase.DISTRUST):
        if not progress(observation, phase, old, new).reached:
            return phase
    return Phase.DONE


def progress(observation: Observation, phase: Phase, old: frozenset[Fingerprint], new: Goal) -> Progress:
    """Measure one phase's goal; see `needed_roots` for what TRUST asks for.

    PREPARE is reached when the new root exists; DONE has no goal of its own.
    """
    peers = observation.peers
    stay = staying(new)
    if phase is Phase.PREPARE:
        waiting: tuple[str, ...] = () if stay else ("a new root: none is minted",)
        return Progress(phase, len(peers) if stay else 0, len(peers), waiting)
    if not stay:
        return Progress(phase, 0, len(peers), ("a new root: none is minted",))
    needed = needed_roots(observation, old, stay)
    behind = {peer.name: why for peer in peers if (why := _peer_behind(peer, phase, needed, stay))}
    places = tuple(_places_behind(observation, phase, needed, stay))
    waiting = (*places, *(f"{name}: {why}" for name, why in behind.items()))
    return Progress(phase, len(peers) - len(behind), len(peers), waiting)


def stores_behind(observation: Observation, phase: Phase, old: frozenset[Fingerprint], new: Goal) -> tuple[Peer, ...]:
    """Peers whose trust store has not reached the goal of TRUST or DISTRUST, and comes anew with their next leaf.

    Their leaves' ends bound the wait; those of clusters where a trust store comes with a restart are not among them.
    """
    stay = staying(new)
    needed = needed_roots(observation, old, stay)
    return tuple(
        peer
        for cluster in observation.clusters
        if cluster.roots_with_leaf
        for peer in cluster.peers
        if _peer_behind(peer, phase, needed, stay)
    )


def needed_roots(observation: Observation, old: frozenset[Fingerprint], new: Goal) -> frozenset[Fingerprint]:
    """Roots that every trust store must hold before the issuer may be switched: new, and each old one still in use.

    An old root is in use while a live leaf or a cluster's issuer chains to old roots only. Once nothing does, TRUST
    asks for the new root alone; that is what keeps a domain that is half-way through DISTRUST from being widened again.
    What could not be read may chain to any old root.
    """
    stay = staying(new)
    needed = stay
    for anchors in _chains(observation):
        if anchors is None:
            needed |= old & _bundled(observation)
        elif not anchors & stay:
            needed |= anchors & old
    return needed


def _chains(observation: Observation) -> Iterator[frozenset[Fingerprint] | None]:
    for cluster in observation.clusters:
        yield cluster.issuer.anchors if cluster.issuer else None
        for signer in cluster.signers:
            yield signer.anchors if signer.issuer else None
        for peer in cluster.peers:
            yield peer.leaf.anchors if peer.leaf else None


def _bundled(observation: Observation) -> frozenset[Fingerprint]:
    return frozenset().union(*(cluster.bundle for cluster in observation.clusters))


def _introduced(observation: Observation, stay: frozenset[Fingerprint]) -> bool:
    """Whether a root that is to stay is anywhere to be seen."""
    for cluster in observation.clusters:
        places = (cluster.bundle, *(roots for _, roots in cluster.declared))
        if any(stay & roots for roots in places):
            return True
        if cluster.issuer and stay & cluster.issuer.anchors:
            return True
        if any(stay & (signer.anchors | (signer.roots or frozenset())) for signer in cluster.signers):
            return True
    return any(
        (peer.trusts is not None and stay & peer.trusts) or (peer.leaf is not None and stay & peer.leaf.anchors)
        for peer in observation.peers
    )


def _places_behind(
    observation: Observation, phase: Phase, needed: frozenset[Fingerprint], stay: frozenset[Fingerprint]
) -> Iterator[str]:
    for cluster in observation.clusters:
        for place, roots in (("bundle", cluster.bundle), *cluster.declared):
            if phase is Phase.TRUST and (missing := needed - roots):
                yield f"{cluster.name}: {place} lacks {_short(missing)}"
            if phase is Phase.DISTRUST and roots != stay:
                yield f"{cluster.name}: {place} holds {_short(roots)}"
        if phase is Phase.ISSUE and (cluster.issuer is None or not cluster.issuer.anchors & stay):
            yield f"{cluster.name}: issuer " + (
                "cannot be read" if cluster.issuer is None else f"does not chain to {_short(stay)}"
            )
        if cluster.roots_with_leaf and not cluster.signers:
            yield f"{cluster.name}: no live process that signs leaves was found"
        for signer in cluster.signers:
            if why := _signer_behind(signer, phase, needed, stay):
                yield f"{cluster.name}: {signer.name} {why}"


def _signer_behind(signer: Signer, phase: Phase, needed: frozenset[Fingerprint], stay: frozenset[Fingerprint]) -> str:
    """Why a live signer has not reached the phase's goal: what it hands out next is what the next proxy holds."""
    unread = f"cannot be read ({signer.unreadable or 'no reason given'})"
    if phase is Phase.ISSUE:
        if signer.issuer is None:
            return unread
        return "" if signer.anchors & stay else f"signs with an issuer that does not chain to {_short(stay)}"
    if signer.roots is None:
        return unread
    if phase is Phase.TRUST:
        missing = needed - signer.roots
        return f"does not hand out {_short(missing)}" if missing else ""
    return "" if signer.roots == stay else f"hands out {_short(signer.roots)}"


def _peer_behind(peer: Peer, phase: Phase, needed: frozenset[Fingerprint], stay: frozenset[Fingerprint]) -> str:
    match phase:
        case Phase.TRUST:
            if peer.trusts is None:
                return f"trust store cannot be read ({peer.unreadable or 'no reason given'})"
            missing = needed - peer.trusts
            return f"does not trust {_short(missing)}" if missing else ""
        case Phase.ISSUE:
            if peer.leaf is None:
                return f"leaf cannot be read ({peer.unreadable or 'no reason given'})"
            return "" if peer.leaf.anchors & stay else f"leaf of other roots until {peer.leaf.not_after:%F %T}Z"
        case Phase.DISTRUST:
            if peer.trusts is None:
                return f"trust store cannot be read ({peer.unreadable or 'no reason given'})"
            if peer.trusts == stay:
                return ""
            more = peer.trusts - stay
            return f"still trusts {_short(more)}" if more else f"does not trust {_short(stay - peer.trusts)}"
        case _:
            return ""


def _short(roots: frozenset[Fingerprint]) -> str:
    return ", ".join(sorted(root[:16] for root in roots)) or "nothing"
