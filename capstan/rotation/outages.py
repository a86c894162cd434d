"""How long each workload was without a valid identity: told from the account, at the end of a replacement."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from capstan.audit import audited_step
from capstan.rotation.expired import Found
from capstan.rotation.outcome import Outage
from capstan.trust.expired import workload_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstan.rotation.session import Rotation

OUTAGE: Final = "outage"
"""Kind of the account's entry that says how long each workload was without an identity."""


def account_for_outage(rotation: Rotation) -> None:
    """Say how long each workload was without a valid identity: into the account, and to whoever runs this."""
    with audited_step("account-for-outage"):
        entries = rotation.evidence.entries
        told: Mapping[str, Any] | None = next((entry.body for entry in entries if entry.kind == OUTAGE), None)
        found = Found.of(rotation.record())
        if told is None and found is not None:
            ended = {
                f"{entry.body['cluster']}: {owner}": datetime.fromisoformat(at)
                for entry in entries
                if entry.kind == "restarted"
                for owner, at in entry.body.get("ended", {}).items()
            }
            seen = rotation.recent()
            there = {workload_of(peer) for peer in seen.peers}
            outages = [
                Outage(name, _whole(datetime.fromisoformat(since)), _whole(ended.get(name, seen.taken_at)))
                for name, since in found.workloads.items()
                if name in there
            ]
            lost = sorted((each for each in outages if each.until > each.since), key=lambda each: -each.seconds)
            told = {"workloads": [each.as_json() for each in lost]}
            rotation.note(OUTAGE, told)
        rotation.outages = tuple(Outage.from_json(each) for each in (told or {"workloads": ()})["workloads"])


def _whole(at: datetime) -> datetime:
    """Certificates end at whole seconds; so do outages."""
    return at.replace(microsecond=0)
