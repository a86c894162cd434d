"""A rotation of the issuers alone: other issuing CAs under the roots that everybody trusts already.

Nobody's trust changes, so the invariant cannot be broken by it as long as each new issuer chains to a root that every
live trust store holds. What is judged is progress: who still signs with, or presents a leaf of, another issuer.

    PREPARE   the new issuers exist, in the vault only
    ISSUE     every issuer := new; every signer takes it; leaves renew
    DONE      every issuer, every signer and every live leaf is of the new issuers

The replaced issuers stay trusted under their roots until they expire: nothing here refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from capstan.errors import InvalidInput
from capstan.pki.clock import require_aware
from capstan.trust.gates import MAX_AGE, GateResult, LeafEnds
from capstan.trust.observation import ClusterObservation, Fingerprint, Issuer, Observation
from capstan.trust.phase import Phase, Progress
from capstan.trust.plan import NEVER_RESTARTED, Plan
from capstan.trust.safety import Unsafe, verdict
from capstan.trust.steps import LeafRenewal, Policy, Step, StepKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

Issuers: TypeAlias = Mapping[str, Fingerprint]
"""Cluster -> fingerprint of its issuer."""


def derive_issuer_phase(observation: Observation, goal: Issuers) -> Phase:
    """PREPARE until a new issuer is in use anywhere, ISSUE until all that signs and is presented is of the new ones."""
    if not _complete(observation, goal) or not any(
        _met(cluster, goal[cluster.name]) for cluster in observation.clusters
    ):
        return Phase.PREPARE
    return Phase.DONE if issuer_progress(observation, Phase.ISSUE, goal).reached else Phase.ISSUE


def issuer_progress(observation: Observation, phase: Phase, goal: Issuers) -> Progress:
    """Measure a phase's goal: PREPARE that every cluster has an issuer to go to, ISSUE that nothing else is in use."""
    peers = observation.peers
    if phase is Phase.PREPARE or not _complete(observation, goal):
        missing = tuple(
            f"{cluster.name}: a new issuer: none is minted"
            for cluster in observation.clusters
            if cluster.name not in goal
        )
        return Progress(phase, 0 if missing else len(peers), len(peers), missing)
    waiting: list[str] = []
    done = 0
    for cluster in observation.clusters:
        wanted = goal[cluster.name]
        waiting += _places_behind(cluster, wanted)
        for peer in cluster.peers:
            if peer.leaf is None:
                waiting.append(f"{peer.name}: leaf cannot be read ({peer.unreadable or 'no reason given'})")
            elif peer.leaf.issuer != wanted:
                waiting.append(f"{peer.name}: leaf of another issuer until {peer.leaf.not_after:%F %T}Z")
            else:
                done += 1
    return Progress(phase, done, len(peers), tuple(waiting))


def may_enter_issuer(
    phase: Phase,
    observation: Observation,
    goal: Issuers,
    anchors: Mapping[str, frozenset[Fingerprint]],
    now: datetime,
    *,
    max_age: timedelta = MAX_AGE,
) -> GateResult:
    """Judge whether a phase of an issuer rotation may be entered.

    PREPARE: everything can be read, and the domain is safe as it is.
    ISSUE: that, and the new issuers exist, and leaves of them are trusted by everybody.
    DONE: that, and every configured issuer, every live signer and every live leaf is of the new issuers.

    Args:
        goal: The issuers to have in the end; empty while they are not minted.
        anchors: Cluster -> roots to which its new issuer chains.
        now: Aware time of judging; an observation older than `max_age` proves nothing.
    """
    require_aware(now)
    evidence: list[str] = []
    waiting: list[str] = []
    contradictions: list[str] = []
    if now - observation.taken_at > max_age:
        waiting.append(f"a fresh observation: this one is {now - observation.taken_at} old")

    def judge(seen: Observation, when: str) -> None:
        found = verdict(seen)
        evidence.append(f"{when}: {'safe' if found.safe else 'not safe'}")
        if isinstance(found, Unsafe):
            waiting.extend(f"{name}: {why}" for name, why in found.unreadable)
            contradictions.extend(f"{when}: {pair}" for pair in found.pairs)
            contradictions.extend(f"{name}: leaf {period}" for name, period in found.expired)
            contradictions.extend(found.signing_faults)

    judge(observation, "now")
    if phase.number >= Phase.TRUST.number:
        prepared = issuer_progress(observation, Phase.PREPARE, goal)
        waiting.extend(prepared.waiting_for)
        if prepared.reached:
            judge(_switched(observation, goal, anchors), "with every issuer switched")
    if phase is Phase.DONE:
        found = issuer_progress(observation, Phase.ISSUE, goal)
        evidence.append(f"issue: {found.done} of {found.total} peers")
        waiting.extend(found.waiting_for)
    ends = _ends(observation, goal) if waiting and phase is Phase.DONE else LeafEnds()
    bound = ends.bound
    return GateResult(
        phase=phase,
        evidence=tuple(dict.fromkeys(evidence)),
        waiting_for=tuple(dict.fromkeys(waiting)),
        contradictions=tuple(dict.fromkeys(contradictions)),
        bound=bound,
        overdue=bound is not None and now > bound,
        assumed=tuple(ends.assumed),
        observed=ends.observed,
    )


