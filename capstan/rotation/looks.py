"""What the gates see, put into the account sparingly: how many live peers trust, present, trust only the new root."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.evidence.story import LOOK

if TYPE_CHECKING:
    from capstan.rotation.session import Rotation
    from capstan.trust.observation import Observation

# An account is for years: what moves all the time is noted at most this often in the time since it began.
_PARTS = 100


def note_look(rotation: Rotation, seen: Observation) -> None:
    """Note an observation if its counts differ from those noted last, and if enough time has passed or all arrived.

    While a run that goes on with a rotation has not found its new root yet, nothing can be counted, and nothing is
    noted.
    """
    if rotation.target is None and rotation.resumed:
        return
    if rotation.kind == "webhooks":
        counts = _hook_counts(seen, frozenset(c.fingerprint for c in rotation.known_new()))
    else:
        counts = _counts(seen, rotation.target.root.fingerprint if rotation.target else "")
    entries = rotation.evidence.entries
    last = next((entry for entry in reversed(entries) if entry.kind == LOOK), None)
    if last is not None and entries:
        if counts == last.body:
            return
        often = (seen.taken_at - entries[0].time) / _PARTS
        if seen.taken_at - last.time < often and _all(counts) == _all(dict(last.body)):
            return
    rotation.note(LOOK, counts)


def _counts(seen: Observation, new: str) -> dict[str, int]:
    peers = seen.peers
    return {
        "peers": len(peers),
        "trust": sum(1 for peer in peers if peer.trusts is not None and new in peer.trusts),
        "present": sum(1 for peer in peers if peer.leaf is not None and new in peer.leaf.anchors),
        "only": sum(1 for peer in peers if peer.trusts == frozenset({new})),
    }


def _hook_counts(seen: Observation, new: frozenset[str]) -> dict[str, int]:
    """Of servers: for whom the API server trusts a new certificate, who serves one, for whom it trusts nothing else."""
    peers = seen.peers
    return {
        "peers": len(peers),
        "trust": sum(1 for peer in peers if peer.trusts and peer.trusts & new),
        "present": sum(1 for peer in peers if peer.leaf is not None and peer.leaf.fingerprint in new),
        "only": sum(1 for peer in peers if peer.trusts and peer.trusts <= new),
    }


def _all(counts: dict[str, int]) -> list[bool]:
    return [counts[name] == counts["peers"] for name in ("trust", "present", "only")]
