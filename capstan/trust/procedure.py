"""A procedure as moves that the explorer can play: the shipped one, made from a Plan, and variations of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from capstan.trust.phase import Phase
from capstan.trust.steps import StepKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capstan.trust.plan import Plan

_GATES = {
    StepKind.WIDEN_BUNDLE: Phase.TRUST,
    StepKind.GATE_TRUST: Phase.ISSUE,
    StepKind.SWITCH_ISSUER: Phase.ISSUE,
    StepKind.AWAIT_LEAVES: Phase.DISTRUST,
    StepKind.NARROW_BUNDLE: Phase.DISTRUST,
    StepKind.GATE_DISTRUST: Phase.DONE,
}
"""The gate a step stands behind (or waits for): `gates.may_enter` of that phase; for DONE, `gates.may_probe`."""

_IN_THE_VAULT_ONLY = frozenset({StepKind.MINT, StepKind.APPROVE, StepKind.PROBE_REFUSAL})
"""Steps that touch nothing a peer can see."""


@dataclass(frozen=True, slots=True)
class Move:
    """One step of a procedure.

    Attributes:
        step: Name of the plan's step it was made from.
        gate: The gate it stands behind; None plays it blindly.
        clusters: What it covers; its gate sees nothing else.
    """

    kind: StepKind
    step: str
    clusters: tuple[str, ...]
    gate: Phase | None


@dataclass(frozen=True, slots=True)
class Procedure:
    """Moves in order.

    Attributes:
        resumable: Whether it may be killed and run again, and turned round, at any moment; each run then plans anew
            and skips what is already true.
    """

    moves: tuple[Move, ...]
    resumable: bool

    @classmethod
    def of(cls, plan: Plan) -> Procedure:
        """The shipped procedure: the plan's steps, in the plan's order, behind the plan's gates."""
        steps = (step for step in plan.steps if step.kind not in _IN_THE_VAULT_ONLY)
        return cls(
            tuple(Move(step.kind, step.name, step.clusters, _GATES.get(step.kind)) for step in steps), resumable=True
        )

    def blind(self) -> Procedure:
        """The same moves without any gate, as a script of fixed sleeps plays them; never resumed."""
        waiting = (StepKind.GATE_TRUST, StepKind.AWAIT_LEAVES, StepKind.GATE_DISTRUST)
        moves = tuple(replace(move, gate=None) for move in self.moves if move.kind not in waiting)
        return Procedure(moves, resumable=False)

    def ordered(self, steps: Iterable[str]) -> Procedure:
        """These moves (by step name), in this order; those not named are left out.

        Raises:
            KeyError: A name is not among the moves.
        """
        by_name = {move.step: move for move in self.moves}
        return replace(self, moves=tuple(by_name[name] for name in steps))

    def cluster_by_cluster(self) -> Procedure:
        """The whole procedure in one cluster, gates and all, before the next cluster begins."""
        clusters = dict.fromkeys(name for move in self.moves for name in move.clusters)
        moves = tuple(replace(move, clusters=(name,)) for name in clusters for move in self.moves)
        return Procedure(moves, resumable=False)
