"""Which steps a rotation has, in which order, and which of them are already true.

This order is the product: `capstan.trust.explore` proves it safe, and every other order it tries unsafe.

Restarts are made idempotent by a stamp on the workload. The stamp must name rotation, turn and `Step.name`: the
restart after the switch is a different one from those of the trust and distrust phases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capstan.trust.observation import ClusterObservation, Fingerprint, Observation, Role
from capstan.trust.phase import Goal, Phase, needed_roots, staying
from capstan.trust.steps import LeafRenewal, Policy, Step, StepKind

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class _Words:
    """How steps are told to a person: which roots stay and which go, and how each phase is taken back."""

    stays: str
    goes: str
    article: str
    from_trust: str
    from_issue: str
    from_distrust: str


_FORWARD = _Words(
    stays="new",
    goes="old",
    article="an",
    from_trust="old bundle is written again and pods restarted; both issuers stay trusted meanwhile",
    from_issue="old issuer is written again; old and new are both trusted until the bundles are narrowed",
    from_distrust="bundles are widened again and pods restarted, while the old key is kept",
)
_BACK = _Words(
    stays="old",
    goes="new",
    article="the",
    from_trust="the rotation is turned forward again; both roots are trusted meanwhile",
    from_issue="the rotation is turned forward again; both roots are trusted until the bundles are narrowed",
    from_distrust="the rotation is turned forward again, until its way back has ended",
)


class Planner:
    """Plans the steps for one observation."""

    def __init__(
        self,
        observation: Observation,
        old: frozenset[Fingerprint],
        new: Goal,
        policy: Policy,
        *,
        back: bool = False,
        turned: bool = False,
    ) -> None:
        self.observation = observation
        self.back = back
        self.turned = turned or back
        self.renewing = all(cluster.roots_with_leaf for cluster in observation.clusters)
        self.words = _BACK if back else _FORWARD
        self.policy = policy
        self.only = staying(new)
        self.fenced = self.turned and all(cluster.bundle != self.only for cluster in observation.clusters)
        self.needed = needed_roots(observation, old, self.only) if self.only else old

    def steps(self) -> tuple[Step, ...]:
        """All steps, in order."""
        say = self.words
        widen = [
            self.step(
                StepKind.WIDEN_BUNDLE, Phase.TRUST, f"every bundle := {say.goes} + {say.stays}", say.from_trust,
                self.lacks_roots,
            ),
            *self.restarts(Phase.TRUST, say.from_trust, self.distrusts_needed),
            self.step(
                StepKind.GATE_TRUST, Phase.TRUST, f"nothing; waits until every live trust store holds {say.stays}",
                "nothing to reverse", self.trust_open,
            ),
        ]  # fmt: skip
        issue = [
            self.step(
                StepKind.SWITCH_ISSUER, Phase.ISSUE, f"every issuer := {say.stays}", say.from_issue, self.issues_old
            ),
            *self.restarts(Phase.ISSUE, say.from_issue, self.may_sign_old),
            self.step(
                StepKind.AWAIT_LEAVES, Phase.ISSUE, f"nothing; waits until every live leaf chains to {say.stays}",
                "nothing to reverse", self.issue_open,
            ),
        ]  # fmt: skip
        narrow = [
            self.step(
                StepKind.NARROW_BUNDLE, Phase.DISTRUST, f"every bundle := {say.stays} only", say.from_distrust,
                self.bundles_differ,
            ),
            *self.restarts(Phase.DISTRUST, say.from_distrust, self.trusts_more),
            self.step(
                StepKind.GATE_DISTRUST, Phase.DISTRUST,
                f"nothing; waits until every live trust store is {say.stays} only",
                "nothing to reverse", self.distrust_open,
            ),
            self.step(
                StepKind.PROBE_REFUSAL, Phase.DISTRUST,
                f"nothing; presents a leaf of {say.article} {say.goes} root, to be refused",
                "nothing to reverse", lambda _: True,
            ),
        ]  # fmt: skip
        return (
            *(() if self.back else (self.mint(),)),
            *self.approved(Phase.TRUST, widen),
            *self.approved(Phase.ISSUE, issue),
            *self.approved(Phase.DISTRUST, narrow),
        )

    def mint(self) -> Step:
        return self.step(
            StepKind.MINT, Phase.PREPARE, "a new root and new issuers, in the vault only",
            "the new material is discarded", lambda _: not self.only,
        )  # fmt: skip

    def approved(self, phase: Phase, steps: list[Step]) -> tuple[Step, ...]:
        """The phase's steps behind an approval, which is moot once nothing in the phase is left to act on.

        The way back is approved as a whole, before it begins.
        """
        if self.back or phase not in self.policy.approvals:
            return tuple(steps)
        acting = {name for step in steps if step.kind is not StepKind.PROBE_REFUSAL for name in step.pending}
        approval = self.step(
            StepKind.APPROVE, phase, "nothing; a person decides", "nothing to reverse", lambda c: c.name in acting
        )
        return (approval, *steps)

    def restarts(
        self, phase: Phase, reversible: str, behind: Callable[[ClusterObservation, Role], bool]
    ) -> tuple[Step, ...]:
        """Control plane first: it must be able to serve what the workloads will ask of it.

        Workloads are restarted where only that gives them what the phase is about (Linkerd's trust stores), and where
        the policy does not wait for their leaves to renew by themselves.
        """
        by_restart = self.policy.renewal is LeafRenewal.RESTART or (phase is not Phase.ISSUE and not self.renewing)
        control_plane = "control-plane pods start anew"
        if self.renewing:
            control_plane = "every replica of the control plane takes it over; started anew where it cannot do so live"
        steps = [
            self.step(
                StepKind.RESTART_CONTROL_PLANE, phase, control_plane, reversible,
                lambda cluster: behind(cluster, Role.CONTROL_PLANE) or self.replicas_behind(cluster, phase),
            )
        ]  # fmt: skip
        if by_restart:
            steps.append(
                self.step(
                    StepKind.RESTART_DATA_PLANE, phase, "meshed workloads start anew", reversible,
                    lambda cluster: behind(cluster, Role.WORKLOAD),
                )
            )  # fmt: skip
        return tuple(steps)

    def step(
        self,
        kind: StepKind,
        phase: Phase,
        changes: str,
        reversible: str,
        pending: Callable[[ClusterObservation], bool],
    ) -> Step:
        clusters = self.observation.clusters
        return Step(
            kind=kind,
            phase=phase,
            changes=changes,
            reversible=reversible,
            clusters=tuple(cluster.name for cluster in clusters),
            pending=tuple(cluster.name for cluster in clusters if pending(cluster)),
        )

    # What is still to be done in one cluster. Without a new root everything is.

    def lacks_roots(self, cluster: ClusterObservation) -> bool:
        return not self.only or any(not self.needed <= roots for roots in places(cluster))

    def bundles_differ(self, cluster: ClusterObservation) -> bool:
        return any(roots != self.only for roots in places(cluster))

    def distrusts_needed(self, cluster: ClusterObservation, role: Role) -> bool:
        return not self.only or any(
            peer.trusts is None or not self.needed <= peer.trusts for peer in cluster.peers if peer.role is role
        )

    def trusts_more(self, cluster: ClusterObservation, role: Role) -> bool:
        return any(peer.trusts != self.only for peer in cluster.peers if peer.role is role)

    def issues_old(self, cluster: ClusterObservation) -> bool:
        return cluster.issuer is None or not cluster.issuer.anchors & self.only

    def may_sign_old(self, cluster: ClusterObservation, role: Role) -> bool:
        """What a signer has in memory cannot be read: it may miss the new issuer, or one written back (a roll-back).

        Leaves prove what it had when it signed them, not what it has now. So the control plane is restarted after
        every switch, and no observation makes that restart superfluous until the bundle no longer holds an old root.
        Signers that can be asked one by one are judged by their answers (`replicas_behind`).
        """
        if role is Role.CONTROL_PLANE:
            return not cluster.roots_with_leaf and cluster.bundle != self.only
        return self.presents_old(cluster, role)

    def replicas_behind(self, cluster: ClusterObservation, phase: Phase) -> bool:
        """Whether some replica of a control plane that can be asked does not hand out, or sign with, what it should.

        Once a rotation was turned round, an answer may be out of date in a way that cannot be seen: bundle and issuer
        go back to values that they had before, and what was written in between may still be on its way to the replica.
        Then every replica is started anew, with nothing on its way any more, until the first bundle is narrowed: which
        no gate allows before that was done.
        """
        if not cluster.roots_with_leaf:
            return False
        if not self.only or not cluster.signers or self.fenced:
            return True
        match phase:
            case Phase.TRUST:
                return any(signer.roots is None or not self.needed <= signer.roots for signer in cluster.signers)
            case Phase.ISSUE:
                return any(signer.issuer is None or not signer.anchors & self.only for signer in cluster.signers)
            case _:
                return any(signer.roots != self.only for signer in cluster.signers)

    def presents_old(self, cluster: ClusterObservation, role: Role) -> bool:
        return any(
            peer.leaf is None or not peer.leaf.anchors & self.only for peer in cluster.peers if peer.role is role
        )

    def trust_open(self, cluster: ClusterObservation) -> bool:
        behind = self.lacks_roots(cluster) or any(self.distrusts_needed(cluster, role) for role in Role)
        return behind or self.replicas_behind(cluster, Phase.TRUST)

    def issue_open(self, cluster: ClusterObservation) -> bool:
        behind = self.issues_old(cluster) or any(self.presents_old(cluster, role) for role in Role)
        return behind or self.replicas_behind(cluster, Phase.ISSUE)

    def distrust_open(self, cluster: ClusterObservation) -> bool:
        behind = self.bundles_differ(cluster) or any(self.trusts_more(cluster, role) for role in Role)
        return behind or self.replicas_behind(cluster, Phase.DISTRUST)


def places(cluster: ClusterObservation) -> tuple[frozenset[Fingerprint], ...]:
    """Every place of a cluster that declares its roots."""
    return (cluster.bundle, *(roots for _, roots in cluster.declared))
