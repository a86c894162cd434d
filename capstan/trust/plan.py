"""The ordered steps of a rotation, planned from what was observed.

The same sequence is planned from every state; what is already true is marked done, so planning again after a crash
continues, and planning with `old` and `new` exchanged is the way back.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from capstan.errors import InvalidInput
from capstan.trust.phase import Goal, Phase, derive_phase, staying
from capstan.trust.planner import Planner, places
from capstan.trust.safety import Unsafe, Verdict, verdict
from capstan.trust.steps import LeafRenewal, Policy, Step, StepKind

if TYPE_CHECKING:
    from capstan.trust.observation import ClusterObservation, Fingerprint, Observation

__all__ = ["LeafRenewal", "Plan", "Policy", "Step", "StepKind", "plan"]

SCHEMA_VERSION = 1

NEVER_RESTARTED = frozenset({"Pod", "Node", "Job", "CronJob"})
"""Kinds of owners whose pods no step restarts; they come and go by themselves, and with them no decision."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A rotation's steps, and what they were planned from.

    Attributes:
        old: The roots that are to go.
        stays: The roots that are to stay; empty while the new one is not minted, several on a way back to several.
        kind: `anchor`; `issuer` for a rotation of the issuers alone, whose `old` and `stays` are issuers; `re-date` for
            the same roots with another life; `webhooks` for serving certificates, each in its caBundle (`trust.hooks`);
            `expired` for what takes the place of expired issuers or roots (`trust.replacing`).
        written: Phases of which the first write, into the bundle of some cluster, was seen, wherever else it has
            arrived by now.
    """

    steps: tuple[Step, ...]
    phase: Phase
    old: frozenset[Fingerprint]
    stays: frozenset[Fingerprint]
    policy: Policy
    verdict: Verdict
    domain: tuple[dict[str, Any], ...]
    kind: Literal["anchor", "issuer", "re-date", "webhooks", "expired"] = "anchor"
    written: frozenset[Phase] = frozenset()

    @property
    def new(self) -> Fingerprint | None:
        """The one root that stays; None while none is minted, or where several stay."""
        return next(iter(self.stays)) if len(self.stays) == 1 else None

    @property
    def pending(self) -> tuple[Step, ...]:
        """The steps still to do, in order."""
        return tuple(step for step in self.steps if not step.done)

    def entered(self, phase: Phase) -> bool:
        """Whether an acting step of this phase has taken effect in some cluster, or its first write was seen.

        What is written into a vault or Secret reaches the places that repeat it later, one by one: meanwhile the step
        is still to be done, and whoever approved it has decided on what is under way.
        """
        acting = {
            StepKind.WIDEN_BUNDLE, StepKind.REDATE_ROOT, StepKind.REPLACE_ROOTS, StepKind.SWITCH_ISSUER,
            StepKind.NARROW_BUNDLE,
        }  # fmt: skip
        effect = (s.phase is phase and s.kind in acting and len(s.pending) < len(s.clusters) for s in self.steps)
        return phase in self.written or any(effect)

    def digest(self) -> str:
        """SHA-256 (hex) that approvals are bound to.

        It covers what an approver decides on: clusters, old, new and foreign roots, issuers still under old roots,
        the workloads that will be restarted, safety, policy and the order of steps. Pod names, times and leaves are
        not in it, nor how far the bundles are, so it holds still while the trust and distrust phases run; it changes
        with each issuer switched.
        """
        canonical = json.dumps(self._decided_on(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The plan as plain JSON values, with its digest."""
        return {
            "schemaVersion": SCHEMA_VERSION,
            "digest": self.digest(),
            "phase": self.phase.value,
            "safe": self.verdict.safe,
            "verdict": str(self.verdict),
            "decidedOn": self._decided_on(),
            "steps": [
                {
                    "name": step.name,
                    "kind": step.kind.value,
                    "phase": step.phase.value,
                    "changes": step.changes,
                    "reversible": step.reversible,
                    "clusters": list(step.clusters),
                    "pending": list(step.pending),
                    "done": step.done,
                }
                for step in self.steps
            ],
        }

    def _decided_on(self) -> dict[str, Any]:
        return {
            "schemaVersion": SCHEMA_VERSION,
            **({} if self.kind == "anchor" else {"kind": self.kind}),
            "old": sorted(self.old),
            "new": sorted(self.stays) if len(self.stays) > 1 else self.new,
            "clusters": list(self.domain),
            # In an outage pods come, go and cannot be read: that it is unsafe is decided on, not by whom it is seen.
            "safety": {"safe": False} if self.kind == "expired" else _safety(self.verdict),
            "policy": {
                "approvals": sorted(phase.value for phase in self.policy.approvals),
                "renewal": self.policy.renewal.value,
                "root": {
                    "commonName": self.policy.root.common_name,
                    "validitySeconds": self.policy.root.validity.total_seconds(),
                    "algorithm": self.policy.root.algorithm.value,
                    "pathLength": self.policy.root.path_length,
                },
                "issuer": {
                    "commonName": self.policy.issuer.common_name,
                    "validitySeconds": self.policy.issuer.validity.total_seconds(),
                    "algorithm": self.policy.issuer.algorithm.value,
                    "pathLength": self.policy.issuer.path_length,
                },
            },
            "steps": [step.name for step in self.steps],
        }


