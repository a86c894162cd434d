"""What a rotation is after, and how its phases, gates and plan are judged: for another root, or for other issuers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from capstan.trust.gates import GateResult, may_enter, may_probe
from capstan.trust.issuers import Issuers, issuer_progress, may_enter_issuer, plan_issuers
from capstan.trust.phase import Goal, Phase, Progress, progress
from capstan.trust.plan import Plan, plan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from capstan.trust.observation import Fingerprint, Observation
    from capstan.trust.steps import Policy


class Aim(Protocol):
    """What a rotation is after."""

    def behind(self, gate: Phase) -> Phase | None:
        """The phase whose goal the gate before `gate` waits for; None where it waits for nobody's progress."""

    def progress(self, seen: Observation, phase: Phase) -> Progress:
        """How far a phase is."""

    def may_enter(
        self, phase: Phase, seen: Observation, now: datetime, *, old_leaf_refused: bool | None = None
    ) -> GateResult:
        """Judge the gate before a phase."""

    def may_probe(self, seen: Observation, now: datetime) -> GateResult:
        """Judge all that the last gate asks but the refusal probe."""

    def plan(self, seen: Observation, policy: Policy, *, back: bool = False, turned: bool = False) -> Plan:
        """The steps from here."""


@dataclass(frozen=True, slots=True)
class RootAim:
    """Another root, and issuers under it.

    Attributes:
        old: The roots that are to go.
        new: What is to stay.
    """

    old: frozenset[Fingerprint]
    new: Goal

    def behind(self, gate: Phase) -> Phase | None:
        """TRUST before ISSUE, ISSUE before DISTRUST, DISTRUST before DONE."""
        return {Phase.ISSUE: Phase.TRUST, Phase.DISTRUST: Phase.ISSUE, Phase.DONE: Phase.DISTRUST}.get(gate)

    def progress(self, seen: Observation, phase: Phase) -> Progress:
        """As `phase.progress`."""
        return progress(seen, phase, self.old, self.new)

    def may_enter(
        self, phase: Phase, seen: Observation, now: datetime, *, old_leaf_refused: bool | None = None
    ) -> GateResult:
        """As `gates.may_enter`."""
        return may_enter(phase, seen, self.old, self.new, now, old_leaf_refused=old_leaf_refused)

    def may_probe(self, seen: Observation, now: datetime) -> GateResult:
        """As `gates.may_probe`."""
        return may_probe(seen, self.old, self.new, now)

    def plan(self, seen: Observation, policy: Policy, *, back: bool = False, turned: bool = False) -> Plan:
        """As `plan.plan`."""
        return plan(seen, self.old, self.new, policy, back=back, turned=turned)


@dataclass(frozen=True, slots=True)
class IssuerAim:
    """Other issuers under the roots that everybody trusts already.

    Attributes:
        before: Cluster -> the issuer that is to be replaced.
        goal: Cluster -> the issuer that is to sign in the end; empty while none is minted.
        anchors: Cluster -> roots to which the goal's issuer chains.
    """

    before: Issuers
    goal: Issuers
    anchors: Mapping[str, frozenset[Fingerprint]] = field(default_factory=dict)

    def behind(self, gate: Phase) -> Phase | None:
        """ISSUE before DONE."""
        return Phase.ISSUE if gate is Phase.DONE else None

    def progress(self, seen: Observation, phase: Phase) -> Progress:
        """As `issuers.issuer_progress`."""
        return issuer_progress(seen, phase, self.goal)

    def may_enter(
        self,
        phase: Phase,
        seen: Observation,
        now: datetime,
        *,
        old_leaf_refused: bool | None = None,  # noqa: ARG002  # no root goes, so that there is no leaf to be refused
    ) -> GateResult:
        """As `issuers.may_enter_issuer`."""
        return may_enter_issuer(phase, seen, self.goal, self.anchors, now)

    def may_probe(self, seen: Observation, now: datetime) -> GateResult:
        """As the last gate."""
        return may_enter_issuer(Phase.DONE, seen, self.goal, self.anchors, now)

    def plan(self, seen: Observation, policy: Policy, *, back: bool = False, turned: bool = False) -> Plan:
        """As `issuers.plan_issuers`."""
        return plan_issuers(seen, self.before, self.goal, policy, back=back, turned=turned)
