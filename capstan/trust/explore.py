"""Exhaustive exploration: every interleaving of a procedure with everything that may happen meanwhile.

The procedure is judged through the product's own eyes: its gates are `gates.may_enter` on what an adapter would
observe, what it skips on a second run is what `plan` marks done, and its way back is the plan with the roots exchanged.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from capstan.trust.gates import may_enter, may_probe
from capstan.trust.model import NEW, NOW, Broken, Root
from capstan.trust.phase import Phase
from capstan.trust.plan import plan
from capstan.trust.procedure import Move, Procedure
from capstan.trust.steps import StepKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.trust.observation import Observation

_Target = tuple[int, int]


State: TypeAlias = Any
"""A state of a model: hashable, and otherwise nobody's business but the model's."""


class Model(Protocol):
    """A trust domain to explore: `model.Domain` (Linkerd) or `model_istio.IstioDomain`."""

    @property
    def clusters(self) -> tuple[tuple[str, int], ...]:
        """Names of the clusters, with the number of proxies in each."""

    @property
    def before(self) -> frozenset[Root]:
        """Roots that everybody trusts at the start."""

    @property
    def fences(self) -> bool:
        """Whether, after a turn, a signer's answer is believed only once it was started anew."""

    def start(self) -> State:
        """The state before anything has happened."""

    def issuer_before(self, cluster: int) -> Root:
        """Root of a cluster's issuer at the start."""

    def canonical(self, state: State, *, replicas: bool) -> State:
        """The same with interchangeable parts in one order; control-plane replicas only if `replicas`."""

    def broken(self, state: State) -> Broken | None:
        """Why the domain fails in this state."""

    def happens(self, state: State) -> Iterator[tuple[str, State | Broken]]:
        """Everything that may happen without anybody's doing."""

    def control_plane(self, c: int) -> range:
        """Numbers of what a control-plane step acts on in a cluster."""

    def workloads(self, c: int) -> range:
        """Numbers of what a data-plane step acts on in a cluster."""

    def settle(self, state: State, c: int, p: int, *, afresh: bool) -> Iterator[tuple[str, State | Broken]]:
        """The ways in which a control-plane step ends with one of them."""

    def restart_workload(self, state: State, c: int, p: int) -> Iterator[tuple[str, State | Broken]]:
        """The ways in which a restart of one of them ends."""

    def write_bundle(self, state: State, c: int, roots: frozenset[Root]) -> State:
        """A cluster's bundle is written."""

    def write_issuer(self, state: State, c: int, root: Root) -> State:
        """A cluster's issuer is written."""

    def settled(self, state: State, roots: frozenset[Root], issuer: Root) -> bool:
        """Whether everybody has exactly these roots and this issuer."""

    def observe(self, state: State) -> Observation:
        """The state as an adapter would report it."""


