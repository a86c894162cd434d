"""One gate before each phase: open only on evidence read from the live domain.

A gate never acts. Each asks for everything the gates before it ask for, so a gate that is open implies the earlier
ones are, and evidence that moves a peer forward never closes one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from capstan.errors import GateRefused, GateTimedOut, NotYet
from capstan.pki.clock import require_aware
from capstan.trust.phase import Goal, Phase, progress, staying, stores_behind
from capstan.trust.safety import Distrust, SwitchIssuer, Unsafe, Verdict, verdict, who_would_break

if TYPE_CHECKING:
    from capstan.trust.observation import Fingerprint, Observation

MAX_AGE = timedelta(minutes=15)
"""Age from which an observation proves nothing any more."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """A gate's answer.

    Attributes:
        phase: The phase that may (or may not) be entered.
        evidence: What was found, sentence by sentence, for approvers and the record.
        waiting_for: Who has not arrived; waiting may help.
        contradictions: What speaks against going on; waiting does not help.
        bound: Until when the waiting can last at most, from the observed notAfter of the leaves waited for; None when
            nothing observed bounds it.
        overdue: The bound has passed and somebody is still being waited for.
        assumed: Whose leaf's end was not seen: what cannot be read, and what may still sign another. `bound` has a
            whole leaf lifetime for them, from the observation on: whoever looks again counts it from the first look at
            which the same ones were there, else such a wait never ends.
        observed: `bound` without those; None when nothing observed bounds the rest.
    """

    phase: Phase
    evidence: tuple[str, ...]
    waiting_for: tuple[str, ...]
    contradictions: tuple[str, ...]
    bound: datetime | None
    overdue: bool
    assumed: tuple[str, ...] = ()
    observed: datetime | None = None

    @property
    def open(self) -> bool:
        """Whether the phase may be entered."""
        return not self.waiting_for and not self.contradictions

    def require(self) -> GateResult:
        """Return self when open.

        Raises:
            GateRefused: The evidence contradicts going on.
            GateTimedOut: Somebody did not arrive by the bound.
            NotYet: Somebody has not arrived.
        """
        where = f"gate before {self.phase}"
        if self.contradictions:
            raise GateRefused(
                f"phase {self.phase} may not be entered",
                where=where,
                observed="; ".join(self.contradictions),
                expected="every peer trusts every chain that any peer may present, before and after",
                next_command="capstan status",
            )
        if self.overdue:
            raise GateTimedOut(
                f"phase {self.phase} cannot be entered in time",
                stragglers=self.waiting_for,
                where=where,
                observed="; ".join(self.waiting_for),
                expected=f"nobody left by {self.bound:%F %T}Z",
                next_command="restart or remove the ones named, then run again",
            )
        if self.waiting_for:
            raise NotYet(
                f"phase {self.phase} has to wait",
                waiting_for=self.waiting_for,
                where=where,
                observed="; ".join(self.waiting_for),
                expected="nobody to wait for" + (f", at the latest by {self.bound:%F %T}Z" if self.bound else ""),
            )
        return self


@dataclass(slots=True)
class LeafEnds:
    """When the leaves that are waited for end at the latest.

    Attributes:
        observed: The last end that was seen; None while none was.
        latest: The last end of those that cannot be seen: a whole leaf lifetime from the observation on.
        assumed: Who those are.
    """

    observed: datetime | None = None
    latest: datetime | None = None
    assumed: list[str] = field(default_factory=list)

    @property
    def bound(self) -> datetime | None:
        """The later of the two."""
        return max((end for end in (self.observed, self.latest) if end is not None), default=None)

    def seen(self, end: datetime) -> None:
        """A leaf was seen that ends then."""
        self.observed = max(self.observed or end, end)

    def assume(self, who: str, latest: datetime) -> None:
        """A leaf cannot be seen, or may still be signed."""
        self.assumed.append(who)
        self.latest = max(self.latest or latest, latest)


def may_enter(
    phase: Phase,
    observation: Observation,
    old: frozenset[Fingerprint],
    new: Goal,
    now: datetime,
    *,
    old_leaf_refused: bool | None = None,
    max_age: timedelta = MAX_AGE,
) -> GateResult:
    """Judge whether a phase may be entered.

    PREPARE: everything can be read, and the domain is safe as it is.
    TRUST: that, and the new root exists.
    ISSUE: that, and every bundle and every live trust store holds new, and switching any issuer breaks nobody.
    DISTRUST: that, and every issuer and every live leaf chains to new, and dropping old breaks nobody.
    DONE: that, and every bundle and every live trust store is exactly {new}, and a leaf of an old root was refused.

    Where live signers can be asked, each of them has to be as far as the bundle and the issuer: one that is behind can
    still hand old roots to the next proxy that renews, or sign the next old leaf.

    Args:
        now: Aware time of judging; an observation older than `max_age` proves nothing.
        old_leaf_refused: What the probe found; None while nobody has probed. Only DONE asks for it.
    """
    gate = _Gate(phase, observation, old, new, require_aware(now))
    gate.fresh(max_age)
    gate.safe()
    if phase.number >= Phase.TRUST.number:
        gate.reached(Phase.PREPARE)
    if phase.number >= Phase.ISSUE.number:
        gate.reached(Phase.TRUST)
        gate.switching_breaks_nobody()
    if phase.number >= Phase.DISTRUST.number:
        gate.reached(Phase.ISSUE)
        gate.dropping_breaks_nobody()
    if phase.number >= Phase.DONE.number:
        gate.reached(Phase.DISTRUST)
        gate.probed(old_leaf_refused)
    return gate.result()


def may_probe(
    observation: Observation,
    old: frozenset[Fingerprint],
    new: Goal,
    now: datetime,
    *,
    max_age: timedelta = MAX_AGE,
) -> GateResult:
    """Judge whether the refusal probe means anything yet: all that DONE asks for, but for the probe itself."""
    return may_enter(Phase.DONE, observation, old, new, now, old_leaf_refused=True, max_age=max_age)


class _Gate:
    """Collects the findings of one judgement."""

    def __init__(
        self,
        phase: Phase,
        observation: Observation,
        old: frozenset[Fingerprint],
        new: Goal,
        now: datetime,
    ) -> None:
        self.phase = phase
        self.observation = observation
        self.old = old
        self.new = staying(new)
        self.now = now
        self.evidence: list[str] = []
        self.waiting: list[str] = []
        self.contradictions: list[str] = []

    def fresh(self, max_age: timedelta) -> None:
        age = self.now - self.observation.taken_at
        if age > max_age:
            self.waiting.append(f"a fresh observation: this one is {age} old")

    def safe(self) -> None:
        self._judge(verdict(self.observation), "now")

    def reached(self, phase: Phase) -> None:
        found = progress(self.observation, phase, self.old, self.new)
        self.evidence.append(f"{phase}: {found.done} of {found.total} peers")
        self.waiting.extend(found.waiting_for)

    def switching_breaks_nobody(self) -> None:
        for cluster in self.observation.clusters:
            # A way back to several roots: to which of them the issuer chains is not known here, so each has to do.
            for root in sorted(self.new):
                action = SwitchIssuer(cluster.name, frozenset({root}))
                self._judge(who_would_break(self.observation, action), f"with {cluster.name}'s issuer switched")

    def dropping_breaks_nobody(self) -> None:
        gone = self.old - self.new
        self._judge(who_would_break(self.observation, Distrust(gone)), "with the old roots dropped")

    def probed(self, refused: bool | None) -> None:
        if refused is None:
            self.waiting.append("probe: no leaf of an old root was presented yet")
        elif refused:
            self.evidence.append("probe: a leaf of an old root is refused")
        else:
            self.contradictions.append("probe: a leaf of an old root was accepted")

    def _judge(self, found: Verdict, when: str) -> None:
        self.evidence.append(f"{when}: {'safe' if found.safe else 'not safe'}")
        if isinstance(found, Unsafe):
            # Who cannot be read may be readable soon, and a leaf not taken yet may come: those are waited for. A
            # mistrust that the switch itself would bring is waited for too, as the trust phase's progress names it.
            self.waiting.extend(f"{name}: {why}" for name, why in found.unreadable)
            target = self.contradictions if when == "now" else self.waiting
            target.extend(f"{when}: {pair}" for pair in found.pairs)
            self.contradictions.extend(f"{name}: leaf {period}" for name, period in found.expired)
            self.contradictions.extend(found.signing_faults)

    def result(self) -> GateResult:
        waiting = tuple(dict.fromkeys(self.waiting))
        ends = self._ends() if waiting else LeafEnds()
        bound = ends.bound
        return GateResult(
            phase=self.phase,
            evidence=tuple(dict.fromkeys(self.evidence)),
            waiting_for=waiting,
            contradictions=tuple(dict.fromkeys(self.contradictions)),
            bound=bound,
            overdue=bound is not None and self.now > bound,
            assumed=tuple(ends.assumed),
            observed=ends.observed,
        )

    def _ends(self) -> LeafEnds:
        """The ends of the leaves that have to be renewed first; none where nothing observed bounds the wait.

        DISTRUST waits for leaves of other roots. ISSUE and DONE wait for trust stores: where these come with the leaf
        (Istio), for the leaves of the peers that are behind; elsewhere they come with a restart, which no leaf bounds.
        """
        if not self.new:
            return LeafEnds()
        if self.phase is Phase.DISTRUST:
            return self._leaves_of_others()
        ends = LeafEnds()
        goal = {Phase.ISSUE: Phase.TRUST, Phase.DONE: Phase.DISTRUST}.get(self.phase)
        behind = stores_behind(self.observation, goal, self.old, self.new) if goal is not None else ()
        for peer in behind:
            if peer.leaf is not None:
                ends.seen(peer.leaf.not_after)
        return ends

    def _leaves_of_others(self) -> LeafEnds:
        """The ends of the leaves that are not of the new root."""
        ends = LeafEnds()
        for cluster in self.observation.clusters:
            latest = self.observation.taken_at + timedelta(seconds=cluster.leaf_lifetime)
            if cluster.issuer is None or not cluster.issuer.anchors & self.new:
                ends.assume(f"{cluster.name}: issuer", latest)
            for signer in cluster.signers:
                if signer.issuer is None or not signer.anchors & self.new:
                    ends.assume(f"{cluster.name}: {signer.name}", latest)
            for peer in cluster.peers:
                if peer.leaf is None:
                    ends.assume(peer.name, latest)
                elif not peer.leaf.anchors & self.new:
                    ends.seen(peer.leaf.not_after)
        return ends
