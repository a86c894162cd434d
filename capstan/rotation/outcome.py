"""What a run of a rotation came to: for its flow, the command line and the account."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstan.cluster.record import Kind

Direction = Literal["forward", "back"]


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """How long this run spent in one phase, in seconds."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Outage:
    """How long a workload was without a valid identity.

    Attributes:
        workload: `CLUSTER: deployment/web -n shop`.
        since: When the first of its proxies lost it, aware UTC.
        until: When all of them were seen to have one, aware UTC.
    """

    workload: str
    since: datetime
    until: datetime

    @property
    def seconds(self) -> float:
        """How long, in seconds."""
        return (self.until - self.since).total_seconds()

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "workload": self.workload,
            "since": self.since.isoformat(timespec="seconds"),
            "until": self.until.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 1),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Outage:
        """As `as_json` has written it."""
        return cls(str(raw["workload"]), datetime.fromisoformat(raw["since"]), datetime.fromisoformat(raw["until"]))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of a rotation came to.

    Attributes:
        completed: Every live trust store holds exactly what was to stay, and a leaf of what was to go is refused. Of a
            rotation of the issuers: all that signs and is presented is of the issuers that were to stay.
        resumed: The rotation had been begun by an earlier run.
        roots_before: Fingerprints of the roots that are gone now; on a way back, the rotation's new root.
        roots_after: Fingerprints of the roots that every live peer trusts now.
        peers: Live peers at the end.
        old_root_refused: What the probe found; None if this run did not come to it.
        api_requests: Requests this run sent to all API servers.
        evidence: Path of the account.
        direction: `forward`, or `back` for a roll-back.
        kind: `anchor`; `issuer`, where the roots stayed: they are both before and after; or `webhooks`, where `roots`
            are what caBundles hold, `issuers` what Secrets hold, and `peers` the processes that serve.
        issuers_after: Fingerprints of the issuers that the clusters are configured to sign with now.
    """

    rotation: str
    completed: bool
    resumed: bool
    phases: tuple[PhaseTime, ...]
    roots_before: tuple[str, ...]
    roots_after: tuple[str, ...]
    peers: int
    old_root_refused: bool | None
    api_requests: int
    evidence: str
    direction: Direction = "forward"
    kind: Kind = "anchor"
    issuers_after: tuple[str, ...] = ()
    outages: tuple[Outage, ...] = ()
