"""A rotation of webhook certificates: who is called by the API server, what it serves, and what `caBundle` says.

Each hook is a trust domain of its own with one believer: the API server, which holds what `caBundle` holds. Its
observation is a `ClusterObservation` by the name `CLUSTER/HOOK`: `bundle` is caBundle, `issuer` what the Secret holds,
and a peer is a process that serves, with the leaf that it presented.

The order is that of a root: caBundle gets the new certificate beside the old; then the Secret is replaced; and when
every process was seen to serve the new one, caBundle loses the old (facts, section 4d).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from capstan.errors import InvalidInput
from capstan.pki.clock import require_aware
from capstan.trust.gates import MAX_AGE, GateResult
from capstan.trust.observation import ClusterObservation, Fingerprint, Observation
from capstan.trust.phase import Phase, Progress
from capstan.trust.plan import Plan
from capstan.trust.safety import Mistrust, Safe, Unsafe, Verdict
from capstan.trust.steps import Policy, Step, StepKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

Anchors: TypeAlias = Mapping[str, frozenset[Fingerprint]]
"""Hook -> what its caBundle holds."""
Serving: TypeAlias = Mapping[str, Fingerprint]
"""Hook -> the certificate that it serves."""


@dataclass(frozen=True, slots=True)
class Served(Safe):
    """Every call of the API server verifies."""

    def __str__(self) -> str:
        return f"safe: the API server trusts what each of {self.peers} processes serves"


@dataclass(frozen=True, slots=True)
class HookAim:
    """Other serving certificates: an `Aim`.

    Attributes:
        before: What each caBundle held, and is to lose.
        stays: What each is to hold in the end; empty while nothing is minted.
        serves: What each server is to present in the end.
    """

    before: Anchors
    stays: Anchors
    serves: Serving

    def behind(self, gate: Phase) -> Phase | None:
        """TRUST before ISSUE, ISSUE before DISTRUST, DISTRUST before DONE."""
        return {Phase.ISSUE: Phase.TRUST, Phase.DISTRUST: Phase.ISSUE, Phase.DONE: Phase.DISTRUST}.get(gate)

    def progress(self, seen: Observation, phase: Phase) -> Progress:
        """TRUST: caBundle verifies what is served now and what will be. ISSUE: every process serves the new one.
        DISTRUST: caBundle holds nothing else. What could not be read counts as not there."""
        total = len(seen.peers)
        unminted = tuple(
            f"{hook.name}: no new certificate is minted" for hook in seen.clusters if not self._minted(hook)
        )
        if unminted or phase is Phase.PREPARE:
            return Progress(phase, 0 if unminted else total, total, unminted)
        waiting: list[str] = []
        done = 0
        for hook in seen.clusters:
            behind = list(self._behind(hook, phase))
            waiting += [why for _, why in behind]
            late = {pod for pod, _ in behind}
            done += 0 if "" in late and phase is not Phase.ISSUE else len(hook.peers) - len(late - {""})
        return Progress(phase, done, total, tuple(waiting))

    def may_enter(
        self,
        phase: Phase,
        seen: Observation,
        now: datetime,
        *,
        old_leaf_refused: bool | None = None,  # noqa: ARG002  # the API server cannot be made to call a probe
    ) -> GateResult:
        """PREPARE: every process can be read. Each gate after it: the goals of all phases before it are reached.

        A call that fails today is told, and is no reason to refuse: a certificate that has ended is mended by this.
        """
        age = require_aware(now) - seen.taken_at
        waiting = [] if age <= MAX_AGE else [f"a fresh observation: this one is {age} old"]
        found = verdict(seen)
        if isinstance(found, Unsafe):
            waiting += [f"{name}: {why}" for name, why in found.unreadable]
        evidence = [f"now: {'every call verifies' if found.safe else 'calls fail'}"]
        for goal in (Phase.PREPARE, Phase.TRUST, Phase.ISSUE, Phase.DISTRUST):
            if goal.number >= phase.number:
                break
            far = self.progress(seen, goal)
            evidence.append(f"{goal}: {far.done} of {far.total} servers")
            waiting += far.waiting_for
        if phase is Phase.DONE:
            waiting += [f"{hook.name}: {trouble}" for hook in seen.clusters for trouble in hook.troubles]
        return GateResult(phase, tuple(evidence), tuple(dict.fromkeys(waiting)), (), None, False)

    def may_probe(self, seen: Observation, now: datetime) -> GateResult:
        """As the last gate."""
        return self.may_enter(Phase.DONE, seen, now)

    def phase(self, seen: Observation) -> Phase:
        """The first one whose goal is not reached."""
        if not all(self._minted(hook) for hook in seen.clusters):
            return Phase.PREPARE
        if not any(self._introduced(hook) for hook in seen.clusters):
            return Phase.PREPARE
        goals = (Phase.TRUST, Phase.ISSUE, Phase.DISTRUST)
        return next((goal for goal in goals if not self.progress(seen, goal).reached), Phase.DONE)

    def plan(self, seen: Observation, policy: Policy, *, back: bool = False, turned: bool = False) -> Plan:
        """Widen caBundle, replace the Secrets, wait for every process, narrow caBundle; a barrier after each.

        Raises:
            InvalidInput: There is no hook, or two have one name.
        """
        del turned
        names = tuple(hook.name for hook in seen.clusters)
        if not names or len(set(names)) != len(names):
            raise InvalidInput(
                "no rotation of webhook certificates can be planned", observed=f"hooks {list(names)}",
                expected="at least one of Linkerd's webhooks, each of its own name",
            )  # fmt: skip
        served = Phase.ISSUE
        narrow = tuple(hook.name for hook in seen.clusters if hook.bundle != self.stays.get(hook.name))
        secret = tuple(hook.name for hook in seen.clusters if not self._secret_is_new(hook))
        late = tuple(h.name for h in seen.clusters if not self._minted(h) or any(self._behind(h, served)))
        stale = () if secret else late
        widen = tuple(h.name for h in seen.clusters if not self._minted(h) or any(self._behind(h, Phase.TRUST)))
        mint = tuple(hook.name for hook in seen.clusters if not self._minted(hook))
        told = _Told(back)
        asks = {phase: phase in policy.approvals and not back for phase in (Phase.TRUST, Phase.ISSUE, Phase.DISTRUST)}
        steps = [
            *([] if back else [told.step(StepKind.MINT, Phase.PREPARE, names, mint)]),
            *([told.step(StepKind.APPROVE, Phase.TRUST, names, widen)] if asks[Phase.TRUST] else []),
            told.step(StepKind.WIDEN_BUNDLE, Phase.TRUST, names, widen),
            told.step(StepKind.GATE_TRUST, Phase.TRUST, names, widen),
            *([told.step(StepKind.APPROVE, Phase.ISSUE, names, secret)] if asks[Phase.ISSUE] else []),
            told.step(StepKind.SWITCH_ISSUER, Phase.ISSUE, names, secret),
            told.step(StepKind.RESTART_CONTROL_PLANE, Phase.ISSUE, names, secret or stale),
            told.step(StepKind.AWAIT_LEAVES, Phase.ISSUE, names, late),
            *([told.step(StepKind.APPROVE, Phase.DISTRUST, names, narrow)] if asks[Phase.DISTRUST] else []),
            told.step(StepKind.NARROW_BUNDLE, Phase.DISTRUST, names, narrow),
            told.step(StepKind.GATE_DISTRUST, Phase.DISTRUST, names, narrow),
        ]
        stays = frozenset().union(*self.stays.values()) if self.stays else frozenset()
        return Plan(
            steps=tuple(steps),
            phase=self.phase(seen),
            old=frozenset().union(*self.before.values()) - stays if self.before else frozenset(),
            stays=stays,
            policy=policy,
            verdict=verdict(seen),
            domain=tuple(self._domain(hook) for hook in sorted(seen.clusters, key=lambda each: each.name)),
            kind="webhooks",
        )

    def _minted(self, hook: ClusterObservation) -> bool:
        return hook.name in self.stays and hook.name in self.serves

    def _introduced(self, hook: ClusterObservation) -> bool:
        new = self.serves[hook.name]
        chains = [hook.issuer, *(peer.leaf for peer in hook.peers)]
        return bool(self.stays[hook.name] & hook.bundle) or any(c is not None and c.fingerprint == new for c in chains)

    def _secret_is_new(self, hook: ClusterObservation) -> bool:
        return hook.issuer is not None and hook.issuer.fingerprint == self.serves.get(hook.name)

    def _behind(self, hook: ClusterObservation, phase: Phase) -> Iterator[tuple[str, str]]:
        """(pod, or empty for what is declared; who and why)."""
        stays, serves = self.stays[hook.name], self.serves[hook.name]
        if phase is Phase.TRUST and (missing := self._needed(hook) - hook.bundle):
            yield "", f"{hook.name}: caBundle lacks {_short(missing)}"
        if phase is Phase.DISTRUST and hook.bundle != stays:
            yield "", f"{hook.name}: caBundle holds {_short(hook.bundle)}"
        if phase is not Phase.ISSUE:
            return
        if hook.issuer is None or hook.issuer.fingerprint != serves:
            held = hook.issuer.fingerprint[:16] if hook.issuer else "nothing readable"
            yield "", f"{hook.name}: the Secret holds {held}"
        if not hook.peers:
            yield "", f"{hook.name}: no running pod serves it"
        for peer in hook.peers:
            if peer.leaf is None:
                yield peer.pod, f"{peer.name}: cannot be read ({peer.unreadable or 'no reason given'})"
            elif peer.leaf.fingerprint != serves:
                yield peer.pod, f"{peer.name}: still serves {peer.leaf.fingerprint[:16]}"

    def _needed(self, hook: ClusterObservation) -> frozenset[Fingerprint]:
        """What caBundle must hold before a Secret is replaced: what is to stay, and what is served until then.

        Once everything serves the new one, that alone: it keeps a rotation that is narrowing from being widened again.
        """
        stays, serves = self.stays[hook.name], self.serves[hook.name]
        needed = stays
        chains = [hook.issuer, *(peer.leaf for peer in hook.peers)]
        for chain in chains:
            if chain is None:
                needed |= self.before.get(hook.name, frozenset()) & hook.bundle
            elif chain.fingerprint != serves:
                needed |= chain.anchors
        return needed

    def _domain(self, hook: ClusterObservation) -> dict[str, object]:
        """What an approver decides on: no pod names, no times."""
        known = self.before.get(hook.name, frozenset()) | self.stays.get(hook.name, frozenset())
        held = None if hook.issuer is None else "new" if self._secret_is_new(hook) else hook.issuer.fingerprint
        return {
            "name": hook.name,
            "foreign": sorted(hook.bundle - known),
            "secret": held,
            "owners": sorted({f"{peer.role}: {peer.owner}" for peer in hook.peers}),
        }


def verdict(seen: Observation) -> Verdict:
    """Whether every call of the API server verifies now.

    Raises:
        InvalidInput: No hook was observed.
    """
    if not seen.clusters:
        raise InvalidInput("an observation of no webhook proves nothing", expected="at least one webhook")
    pairs, unreadable = [], []
    for hook in seen.clusters:
        for peer in hook.peers:
            if peer.leaf is None:
                unreadable.append((peer.name, peer.unreadable or "not read"))
            elif not peer.leaf.anchors & hook.bundle:
                who = f"{hook.name}: the API server"
                pairs.append(Mistrust((who,), (peer.name,), hook.bundle, peer.leaf.anchors))
        if not hook.peers:
            unreadable.append((hook.name, "no running pod serves it"))
    if pairs or unreadable:
        return Unsafe(tuple(pairs), tuple(unreadable))
    bundles = {hook.bundle for hook in seen.clusters}
    leaves = {peer.leaf.fingerprint for peer in seen.peers if peer.leaf is not None}
    return Served(len(seen.peers), len(bundles), len(leaves))


_CHANGES = {
    StepKind.MINT: "a serving certificate for each server, in the vault only",
    StepKind.APPROVE: "nothing; a person decides",
    StepKind.WIDEN_BUNDLE: "caBundle := old + {new}: the API server accepts either",
    StepKind.GATE_TRUST: "nothing; waits until every caBundle holds both",
    StepKind.SWITCH_ISSUER: "serving Secret := {new}; its servers read it by themselves",
    StepKind.RESTART_CONTROL_PLANE: "only servers that do not read it are started anew; workloads never",
    StepKind.AWAIT_LEAVES: "nothing; waits until every replica was seen to serve the {new} one",
    StepKind.NARROW_BUNDLE: "caBundle := {new}: the {old} certificate is refused from then on",
    StepKind.GATE_DISTRUST: "nothing; waits until every caBundle holds only the {new} one",
}
_WAY_BACK = {
    StepKind.MINT: "the new certificates are discarded",
    StepKind.WIDEN_BUNDLE: "caBundle := what it was, once nothing serves the new certificate",
    StepKind.SWITCH_ISSUER: "the Secret gets the certificate of before from the vault, while that has not ended",
    StepKind.NARROW_BUNDLE: "caBundle := old + new, while the old certificate is in the vault and has not ended",
}


@dataclass(frozen=True, slots=True)
class _Told:
    """Says what a step changes, for either direction."""

    back: bool

    def step(self, kind: StepKind, phase: Phase, hooks: tuple[str, ...], pending: tuple[str, ...]) -> Step:
        new, old = ("old", "new") if self.back else ("new", "old")
        changes = _CHANGES[kind].format(new=new, old=old)
        return Step(kind, phase, changes, _WAY_BACK.get(kind, "nothing to reverse"), hooks, pending)


def _short(fingerprints: frozenset[Fingerprint]) -> str:
    return ", ".join(sorted(each[:16] for each in fingerprints)) or "nothing"
