"""The aim of what takes the place of expired roots, issuers and leaves. Pure: no I/O, no clock.

An ordinary rotation keeps every handshake; here they fail already, so nothing is waited for that cannot come back by
itself (`capstan.trust.expired` says what can). There is one phase of acting: roots and issuer are written at once, and
whoever is behind is started anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from capstan.pki.clock import require_aware
from capstan.trust.gates import MAX_AGE, GateResult
from capstan.trust.observation import ClusterObservation, Fingerprint, Observation, Peer
from capstan.trust.phase import Phase, Progress
from capstan.trust.plan import NEVER_RESTARTED, Plan
from capstan.trust.safety import Unsafe, verdict
from capstan.trust.steps import Policy, Step, StepKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

Issuers: TypeAlias = Mapping[str, Fingerprint]
"""Cluster -> fingerprint of its issuer."""


@dataclass(frozen=True, slots=True)
class ExpiredAim:
    """Whatever takes the place of what has expired: an `Aim`.

    Attributes:
        before: Cluster -> the issuer it had.
        goal: Cluster -> the issuer that is to sign in the end; empty while none is minted.
        roots_before: The roots that were trusted.
        roots: Those to be trusted in the end; empty while that is not decided.
    """

    before: Issuers
    goal: Issuers
    roots_before: frozenset[Fingerprint]
    roots: frozenset[Fingerprint]

    def behind(self, gate: Phase) -> Phase | None:
        """ISSUE before DONE."""
        return Phase.ISSUE if gate is Phase.DONE else None

    def progress(self, seen: Observation, phase: Phase) -> Progress:
        """PREPARE: it is known what is to be had. ISSUE: everybody has it: the roots, and a living leaf of the issuer.

        What could not be read counts as behind.
        """
        total = len(seen.peers)
        missing = tuple(f"{c.name}: an issuer to go to: none is minted" for c in seen.clusters if not self._ready(c))
        if missing or phase is Phase.PREPARE:
            return Progress(phase, 0 if missing else total, total, missing)
        waiting = [why for cluster in seen.clusters for why in self._places(cluster)]
        behind = [
            f"{peer.name}: {why}"
            for cluster in seen.clusters
            for peer in cluster.peers
            if (why := self._peer(peer, cluster.name, seen.taken_at))
        ]
        return Progress(phase, total - len(behind), total, (*waiting, *behind))

    def may_enter(
        self,
        phase: Phase,
        seen: Observation,
        now: datetime,
        *,
        old_leaf_refused: bool | None = None,  # noqa: ARG002  # what has expired is refused by its date alone
    ) -> GateResult:
        """PREPARE: at any time. ISSUE: it is minted. DONE: everybody has it, and trusts everybody.

        A leaf that has ended is what this is about: it never contradicts, and is waited for at the end.
        """
        require_aware(now)
        waiting = [] if now - seen.taken_at <= MAX_AGE else [f"a fresh observation: this one is of {seen.taken_at}"]
        evidence = [f"{self._alive(seen)} of {len(seen.peers)} live proxies present a leaf that has not ended"]
        if phase is not Phase.PREPARE:
            waiting += self.progress(seen, Phase.PREPARE).waiting_for
        if phase is Phase.DONE:
            found, far = verdict(seen), self.progress(seen, Phase.ISSUE)
            evidence += [f"replaced: {far.done} of {far.total} peers", f"now: {'safe' if found.safe else 'not safe'}"]
            waiting += far.waiting_for
            if isinstance(found, Unsafe):
                waiting += [f"{name}: {why}" for name, why in found.unreadable]
                waiting += [str(pair) for pair in found.pairs]
                waiting += [f"{name}: leaf {period}" for name, period in found.expired]
                waiting += found.signing_faults
        return GateResult(phase, tuple(evidence), tuple(dict.fromkeys(waiting)), (), None, overdue=False)

    def may_probe(self, seen: Observation, now: datetime) -> GateResult:
        """As the last gate."""
        return self.may_enter(Phase.DONE, seen, now)

    def plan(self, seen: Observation, policy: Policy, *, back: bool = False, turned: bool = False) -> Plan:
        """Mint, ask once, write what has to be written, start anew whoever is behind, wait."""
        del back, turned  # there is no way back to what has expired
        clusters = tuple(cluster.name for cluster in seen.clusters)
        unminted = tuple(cluster.name for cluster in seen.clusters if not self._ready(cluster))
        roots_change, issuers_change = self.roots != self.roots_before, dict(self.goal) != dict(self.before)
        sources = tuple(c.name for c in seen.clusters if roots_change and any(self._declared(c)))
        issuers = tuple(c.name for c in seen.clusters if issuers_change and any(self._issuer(c)))
        behind = tuple(
            c.name
            for c in seen.clusters
            if any(self._places(c)) or any(self._peer(peer, c.name, seen.taken_at) for peer in c.peers)
        )
        # Whether a new anchor is needed depends on whose key can be had: it is decided when the rotation begins.
        perhaps = ", where one has ended" if unminted else ""
        reverse = "never: what there was before has expired"

        def step(kind: StepKind, changes: str, pending: tuple[str, ...], phase: Phase = Phase.ISSUE) -> Step:
            return Step(kind, phase, changes, reverse, clusters, pending)

        minted = Step(
            StepKind.MINT, Phase.PREPARE, "what has to be made anew, in the vault only", "it is discarded", clusters,
            unminted,
        )  # fmt: skip
        steps = [
            minted,
            step(StepKind.APPROVE, "nothing; a person decides", behind),
            *([step(StepKind.REPLACE_ROOTS, f"every bundle := roots that live{perhaps}", sources)] * roots_change),
            *([step(StepKind.SWITCH_ISSUER, f"every dead issuer := new{perhaps}", issuers)] * issuers_change),
            step(StepKind.RESTART_CONTROL_PLANE, "identity, then the rest of the control plane, start anew", behind),
            step(
                StepKind.RESTART_DATA_PLANE,
                "every workload with a proxy that is behind starts anew, many at a time, under its budgets", behind,
            ),
            step(StepKind.AWAIT_LEAVES, "nothing; waits until each live proxy has a leaf, trusted by all", behind),
        ]  # fmt: skip
        gone, stays = (
            (self.roots_before - self.roots, self.roots)
            if roots_change and self.roots
            else (frozenset(self.before.values()) - frozenset(self.goal.values()), frozenset(self.goal.values()))
        )
        return Plan(
            steps=tuple(steps),
            phase=Phase.PREPARE if unminted else Phase.ISSUE if behind else Phase.DONE,
            old=gone,
            stays=stays,
            policy=policy,
            verdict=verdict(seen),
            domain=tuple(
                {
                    "name": cluster.name,
                    "issuer": self.before.get(cluster.name),
                    "owners": sorted(
                        {f"{p.role}: {p.owner}" for p in cluster.peers if p.owner.kind not in NEVER_RESTARTED}
                    ),
                }
                for cluster in sorted(seen.clusters, key=lambda each: each.name)
            ),
            kind="expired",
        )

    def _ready(self, cluster: ClusterObservation) -> bool:
        return bool(self.roots) and cluster.name in self.goal

    def _alive(self, seen: Observation) -> int:
        return sum(peer.leaf is not None and peer.leaf.not_after > seen.taken_at for peer in seen.peers)

    def _declared(self, cluster: ClusterObservation) -> Iterator[str]:
        for place, roots in (("bundle", cluster.bundle), *cluster.declared):
            if roots != self.roots:
                yield f"{cluster.name}: {place} does not hold exactly the roots that are to be trusted"

    def _issuer(self, cluster: ClusterObservation) -> Iterator[str]:
        wanted = self.goal.get(cluster.name, "")
        if cluster.issuer is None:
            yield f"{cluster.name}: issuer cannot be read"
        elif cluster.issuer.fingerprint != wanted:
            yield f"{cluster.name}: issuer is {cluster.issuer.fingerprint[:16]}, not {wanted[:16]}"

    def _places(self, cluster: ClusterObservation) -> Iterator[str]:
        yield from self._declared(cluster)
        yield from self._issuer(cluster)

    def _peer(self, peer: Peer, cluster: str, at: datetime) -> str:
        """Why a proxy is behind; empty if it is not."""
        if peer.trusts is None:
            return f"trust store cannot be read ({peer.unreadable or 'no reason given'})"
        if peer.trusts != self.roots:
            return "does not hold exactly the roots that are to be trusted"
        if peer.leaf is None:
            return f"leaf cannot be read ({peer.unreadable or 'no reason given'})"
        if peer.leaf.not_after <= at:
            return f"its leaf ended on {peer.leaf.not_after:%F %T}Z"
        return "" if peer.leaf.issuer == self.goal.get(cluster) else "presents a leaf of another issuer"
