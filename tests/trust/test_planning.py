"""Plans: the same order from every state, done where it is already true, bound to a digest that means something."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.errors import InvalidInput
from capstan.pki.mint import RootPolicy
from capstan.trust.model import NEW as MODEL_NEW
from capstan.trust.model import OLD as MODEL_OLD
from capstan.trust.model import Broken, Domain
from capstan.trust.observation import Observation, Owner
from capstan.trust.phase import Phase, derive_phase
from capstan.trust.plan import LeafRenewal, Policy, StepKind, plan
from capstan.trust.safety import verdict
from tests.trust.domains import BOTH, HOUR, NEW, NOW, OLD, OTHER, cluster, domain, only, peer, settled

GONE = only(OLD)
START = domain(settled(only(OLD), OLD), settled(only(OLD), OLD, name="west"))


def pending(observation: Observation, new: str | None = NEW) -> list[str]:
    return [step.name for step in plan(observation, GONE, new).pending]


def test_a_fresh_domain_is_planned_from_minting_to_the_probe() -> None:
    names = [step.name for step in plan(START, GONE, None).steps]
    assert names == [
        "prepare/mint",
        "trust/approve",
        "trust/widen-bundle",
        "trust/restart-control-plane",
        "trust/restart-data-plane",
        "trust/gate-trust",
        "issue/approve",
        "issue/switch-issuer",
        "issue/restart-control-plane",
        "issue/await-leaves",
        "distrust/approve",
        "distrust/narrow-bundle",
        "distrust/restart-control-plane",
        "distrust/restart-data-plane",
        "distrust/gate-distrust",
        "distrust/probe-refusal",
    ]
    assert pending(START, None) == names
    assert pending(START) == names[1:]


def test_the_order_of_steps_does_not_depend_on_how_far_the_domain_is() -> None:
    orders = {
        tuple(step.name for step in plan(domain(settled(trusts, root)), GONE, NEW).steps)
        for trusts, root in ((only(OLD), OLD), (BOTH, OLD), (BOTH, NEW), (only(NEW), NEW))
    }
    assert len(orders) == 1


def test_a_finished_domain_has_nothing_left_but_the_probe() -> None:
    assert pending(domain(settled(only(NEW), NEW))) == ["distrust/probe-refusal"]


@pytest.mark.parametrize(
    ("bundle", "repeated", "issuer", "entered"),
    [
        (only(OLD), only(OLD), OLD, set()),
        (BOTH, only(OLD), OLD, {Phase.TRUST}),
        (BOTH, BOTH, OLD, {Phase.TRUST}),
        (BOTH, BOTH, NEW, {Phase.TRUST, Phase.ISSUE}),
        (only(NEW), BOTH, NEW, {Phase.TRUST, Phase.ISSUE, Phase.DISTRUST}),
    ],
    ids=["nothing written", "written and not repeated yet", "trusted", "issued", "narrowed and not repeated yet"],
)
def test_a_phase_is_entered_with_its_first_write_wherever_else_that_has_arrived(
    bundle: frozenset[str], repeated: frozenset[str], issuer: str, entered: set[Phase]
) -> None:
    places = (("configmaps istio-ca-root-cert", repeated),)
    seen = domain(cluster([peer()], bundle=bundle, declared=places, issuer=only(issuer)))
    planned = plan(seen, GONE, NEW)
    assert {phase for phase in (Phase.TRUST, Phase.ISSUE, Phase.DISTRUST) if planned.entered(phase)} == entered


def test_what_is_true_in_one_cluster_is_pending_in_the_other_alone() -> None:
    half = plan(domain(settled(BOTH, OLD), settled(only(OLD), OLD, name="west")), GONE, NEW)
    widen = next(step for step in half.steps if step.kind is StepKind.WIDEN_BUNDLE)
    assert widen.clusters == ("east", "west")
    assert widen.pending == ("west",)
    assert half.entered(Phase.TRUST)
    assert not half.entered(Phase.ISSUE)
    assert not plan(START, GONE, NEW).entered(Phase.TRUST)


def test_only_the_peers_that_lag_make_a_restart_pending() -> None:
    workload_lags = settled(BOTH, OLD)
    lagging = cluster([*workload_lags.peers, peer("lag")], bundle=BOTH)
    found = pending(domain(lagging))
    assert "trust/restart-data-plane" in found
    assert "trust/restart-control-plane" not in found
    assert "trust/widen-bundle" not in found


def test_policy_decides_about_approvals_and_about_renewing_leaves_by_restart() -> None:
    quick = Policy(approvals=frozenset(), renewal=LeafRenewal.RESTART)
    names = [step.name for step in plan(START, GONE, None, quick).steps]
    assert not any("approve" in name for name in names)
    assert "issue/restart-data-plane" in names


def test_every_step_says_what_it_changes_and_how_it_is_taken_back() -> None:
    made = plan(START, GONE, None)
    assert all(step.changes and step.reversible for step in made.steps)
    assert {step.opens for step in made.steps} == {None, Phase.ISSUE, Phase.DISTRUST, Phase.DONE}


def test_nothing_to_do_nothing_observed_and_doubled_names_are_refused() -> None:
    with pytest.raises(InvalidInput):
        plan(START, frozenset(), NEW)
    with pytest.raises(InvalidInput):
        plan(START, only(NEW), NEW)
    with pytest.raises(InvalidInput):
        plan(domain(), GONE, NEW)
    with pytest.raises(InvalidInput):
        plan(domain(settled(only(OLD), OLD), settled(only(OLD), OLD)), GONE, NEW)


def digest(observation: Observation, new: str | None = None, policy: Policy | None = None) -> str:
    return plan(observation, GONE, new, policy).digest()


def test_the_digest_ignores_pod_names_counts_times_and_the_order_of_clusters() -> None:
    east, west = START.clusters
    renamed = [
        dataclasses.replace(
            each,
            pod=f"{each.pod}-x7f9",
            leaf=each.leaf and dataclasses.replace(each.leaf, fingerprint="other", not_after=NOW + 9 * HOUR),
            started=NOW,
        )
        for each in east.peers
    ]
    noisy = dataclasses.replace(east, peers=(*renamed, peer("another-of-the-same-owner")))
    later = domain(west, noisy, at=NOW + dt.timedelta(seconds=90))
    assert digest(later) == digest(START)


def changed(**change: object) -> Observation:
    east, west = START.clusters
    return domain(dataclasses.replace(east, **change), west)  # type: ignore[arg-type]  # fields by name


EAST = START.clusters[0]
OTHER_OWNER = dataclasses.replace(EAST.peers[0], owner=Owner("StatefulSet", "app", "db"))
DIFFERENT = {
    "a cluster less": domain(EAST),
    "a cluster renamed": changed(name="north"),
    "a foreign root in a bundle": changed(bundle=only(OLD, OTHER)),
    "a foreign root declared": changed(declared=(("config", only(OTHER)),)),
    "another issuer": changed(issuer=dataclasses.replace(EAST.issuer, fingerprint="2" * 64)),  # type: ignore[type-var]  # it has one
    "no readable issuer": changed(issuer=None),
    "another workload": changed(peers=(*EAST.peers, OTHER_OWNER)),
    "a workload gone": changed(peers=EAST.peers[-1:]),
    "an unreadable peer": changed(peers=(*EAST.peers, peer(trusts=None))),
    "a mistrust": changed(peers=(*EAST.peers, peer(trusts=only(OTHER)))),
}


@pytest.mark.parametrize("observation", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_the_digest_changes_with_what_an_approver_decides_on(observation: Observation) -> None:
    assert digest(observation) != digest(START)


def test_the_digest_changes_with_the_roots_and_the_policy() -> None:
    policies = [
        Policy(),
        Policy(approvals=frozenset()),
        Policy(renewal=LeafRenewal.RESTART),
        Policy(root=RootPolicy(validity=dt.timedelta(days=1))),
        Policy(root=RootPolicy(common_name="other")),
    ]
    digests = {digest(START, None, policy) for policy in policies} | {digest(START, NEW), digest(START, OTHER)}
    assert len(digests) == 7
    assert plan(START, only(OLD, OTHER), None).digest() not in digests


def test_the_digest_holds_still_while_bundles_widen_and_while_they_narrow() -> None:
    west = START.clusters[1]
    widening = [START, domain(settled(BOTH, OLD), west), domain(settled(BOTH, OLD), settled(BOTH, OLD, name="west"))]
    assert len({digest(observation, NEW) for observation in widening}) == 1
    narrowing = [
        domain(settled(BOTH, NEW)),
        domain(cluster(settled(BOTH, NEW).peers, bundle=only(NEW), issuer=only(NEW))),
    ]
    assert len({digest(observation, NEW) for observation in narrowing}) == 1


def test_a_plan_is_plain_json_with_its_digest_and_says_how_safe_the_domain_is() -> None:
    made = plan(START, GONE, None)
    back = json.loads(json.dumps(made.as_json()))
    assert back["digest"] == made.digest()
    assert back["safe"] is True
    assert [step["name"] for step in back["steps"]] == [step.name for step in made.steps]
    assert back["decidedOn"]["clusters"][0]["owners"] == [
        "control-plane: deployment/id -n app",
        "workload: deployment/web -n app",
    ]


MODEL = Domain((("east", 1), ("west", 1)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=30))
def test_planning_again_after_any_safe_history_finishes_safely_and_then_plans_nothing(choices: list[int]) -> None:
    """A random history of restarts, renewals, writes, stops; then plan and play to the end, judging every state."""
    state = MODEL.start()
    gone, new = frozenset({MODEL_OLD}), MODEL_NEW

    def play(step_name: str, kind: StepKind) -> None:
        nonlocal state
        for c, _ in enumerate(MODEL.clusters):
            match kind:
                case StepKind.WIDEN_BUNDLE:
                    state = MODEL.write_bundle(state, c, frozenset({MODEL_OLD, new}))
                case StepKind.SWITCH_ISSUER:
                    state = MODEL.write_issuer(state, c, new)
                case StepKind.NARROW_BUNDLE:
                    state = MODEL.write_bundle(state, c, frozenset({new}))
                case _:
                    pass
            if kind in (StepKind.RESTART_CONTROL_PLANE, StepKind.RESTART_DATA_PLANE):
                for p in [0] if kind is StepKind.RESTART_CONTROL_PLANE else range(1, len(state[c].peers)):
                    after = MODEL.restart(state, c, p)
                    assert not isinstance(after, Broken), (step_name, after)
                    state = after
        assert MODEL.broken(state) is None, step_name

    def settle() -> None:
        """Injector and renewals happen, as they do given time."""
        nonlocal state
        for c, _ in enumerate(MODEL.clusters):
            state = tuple(x._replace(injected=x.bundle) if n == c else x for n, x in enumerate(state))
            for p in range(len(state[c].peers)):
                after = MODEL.renew(state, c, p)
                assert not isinstance(after, Broken)
                state = after

    # A history: each choice plays the next pending step of a fresh plan, or lets something happen.
    for choice in choices:
        todo = [step for step in plan(MODEL.observe(state), gone, new).pending if step.kind is not StepKind.APPROVE]
        happenings = list(MODEL.happens(state))
        if choice % 3 == 0 and todo[0].opens is None:
            play(todo[0].name, todo[0].kind)
        else:
            _, after = happenings[choice % len(happenings)]
            assert not isinstance(after, Broken)
            state = after
        assert MODEL.broken(state) is None
        assert verdict(MODEL.observe(state)).safe

    # Then one run to the end, from whatever that left behind.
    for _ in range(4):
        for step in plan(MODEL.observe(state), gone, new).pending:
            if step.kind is not StepKind.APPROVE:
                play(step.name, step.kind)
                settle()
    assert derive_phase(MODEL.observe(state), gone, new) is Phase.DONE
    assert [s.kind for s in plan(MODEL.observe(state), gone, new).pending] == [StepKind.PROBE_REFUSAL]