def plan_issuers(
    observation: Observation,
    before: Issuers,
    goal: Issuers,
    policy: Policy | None = None,
    *,
    back: bool = False,
    turned: bool = False,
) -> Plan:
    """Plan a rotation of the issuers, from whatever state the domain is in.

    Args:
        before: The issuers that are to be replaced.
        goal: Those that are to sign in the end; empty while they are not minted.
        back: This is a way back, approved as a whole.
        turned: The rotation was turned round before: what is seen of a signer may be what it had then.

    Raises:
        InvalidInput: No cluster was observed, two of them share a name, or the issuer of one before is not known.
    """
    policy = policy or Policy()
    names = [cluster.name for cluster in observation.clusters]
    if not names or len(set(names)) != len(names) or set(names) - set(before):
        raise InvalidInput(
            "no rotation of issuers can be planned",
            observed=f"clusters {names}, issuers before of {sorted(before)}",
            expected="at least one cluster, each of its own name, each with the issuer that is to be replaced",
        )
    stays = frozenset(goal.values())
    return Plan(
        steps=_steps(observation, goal, policy, back=back, turned=turned or back),
        phase=derive_issuer_phase(observation, goal),
        old=frozenset(before.values()) - stays,
        stays=stays,
        policy=policy,
        verdict=verdict(observation),
        domain=tuple(sorted((_domain(c, goal) for c in observation.clusters), key=lambda each: str(each["name"]))),
        kind="issuer",
    )


def _steps(observation: Observation, goal: Issuers, policy: Policy, *, back: bool, turned: bool) -> tuple[Step, ...]:
    stays, goes = ("old", "new") if back else ("new", "old")
    reversible = f"{goes} issuer is written again; both chain to a root that everybody trusts"
    if back:
        reversible = "the rotation is turned forward again; both chain to a root that everybody trusts"
    clusters = tuple(cluster.name for cluster in observation.clusters)

    def step(kind: StepKind, phase: Phase, changes: str, reverse: str, pending: Iterator[str]) -> Step:
        return Step(kind, phase, changes, reverse, clusters, tuple(pending))

    def behind(*, signers: bool, leaves: bool) -> Iterator[str]:
        for cluster in observation.clusters:
            wanted = goal.get(cluster.name)
            issuer = wanted is None or cluster.issuer is None or cluster.issuer.fingerprint != wanted
            signer = turned or not cluster.signers or any(each.issuer != wanted for each in cluster.signers)
            leaf = any(peer.leaf is None or peer.leaf.issuer != wanted for peer in cluster.peers)
            if issuer or (signers and signer) or (leaves and leaf):
                yield cluster.name

    switch = step(
        StepKind.SWITCH_ISSUER, Phase.ISSUE, f"every issuer := {stays}, under the same root", reversible,
        behind(signers=False, leaves=False),
    )  # fmt: skip
    take = step(
        StepKind.RESTART_CONTROL_PLANE, Phase.ISSUE,
        "everything that signs leaves takes it over; started anew where it cannot do so live", reversible,
        behind(signers=True, leaves=False),
    )  # fmt: skip
    restart = step(
        StepKind.RESTART_DATA_PLANE, Phase.ISSUE, "meshed workloads start anew", reversible,
        behind(signers=False, leaves=True),
    )  # fmt: skip
    wait = step(
        StepKind.AWAIT_LEAVES, Phase.ISSUE, f"nothing; waits until every live leaf is of the {stays} issuer",
        "nothing to reverse", behind(signers=False, leaves=True),
    )  # fmt: skip
    acting = [switch, take, *((restart,) if policy.renewal is LeafRenewal.RESTART else ()), wait]
    if back:
        return tuple(acting)
    missing = iter([name for name in clusters if name not in goal])
    mint = step(
        StepKind.MINT, Phase.PREPARE, "new issuers under the present root, in the vault only",
        "the new material is discarded", missing,
    )  # fmt: skip
    if Phase.ISSUE not in policy.approvals:
        return (mint, *acting)
    undone = {name for each in acting for name in each.pending}
    approve = step(
        StepKind.APPROVE, Phase.ISSUE, "nothing; a person decides", "nothing to reverse",
        (name for name in clusters if name in undone),
    )  # fmt: skip
    return (mint, approve, *acting)


