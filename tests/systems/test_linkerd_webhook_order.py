"""The order of a rotation of webhook certificates, judged on plain values: phases, gates, plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from capstan.errors import InvalidInput
from capstan.trust.hooks import HookAim, verdict
from capstan.trust.observation import ClusterObservation, Issuer, Leaf, Observation, Owner, Peer, Role
from capstan.trust.phase import Phase
from capstan.trust.safety import Unsafe
from capstan.trust.steps import Policy, StepKind

NOW = datetime(2026, 11, 22, tzinfo=UTC)
END = NOW + timedelta(days=365)
OLD, NEW = "0" * 64, "1" * 64
NAME = "east/tap"
AIM = HookAim({NAME: frozenset({OLD})}, {NAME: frozenset({NEW})}, {NAME: NEW})
BACK = HookAim({NAME: frozenset({NEW})}, {NAME: frozenset({OLD})}, {NAME: OLD})
ASKING_NOBODY = Policy(approvals=frozenset())


def replica(number: int, serves: str | None, told: frozenset[str]) -> Peer:
    leaf = Leaf(serves, "tap.linkerd-viz.svc", None, frozenset({serves}), NOW, END) if serves else None
    owner = Owner("Deployment", "linkerd-viz", "tap")
    why = "" if serves else "no TLS answer"
    return Peer(NAME, "linkerd-viz", f"tap-{number}", Role.CONTROL_PLANE, owner, told, leaf, why)


def seen(told: str, secret: str | None, *serves: str | None, troubles: tuple[str, ...] = ()) -> Observation:
    """A hook whose caBundle holds `told` (letters o and n), whose Secret and replicas have these."""
    bundle = frozenset({"o": OLD, "n": NEW}[letter] for letter in told)
    held = Issuer(secret, frozenset({secret}), END) if secret else None
    peers = tuple(replica(number, each, bundle) for number, each in enumerate(serves))
    return Observation(NOW, (ClusterObservation(NAME, bundle, (), held, peers, 0.0, troubles=troubles),))


FROM_THE_BEGINNING = seen("o", OLD, OLD, OLD)
WIDENED = seen("on", OLD, OLD, OLD)
SWITCHED = seen("on", NEW, OLD, NEW)
SERVED = seen("on", NEW, NEW, NEW)
TURNED = seen("n", NEW, NEW, NEW)


@pytest.mark.parametrize(
    ("observation", "phase", "open_gates"),
    [
        (FROM_THE_BEGINNING, Phase.PREPARE, {Phase.PREPARE, Phase.TRUST}),
        (WIDENED, Phase.ISSUE, {Phase.PREPARE, Phase.TRUST, Phase.ISSUE}),
        (SWITCHED, Phase.ISSUE, {Phase.PREPARE, Phase.TRUST, Phase.ISSUE}),
        (SERVED, Phase.DISTRUST, set(Phase) - {Phase.DONE}),
        (TURNED, Phase.DONE, set(Phase)),
    ],
    ids=["as found", "caBundle widened", "one of two replicas reloaded", "both reloaded", "caBundle narrowed"],
)
def test_each_state_has_its_phase_and_the_gates_that_are_open(
    observation: Observation, phase: Phase, open_gates: set[Phase]
) -> None:
    assert AIM.phase(observation) is phase
    assert {gate for gate in Phase if AIM.may_enter(gate, observation, NOW).open} == open_gates


def test_half_way_through_narrowing_nothing_is_widened_again() -> None:
    other = "east/tap-injector"
    aim = HookAim(
        {**AIM.before, other: frozenset({OLD})}, {**AIM.stays, other: frozenset({NEW})}, {**AIM.serves, other: NEW}
    )
    (narrowed,), (not_yet,) = TURNED.clusters, SERVED.clusters
    both = Observation(NOW, (narrowed, replace(not_yet, name=other)))
    assert aim.phase(both) is Phase.DISTRUST
    assert [step.kind for step in aim.plan(both, ASKING_NOBODY).pending] == [
        StepKind.NARROW_BUNDLE, StepKind.GATE_DISTRUST
    ]  # fmt: skip


def test_a_pair_that_helm_rendered_meanwhile_is_told_to_the_api_server_beside_ours() -> None:
    other = "2" * 64
    (hook,) = seen("o", OLD).clusters
    leaf = Leaf(other, "tap", None, frozenset({other}), NOW, END)
    rendered = replace(
        hook, bundle=frozenset({other}), issuer=Issuer(other, frozenset({other}), END),
        peers=(replace(replica(0, OLD, frozenset({other})), leaf=leaf),),
    )  # fmt: skip
    observation = Observation(NOW, (rendered,))
    far = AIM.progress(observation, Phase.TRUST)
    assert far.waiting_for == (f"{NAME}: caBundle lacks {NEW[:16]}",)
    widened = Observation(NOW, (replace(rendered, bundle=frozenset({other, NEW})),))
    assert AIM.progress(widened, Phase.TRUST).reached


def test_what_cannot_be_read_opens_no_gate_and_is_named() -> None:
    for observation in (seen("on", NEW, NEW, None), seen("on", None, NEW), seen("on", NEW)):
        gate = AIM.may_enter(Phase.DISTRUST, observation, NOW)
        assert not gate.open
        assert all(why.startswith(NAME) for why in gate.waiting_for)


def test_an_old_look_opens_no_gate() -> None:
    assert not AIM.may_enter(Phase.DONE, TURNED, NOW + timedelta(hours=1)).open


def test_an_api_service_that_is_not_available_keeps_the_last_gate_closed() -> None:
    lost = seen("n", NEW, NEW, troubles=("FailedDiscoveryCheck: x509",))
    assert AIM.may_enter(Phase.DONE, lost, NOW).waiting_for == (f"{NAME}: FailedDiscoveryCheck: x509",)


def test_calls_that_fail_today_are_told_and_no_contradiction() -> None:
    broken = seen("n", OLD, OLD)
    found = verdict(broken)
    assert isinstance(found, Unsafe)
    gate = AIM.may_enter(Phase.TRUST, broken, NOW)
    assert gate.open
    assert "now: calls fail" in gate.evidence
    # Mended by the same steps: the caBundle is to verify what is served until the Secret is replaced.
    assert AIM.progress(broken, Phase.TRUST).waiting_for == (f"{NAME}: caBundle lacks {OLD[:16]}",)


def test_the_way_back_is_the_same_way_with_old_and_new_exchanged() -> None:
    assert BACK.phase(TURNED) is Phase.PREPARE
    assert BACK.phase(SWITCHED) is Phase.ISSUE
    assert BACK.phase(WIDENED) is Phase.DISTRUST
    assert BACK.phase(FROM_THE_BEGINNING) is Phase.DONE
    steps = [step.kind for step in BACK.plan(SERVED, Policy(), back=True).steps]
    assert StepKind.MINT not in steps
    assert StepKind.APPROVE not in steps
    narrowing = next(s for s in BACK.plan(SERVED, Policy(), back=True).steps if s.kind is StepKind.NARROW_BUNDLE)
    assert narrowing.changes == "caBundle := old: the new certificate is refused from then on"


def test_a_plan_asks_before_each_phase_of_the_policy_and_its_digest_holds_still_while_phases_run() -> None:
    plan = AIM.plan(FROM_THE_BEGINNING, Policy())
    assert [s.phase for s in plan.steps if s.kind is StepKind.APPROVE] == [Phase.TRUST, Phase.ISSUE, Phase.DISTRUST]
    assert plan.digest() == AIM.plan(WIDENED, Policy()).digest()
    assert AIM.plan(SWITCHED, Policy()).digest() == AIM.plan(TURNED, Policy()).digest()
    assert not plan.entered(Phase.TRUST)
    assert AIM.plan(WIDENED, Policy()).entered(Phase.TRUST)
    assert not AIM.plan(SERVED, Policy()).entered(Phase.DISTRUST)
    assert AIM.plan(TURNED, Policy()).entered(Phase.DISTRUST)
    assert not AIM.plan(TURNED, Policy()).pending


def test_a_plan_before_anything_is_minted_has_every_step_pending() -> None:
    plan = HookAim({NAME: frozenset({OLD})}, {}, {}).plan(FROM_THE_BEGINNING, ASKING_NOBODY)
    assert plan.phase is Phase.PREPARE
    assert all(step.pending for step in plan.steps)
    assert plan.kind == "webhooks"


def test_no_webhook_is_no_plan() -> None:
    with pytest.raises(InvalidInput):
        AIM.plan(Observation(NOW, ()), Policy())
    with pytest.raises(InvalidInput):
        verdict(Observation(NOW, ()))
