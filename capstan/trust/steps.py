"""The vocabulary of a plan: kinds of steps, steps, and the policy a domain is rotated under."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from capstan.pki.mint import IssuerPolicy, RootPolicy
from capstan.trust.phase import Phase


class StepKind(StrEnum):
    """What a step does. Gates and approvals change nothing in the domain."""

    MINT = "mint"
    APPROVE = "approve"
    WIDEN_BUNDLE = "widen-bundle"
    REDATE_ROOT = "re-date-root"
    REPLACE_ROOTS = "replace-roots"
    RESTART_CONTROL_PLANE = "restart-control-plane"
    RESTART_DATA_PLANE = "restart-data-plane"
    GATE_TRUST = "gate-trust"
    SWITCH_ISSUER = "switch-issuer"
    AWAIT_LEAVES = "await-leaves"
    NARROW_BUNDLE = "narrow-bundle"
    GATE_DISTRUST = "gate-distrust"
    PROBE_REFUSAL = "probe-refusal"


class LeafRenewal(StrEnum):
    """How leaves come from the new issuer: by themselves within their lifetime, or by one more restart."""

    AWAIT = "await"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Policy:
    """How a domain wants to be rotated.

    Attributes:
        approvals: Phases before which a person is asked.
        renewal: How leaves are renewed in the issue phase.
        root: How a new root looks.
        issuer: How new issuers look.
    """

    approvals: frozenset[Phase] = frozenset({Phase.TRUST, Phase.ISSUE, Phase.DISTRUST})
    renewal: LeafRenewal = LeafRenewal.AWAIT
    root: RootPolicy = field(default_factory=RootPolicy)
    issuer: IssuerPolicy = field(default_factory=IssuerPolicy)


@dataclass(frozen=True, slots=True)
class Step:
    """One step; a barrier over all clusters stands at its end.

    Attributes:
        phase: The phase it belongs to. The first acting step of a phase stands behind `gates.may_enter(phase)`.
        changes: What it changes, for a person.
        reversible: How, and until when, it can be taken back.
        clusters: Clusters it covers.
        pending: Those in which something is still to be done, as observed; none means it is already true.
    """

    kind: StepKind
    phase: Phase
    changes: str
    reversible: str
    clusters: tuple[str, ...]
    pending: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Already true as observed; executing it would change nothing."""
        return not self.pending

    @property
    def name(self) -> str:
        """`phase/kind`, unique in a plan."""
        return f"{self.phase}/{self.kind}"

    @property
    def opens(self) -> Phase | None:
        """For a waiting step: the phase whose gate it waits for (`GATE_DISTRUST`: `gates.may_probe`)."""
        return {
            StepKind.GATE_TRUST: Phase.ISSUE,
            StepKind.AWAIT_LEAVES: Phase.DISTRUST,
            StepKind.GATE_DISTRUST: Phase.DONE,
        }.get(self.kind)