class Node(NamedTuple):
    """A state of the domain together with where the procedure stands in it.

    Attributes:
        back: The procedure runs from new to old.
        position: Index of the next move; past the last one the procedure has ended.
        touched: What the move at `position` has acted on: (cluster, peer), or (cluster, -1) for a write.
        turned: 0 while the procedure was never turned round (or where that is of no consequence), 1 until the first
            control-plane step after a turn has ended, then 2.
    """

    state: State
    back: bool
    position: int
    touched: frozenset[_Target]
    turned: int = 0


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A shortest way into a failure.

    Attributes:
        events: What happened, in order.
        reason: What then failed.
    """

    events: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        width = len(str(len(self.events)))
        lines = [f"{number:>{width}}. {event}" for number, event in enumerate(self.events, 1)]
        return "\n".join([*lines, f"{' ' * width}  BROKEN: {self.reason}"])


@dataclass(frozen=True, slots=True)
class Explored:
    """What an exploration found.

    Attributes:
        states: Distinct states of domain and procedure that were visited.
        finished: Whether the procedure can end with everybody on the new root alone.
        dead_ends: States from which it can no longer end that way, whatever happens.
        stranded: States from which the way back can no longer end with everything as it was at the start.
        counterexample: A shortest way into a failure; None if there is none.
    """

    states: int
    finished: bool
    dead_ends: int
    stranded: int
    counterexample: Counterexample | None

    @property
    def safe(self) -> bool:
        """Whether no interleaving breaks the domain."""
        return self.counterexample is None


def shipped(domain: Model) -> Procedure:
    """The procedure that `plan` ships for this domain."""
    return Procedure.of(plan(domain.observe(domain.start()), domain.before, NEW))


def explore(domain: Model, procedure: Procedure) -> Explored:
    """Visit every reachable state, breadth first, until one is broken or none is left."""
    return _Explorer(domain, procedure).run()


class _Explorer:
    def __init__(self, domain: Model, procedure: Procedure) -> None:
        self.domain = domain
        self.procedure = procedure
        self.names = {name: index for index, (name, _) in enumerate(domain.clusters)}
        self.open: dict[tuple[State, bool, Phase, tuple[str, ...]], bool] = {}
        self.done: dict[tuple[State, bool, bool], frozenset[str]] = {}
        self.sound: set[State] = set()

    def run(self) -> Explored:
        start = Node(self.domain.start(), back=False, position=0, touched=frozenset())
        came_from: dict[Node, tuple[Node, str] | None] = {start: None}
        before: dict[Node, list[Node]] = {start: []}
        ends: list[Node] = []
        back_again: list[Node] = []
        queue = deque([start])
        while queue:
            node = queue.popleft()
            if self.at_goal(node):
                ends.append(node)
            if self.at_start(node):
                back_again.append(node)
            for event, after in self.events(node):
                if isinstance(after, Broken):
                    return self.failed(came_from, node, event, after)
                if after in before:
                    before[after].append(node)
                    continue
                came_from[after] = (node, event)
                before[after] = [node]
                if after.state not in self.sound:
                    if broken := self.domain.broken(after.state):
                        return self.failed(came_from, node, event, broken)
                    self.sound.add(after.state)
                queue.append(after)
        visited = len(before)
        dead_ends = visited - len(_leading_to(ends, before))
        return Explored(visited, bool(ends), dead_ends, visited - len(_leading_to(back_again, before)), None)

    def at_goal(self, node: Node) -> bool:
        if node.back or node.position < len(self.procedure.moves):
            return False
        return self.domain.settled(node.state, frozenset({NEW}), NEW)

    def at_start(self, node: Node) -> bool:
        """Whether the way back has ended and everything is as it was at the start."""
        return node.back and node.position == len(self.procedure.moves) and node.state == self.domain.start()

    def events(self, node: Node) -> Iterator[tuple[str, Node | Broken]]:
        """Everything that may come next, interchangeable parts of the domain in one order."""
        for event, after in self.all_events(node):
            if isinstance(after, Broken):
                yield event, after
            else:
                replicas = not after.touched
                yield event, after._replace(state=self.domain.canonical(after.state, replicas=replicas))

    def all_events(self, node: Node) -> Iterator[tuple[str, Node | Broken]]:
        """By itself, by the procedure, by killing it, by turning it round."""
        for event, after in self.domain.happens(node.state):
            yield event, after if isinstance(after, Broken) else node._replace(state=after)
        yield from self.moves(node)
        if self.procedure.resumable:
            if node.position or node.touched:
                yield "the procedure is killed and run again", node._replace(position=0, touched=frozenset())
            turned = "the rotation is rolled back" if not node.back else "the roll-back is given up"
            once = 1 if self.domain.fences else 0
            yield turned, node._replace(back=not node.back, position=0, touched=frozenset(), turned=once)

    def moves(self, node: Node) -> Iterator[tuple[str, Node | Broken]]:
        if node.position == len(self.procedure.moves):
            return
        move = self.procedure.moves[node.position]
        done = node._replace(position=node.position + 1, touched=frozenset())
        label = f"[{move.step}{', back' if node.back else ''}]"
        if self.procedure.resumable and not node.touched and move.step in self.already(node):
            yield f"{label} is already true", done
        if move.gate is not None and not node.touched and not self.may_pass(node, move, move.gate):
            return
        targets = self.targets(move)
        if not targets - node.touched:
            fenced = node.turned == 1 and move.kind is StepKind.RESTART_CONTROL_PLANE
            yield f"{label} complete", done._replace(turned=2) if fenced else done
            return
        for target in sorted(targets - node.touched):
            for event, after in self.act(node, move, target):
                if isinstance(after, Broken):
                    yield f"{label} {event}", after
                else:
                    yield f"{label} {event}", node._replace(state=after, touched=node.touched | {target})

    def targets(self, move: Move) -> frozenset[_Target]:
        clusters = [self.names[name] for name in move.clusters]
        match move.kind:
            case StepKind.WIDEN_BUNDLE | StepKind.SWITCH_ISSUER | StepKind.NARROW_BUNDLE:
                return frozenset((c, -1) for c in clusters)
            case StepKind.RESTART_CONTROL_PLANE:
                return frozenset((c, p) for c in clusters for p in self.domain.control_plane(c))
            case StepKind.RESTART_DATA_PLANE:
                return frozenset((c, p) for c in clusters for p in self.domain.workloads(c))
            case _:
                return frozenset()

    def act(self, node: Node, move: Move, target: _Target) -> Iterator[tuple[str, State | Broken]]:
        """What a move does to one target; several outcomes where it may end in several ways."""
        c, p = target
        name = self.domain.clusters[c][0]
        _, stays = self.aims(node.back)
        match move.kind:
            case StepKind.WIDEN_BUNDLE:
                both = "+".join([*sorted(self.domain.before), NEW])
                yield f"{name}: bundle := {both}", self.domain.write_bundle(node.state, c, self.domain.before | {NEW})
            case StepKind.NARROW_BUNDLE:
                only = "+".join(sorted(stays))
                yield f"{name}: bundle := {only}", self.domain.write_bundle(node.state, c, stays)
            case StepKind.SWITCH_ISSUER:
                root = self.domain.issuer_before(c) if node.back else NEW
                yield f"{name}: issuer := {root}", self.domain.write_issuer(node.state, c, root)
            case StepKind.RESTART_CONTROL_PLANE:
                # What the product asks for: nobody's answer is believed after a turn, until all were started anew once
                # or a bundle was narrowed, which is not done before.
                narrowed = any(cluster.bundle == stays for cluster in node.state)
                yield from self.domain.settle(node.state, c, p, afresh=node.turned == 1 and not narrowed)
            case _:
                yield from self.domain.restart_workload(node.state, c, p)

    def may_pass(self, node: Node, move: Move, gate: Phase) -> bool:
        key = (node.state, node.back, gate, move.clusters)
        if key not in self.open:
            seen = _restricted(self.domain.observe(node.state), move.clusters)
            goes, stays = self.aims(node.back)
            judge = may_probe if gate is Phase.DONE else None
            found = judge(seen, goes, stays, NOW) if judge else may_enter(gate, seen, goes, stays, NOW)
            self.open[key] = found.open
        return self.open[key]

    def already(self, node: Node) -> frozenset[str]:
        """Names of the steps that a plan made now would mark done."""
        key = (node.state, node.back, turned := bool(node.turned))
        if key not in self.done:
            goes, stays = self.aims(node.back)
            found = plan(self.domain.observe(node.state), goes, stays, back=node.back, turned=turned)
            self.done[key] = frozenset(step.name for step in found.steps if step.done)
        return self.done[key]

    def aims(self, back: bool) -> tuple[frozenset[Root], frozenset[Root]]:
        """(roots to go, roots to stay)."""
        new = frozenset({NEW})
        return (new, self.domain.before) if back else (self.domain.before, new)

    @staticmethod
    def failed(came_from: dict[Node, tuple[Node, str] | None], node: Node, last: str, broken: Broken) -> Explored:
        events = [last]
        step = came_from[node]
        while step is not None:
            events.append(step[1])
            step = came_from[step[0]]
        found = Counterexample(tuple(reversed(events)), broken.reason)
        return Explored(len(came_from), finished=False, dead_ends=0, stranded=0, counterexample=found)


def _restricted(observation: Observation, clusters: tuple[str, ...]) -> Observation:
    """What a procedure sees that looks at these clusters only."""
    return replace(observation, clusters=tuple(c for c in observation.clusters if c.name in clusters))


def _leading_to(ends: list[Node], before: dict[Node, list[Node]]) -> set[Node]:
    found = set(ends)
    queue = deque(ends)
    while queue:
        for earlier in before[queue.popleft()]:
            if earlier not in found:
                found.add(earlier)
                queue.append(earlier)
    return found
