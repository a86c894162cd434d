"""A re-date: each cluster's self-signed root gets another certificate of the same key and the same name.

Old and new verify each other's leaves, so no order of events breaks anything, and nobody's trust is taken away before
it ended by itself. What is judged is progress: who still has the certificate that ends earlier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from capstan.pki.clock import require_aware
from capstan.trust.gates import MAX_AGE, GateResult
from capstan.trust.observation import ClusterObservation, Fingerprint, Observation
from capstan.trust.phase import Phase, Progress
from capstan.trust.plan import NEVER_RESTARTED, Plan
from capstan.trust.safety import Unsafe, verdict
from capstan.trust.steps import Policy, Step, StepKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from capstan.trust.observation import Peer

Roots: TypeAlias = Mapping[str, Fingerprint]
"""Cluster -> fingerprint of its self-signed root."""


@dataclass(frozen=True, slots=True)
class RedateAim:
    """The same roots with another life: an `Aim`.

    Attributes:
        before: The roots as they were found.
        goal: The same with another life; empty while they are not minted.
    """

    before: Roots
    goal: Roots

    def behind(self, gate: Phase) -> Phase | None:
        """TRUST before DONE."""
        return Phase.TRUST if gate is Phase.DONE else None

    def progress(self, seen: Observation, phase: Phase) -> Progress:
        """Who holds, hands out and declares exactly the re-dated root of its cluster; unread counts as not."""
        peers = seen.peers
        missing = tuple(f"{c.name}: a re-dated root: none is minted" for c in seen.clusters if c.name not in self.goal)
        if missing or phase is Phase.PREPARE:
            return Progress(phase, 0 if missing else len(peers), len(peers), missing)
        waiting: list[str] = []
        late = 0
        for cluster in seen.clusters:
            waiting += self._places(cluster)
            behind = list(self._peers(cluster))
            late += len(behind)
            waiting += [why for _, why in behind]
        return Progress(phase, len(peers) - late, len(peers), tuple(waiting))

    def may_enter(
        self,
        phase: Phase,
        seen: Observation,
        now: datetime,
        *,
        old_leaf_refused: bool | None = None,  # noqa: ARG002  # no root goes, so that there is no leaf to be refused
    ) -> GateResult:
        """PREPARE: everything can be read and everyone trusts everyone. TRUST: and the re-dated roots exist. DONE: and
        everybody has them, at the latest when the last leaf that came with the old one has ended."""
        require_aware(now)
        found = verdict(seen)
        waiting = [] if now - seen.taken_at <= MAX_AGE else [f"a fresh observation: this one is of {seen.taken_at}"]
        contradictions: list[str] = []
        if isinstance(found, Unsafe):
            waiting += [f"{name}: {why}" for name, why in found.unreadable]
            contradictions = [*(f"now: {pair}" for pair in found.pairs), *(f"{n}: leaf {p}" for n, p in found.expired)]
        evidence = [f"now: {'safe' if found.safe else 'not safe'}"]
        ends: list[datetime] = []
        if phase is not Phase.PREPARE:
            waiting += self.progress(seen, Phase.PREPARE).waiting_for
        if phase is Phase.DONE and len(self.goal) == len(seen.clusters):
            far = self.progress(seen, Phase.TRUST)
            evidence.append(f"re-dated: {far.done} of {far.total} peers")
            waiting += far.waiting_for
            behind = [peer for cluster in seen.clusters for peer, _ in self._peers(cluster)]
            ends = [peer.leaf.not_after for peer in behind if peer.leaf is not None]
        bound = max(ends, default=None) if waiting else None
        return GateResult(
            phase, tuple(evidence), tuple(dict.fromkeys(waiting)), tuple(contradictions), bound,
            bound is not None and now > bound,
        )  # fmt: skip

    def may_probe(self, seen: Observation, now: datetime) -> GateResult:
        """As the last gate."""
        return self.may_enter(Phase.DONE, seen, now)

    def plan(self, seen: Observation, policy: Policy, *, back: bool = False, turned: bool = False) -> Plan:
        """Re-date, restart what signs, wait."""
        del turned
        clusters = tuple(cluster.name for cluster in seen.clusters)
        unminted = tuple(name for name in clusters if name not in self.goal)
        source = tuple(c.name for c in seen.clusters if c.bundle != self._only(c))
        places = tuple(c.name for c in seen.clusters if any(self._places(c)))
        anybody = tuple(c.name for c in seen.clusters if any(self._places(c)) or any(self._peers(c)))
        reverse = "the old certificate is written again, from the vault, while it has not ended"
        steps = [
            Step(StepKind.MINT, Phase.PREPARE, "each root with another life, in the vault only",
                 "the new certificates are discarded", clusters, unminted),
            Step(StepKind.APPROVE, Phase.TRUST, "nothing; a person decides", "nothing to reverse", clusters, source),
            Step(StepKind.REDATE_ROOT, Phase.TRUST, "each root := the same key and name with another life", reverse,
                 clusters, source),
            Step(StepKind.RESTART_CONTROL_PLANE, Phase.TRUST, "everything that signs leaves starts anew", reverse,
                 clusters, places),
            Step(StepKind.GATE_TRUST, Phase.TRUST, "nothing; waits until everybody has the re-dated root",
                 "nothing to reverse", clusters, anybody),
        ]  # fmt: skip
        stays = frozenset(self.goal.values())
        phase = Phase.PREPARE if unminted else Phase.TRUST if anybody else Phase.DONE
        return Plan(
            steps=tuple(step for step in steps if not back or step.kind not in (StepKind.MINT, StepKind.APPROVE)),
            phase=phase,
            old=frozenset(self.before.values()) - stays,
            stays=stays,
            policy=policy,
            verdict=verdict(seen),
            domain=tuple(
                {
                    "name": cluster.name,
                    "root": self.before.get(cluster.name),
                    "owners": sorted(
                        {f"{p.role}: {p.owner}" for p in cluster.peers if p.owner.kind not in NEVER_RESTARTED}
                    ),
                }
                for cluster in sorted(seen.clusters, key=lambda each: each.name)
            ),
            kind="re-date",
        )

    def _only(self, cluster: ClusterObservation) -> frozenset[Fingerprint]:
        return frozenset({self.goal[cluster.name]} if cluster.name in self.goal else ())

    def _places(self, cluster: ClusterObservation) -> Iterator[str]:
        only = self._only(cluster)
        for place, roots in (("bundle", cluster.bundle), *cluster.declared):
            if roots != only:
                yield f"{cluster.name}: {place} does not hold exactly the re-dated root"
        for signer in cluster.signers:
            if signer.roots is None:
                yield f"{cluster.name}: {signer.name} cannot be read ({signer.unreadable or 'no reason given'})"
            elif signer.roots != only:
                yield f"{cluster.name}: {signer.name} does not hand out exactly the re-dated root"

    def _peers(self, cluster: ClusterObservation) -> Iterator[tuple[Peer, str]]:
        only = self._only(cluster)
        for peer in cluster.peers:
            if peer.trusts is None:
                yield peer, f"{peer.name}: trust store cannot be read ({peer.unreadable or 'no reason given'})"
            elif peer.trusts != only:
                yield peer, f"{peer.name}: does not hold exactly the re-dated root"