def _complete(observation: Observation, goal: Issuers) -> bool:
    return all(cluster.name in goal for cluster in observation.clusters)


def _met(cluster: ClusterObservation, wanted: Fingerprint) -> bool:
    """Whether an issuer is in use anywhere in its cluster."""
    return (
        (cluster.issuer is not None and cluster.issuer.fingerprint == wanted)
        or any(signer.issuer == wanted for signer in cluster.signers)
        or any(peer.leaf is not None and peer.leaf.issuer == wanted for peer in cluster.peers)
    )


def _places_behind(cluster: ClusterObservation, wanted: Fingerprint) -> Iterator[str]:
    if cluster.issuer is None:
        yield f"{cluster.name}: issuer cannot be read"
    elif cluster.issuer.fingerprint != wanted:
        yield f"{cluster.name}: issuer is {cluster.issuer.fingerprint[:16]}, not {wanted[:16]}"
    if cluster.roots_with_leaf and not cluster.signers:
        yield f"{cluster.name}: no live process that signs leaves was found"
    for signer in cluster.signers:
        if signer.issuer is None:
            yield f"{cluster.name}: {signer.name} cannot be read ({signer.unreadable or 'no reason given'})"
        elif signer.issuer != wanted:
            yield f"{cluster.name}: {signer.name} signs with {signer.issuer[:16]}"


def _switched(observation: Observation, goal: Issuers, anchors: Mapping[str, frozenset[Fingerprint]]) -> Observation:
    """The domain as it would be with every issuer switched; who signs with the old one still counts beside it."""
    return replace(
        observation,
        clusters=tuple(
            replace(
                cluster,
                issuer=Issuer(goal[cluster.name], anchors.get(cluster.name, frozenset()), observation.taken_at),
                signing_faults=(),
            )
            for cluster in observation.clusters
        ),
    )


def _ends(observation: Observation, goal: Issuers) -> LeafEnds:
    """The ends of the leaves of other issuers; one that may still be signed lives a whole leaf lifetime from now."""
    ends = LeafEnds()
    for cluster in observation.clusters:
        wanted = goal.get(cluster.name)
        latest = observation.taken_at + timedelta(seconds=cluster.leaf_lifetime)
        if cluster.issuer is None or cluster.issuer.fingerprint != wanted:
            ends.assume(f"{cluster.name}: issuer", latest)
        for signer in cluster.signers:
            if signer.issuer != wanted:
                ends.assume(f"{cluster.name}: {signer.name}", latest)
        for peer in cluster.peers:
            if peer.leaf is None:
                ends.assume(peer.name, latest)
            elif peer.leaf.issuer != wanted:
                ends.seen(peer.leaf.not_after)
    return ends


def _domain(cluster: ClusterObservation, goal: Issuers) -> dict[str, Any]:
    """What an approver decides on in one cluster, free of pod names, times and our own progress."""
    issuer = cluster.issuer
    wanted = goal.get(cluster.name)
    return {
        "name": cluster.name,
        "roots": sorted(cluster.bundle),
        "issuer": None if issuer is None else "new" if issuer.fingerprint == wanted else issuer.fingerprint,
        "owners": sorted({f"{p.role}: {p.owner}" for p in cluster.peers if p.owner.kind not in NEVER_RESTARTED}),
    }