def plan(
    observation: Observation,
    old: frozenset[Fingerprint],
    new: Goal,
    policy: Policy | None = None,
    *,
    back: bool = False,
    turned: bool = False,
) -> Plan:
    """Plan a rotation from `old` roots to `new`, from whatever state the domain is in.

    Args:
        old: The roots that are to go. Any of `new` in it is ignored.
        new: The root that is to stay; on a way back, the several there were. None while it is still to be minted.
        back: This is a way back, approved as a whole: its steps are told as such, and nothing is minted for it.
        turned: The rotation was turned round before: what is seen of a signer may be what it had then.

    Raises:
        InvalidInput: No cluster was observed, two of them share a name, or nothing is to go.
    """
    policy = policy or Policy()
    stays = staying(new)
    old = old - stays
    names = [cluster.name for cluster in observation.clusters]
    if not old or not names or len(set(names)) != len(names):
        raise InvalidInput(
            "no rotation can be planned",
            observed=f"old roots {sorted(old)}, clusters {names}",
            expected="at least one old root, at least one cluster, each of its own name",
        )
    return Plan(
        steps=Planner(observation, old, stays, policy, back=back, turned=turned).steps(),
        phase=derive_phase(observation, old, stays),
        old=old,
        stays=stays,
        policy=policy,
        verdict=verdict(observation),
        domain=tuple(
            sorted((_domain(c, old, stays) for c in observation.clusters), key=lambda each: str(each["name"]))
        ),
        written=_written(observation, old, stays),
    )


def _written(observation: Observation, old: frozenset[Fingerprint], stays: frozenset[Fingerprint]) -> frozenset[Phase]:
    bundles = [cluster.bundle for cluster in observation.clusters]
    found = {Phase.TRUST} if any(bundle & stays for bundle in bundles) else set()
    return frozenset(found | ({Phase.DISTRUST} if any(bundle and not bundle & old for bundle in bundles) else set()))


def _domain(cluster: ClusterObservation, old: frozenset[Fingerprint], stays: frozenset[Fingerprint]) -> dict[str, Any]:
    """What an approver decides on in one cluster, free of pod names, times and our own progress."""
    known = old | stays
    issuer = cluster.issuer
    return {
        "name": cluster.name,
        "foreignRoots": sorted(frozenset().union(*places(cluster)) - known),
        "declaredIn": sorted(place for place, _ in cluster.declared),
        "issuer": None if issuer is None else "new" if issuer.anchors & stays else issuer.fingerprint,
        "owners": sorted({f"{p.role}: {p.owner}" for p in cluster.peers if p.owner.kind not in NEVER_RESTARTED}),
    }


def _safety(found: Verdict) -> dict[str, Any]:
    if not isinstance(found, Unsafe):
        return {"safe": True}
    return {
        "safe": False,
        "mistrust": sorted([sorted(pair.trusts), sorted(pair.anchors)] for pair in found.pairs),
        "unreadable": bool(found.unreadable),
        "expired": bool(found.expired),
    }
