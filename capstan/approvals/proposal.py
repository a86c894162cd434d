"""What an approver decides on, and the digest his answer is bound to.

Pure: plain values in, text out. What is decided on is in the digest; what moves by itself (pods, leaves, the evidence
so far) is shown beside it and is not, so that an answer given on Friday still counts on Monday unless what it was given
for has changed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003  # dataclass fields are read by tests and tools at run time
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA: Final = "capstan-proposal/1"

Gate = Literal["trust", "issue", "distrust", "roll-back", "re-date"]


@dataclass(frozen=True, slots=True)
class Anchor:
    """One root certificate.

    Attributes:
        fingerprint: SHA-256 of the certificate's DER, lower-case hex.
        common_name: Empty where the certificate itself is not at hand.
        not_after: Aware UTC; None where the certificate itself is not at hand.
    """

    fingerprint: str
    common_name: str = ""
    not_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class ProposedStep:
    """One step that would be taken.

    Attributes:
        name: `phase/kind`, as in the plan.
        changes: What it changes, for a person.
        clusters: In which clusters something is left to do.
        acts: Whether it changes anything; a step that only waits is shown and not decided on.
    """

    name: str
    changes: str
    clusters: tuple[str, ...]
    acts: bool = True


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found before asking; it moves by itself and is no part of what is decided on.

    Attributes:
        at: When it was observed, aware UTC.
        sentences: What the gate found, one each.
        peers: Live proxies.
        workloads: Workloads that they belong to.
    """

    at: datetime
    sentences: tuple[str, ...]
    peers: int
    workloads: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """Everything an approver decides on, and the evidence so far.

    Attributes:
        domain: Trust domain.
        system: Kind of trust system.
        rotation: Rotation id.
        turn: Which turn of the rotation; answers of an earlier turn do not count.
        direction: `forward` to the new root, or `back` to the old ones.
        gate: What would begin.
        meaning: What that means, in a sentence or two.
        clusters: Clusters of the domain, each with how it is reached: a run's parameters choose that.
        vault: Where the keys live: parameters choose that too.
        leaving: Roots that are turned away from.
        staying: Roots that are trusted in the end.
        plan: Digest of the plan (`capstan.trust.plan.Plan.digest`).
        steps: What is left to do behind this gate, in order.
        workloads: Workloads whose pods the steps may start anew, as `cluster: role: kind/name -n namespace`.
        irreversible: What cannot be taken back, or until when it can.
        bound: What is waited for afterwards, and how long at most.
        way_back: How it is taken back.
        on_reject: What a rejection does.
        on_timeout: What it does when nobody answers in time.
        asked_before: Gates before which somebody is asked; the others are passed without.
        approvers: Whose signed answers count; empty where whoever can resume the run decides.
        quorum: How many different approvers must agree.
        evidence: Shown, and not in the digest.
        keys: The keys that count, as (name, fingerprint); for whoever signs, and not in the digest.
        kind: What is rotated: `anchor`; `issuer` or `re-date`, where `leaving` and `staying` are issuers, or the root
            with its old and its new life.
    """

    domain: str
    system: str
    rotation: str
    turn: int
    direction: Literal["forward", "back"]
    gate: str
    meaning: str
    clusters: tuple[str, ...]
    vault: str
    leaving: tuple[Anchor, ...]
    staying: tuple[Anchor, ...]
    plan: str
    steps: tuple[ProposedStep, ...]
    workloads: tuple[str, ...]
    irreversible: str
    bound: str
    way_back: str
    on_reject: str
    on_timeout: str
    asked_before: tuple[str, ...]
    approvers: tuple[str, ...]
    quorum: int
    evidence: Evidence
    keys: tuple[tuple[str, str], ...] = ()
    kind: str = "anchor"

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the canonical JSON of what is decided on."""
        canonical = json.dumps(self.decided_on(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def decided_on(self) -> dict[str, Any]:
        """The part an answer is bound to, as plain JSON values."""
        return {
            "schema": SCHEMA,
            **({} if self.kind == "anchor" else {"kind": self.kind}),
            "domain": self.domain,
            "system": self.system,
            "rotation": self.rotation,
            "turn": self.turn,
            "direction": self.direction,
            "gate": self.gate,
            "meaning": self.meaning,
            "clusters": sorted(self.clusters),
            "vault": self.vault,
            "leaving": [_anchor(root) for root in self.leaving],
            "staying": [_anchor(root) for root in self.staying],
            "plan": self.plan,
            "steps": [
                {"name": step.name, "changes": step.changes, "clusters": sorted(step.clusters)}
                for step in self.steps
                if step.acts
            ],
            "workloads": sorted(self.workloads),
            "irreversible": self.irreversible,
            "bound": self.bound,
            "wayBack": self.way_back,
            "onReject": self.on_reject,
            "onTimeout": self.on_timeout,
            "askedBefore": sorted(self.asked_before),
            "approvers": sorted(self.approvers),
            "quorum": self.quorum,
        }

    def text(self) -> str:
        """The proposal as plain text of at most 100 columns."""
        from capstan.approvals.rendering import as_text

        return as_text(self)

    def markdown(self, request: str, until: datetime, notes: Sequence[str] = ()) -> str:
        """The proposal for the approval dialog of the Prefect UI, ending with the request as a fenced block.

        Args:
            request: Id of this asking.
            until: When it runs out, aware UTC.
            notes: What became of earlier answers to it (`Tally.notes`), shown first.
        """
        from capstan.approvals.rendering import as_markdown

        return as_markdown(self, request, until, notes)


def _anchor(root: Anchor) -> dict[str, str]:
    end = root.not_after.strftime("%Y-%m-%dT%H:%M:%SZ") if root.not_after else ""
    return {"fingerprint": root.fingerprint, "commonName": root.common_name, "notAfter": end}
