"""The order of a rotation, against everything that may happen meanwhile."""

from __future__ import annotations

from functools import cache

import pytest

from capstan.trust.explore import Explored, explore, shipped
from capstan.trust.model import OLD, OLDER, Domain
from capstan.trust.procedure import Procedure
from capstan.trust.steps import StepKind

ONE = Domain((("east", 2),))
TWO = Domain((("east", 1), ("west", 0)))
WIDEN, SWITCH, NARROW = "trust/widen-bundle", "issue/switch-issuer", "distrust/narrow-bundle"
TRUST_BARRIER = ("trust/restart-control-plane", "trust/restart-data-plane")
DISTRUST_BARRIER = ("distrust/restart-control-plane", "distrust/restart-data-plane")
SIGNERS = "issue/restart-control-plane"


@cache
def explored_as_shipped(domain: Domain) -> Explored:
    """One exploration answers several questions."""
    return explore(domain, shipped(domain))


def broken(found: Explored) -> str:
    assert found.counterexample is not None
    return str(found.counterexample)


@pytest.mark.parametrize("domain", [ONE, TWO], ids=["one cluster", "two clusters"])
def test_the_shipped_order_is_safe_killed_resumed_or_turned_round_anywhere(domain: Domain) -> None:
    found = explored_as_shipped(domain)
    assert found.counterexample is None, broken(found)
    assert found.states > 1000  # it did go somewhere


@pytest.mark.parametrize("domain", [ONE, TWO], ids=["one cluster", "two clusters"])
def test_from_every_state_the_shipped_order_can_reach_it_can_still_finish(domain: Domain) -> None:
    found = explored_as_shipped(domain)
    assert found.finished
    assert found.dead_ends == 0


SEVERAL = {
    "one cluster, two old roots": Domain((("east", 2),), before=frozenset({OLD, OLDER})),
    "two clusters under different old roots": Domain(
        (("east", 1), ("west", 0)), before=frozenset({OLD, OLDER}), issuers=(OLD, OLDER)
    ),
    "two clusters": TWO,
    "one cluster": ONE,
}


@pytest.mark.proves("faults", "roll-back", "from every state of the model it can end with exactly what there was")
@pytest.mark.parametrize("domain", SEVERAL.values(), ids=SEVERAL.keys())
def test_from_every_state_the_way_back_can_end_with_exactly_what_there_was(domain: Domain) -> None:
    found = explored_as_shipped(domain)
    assert found.counterexample is None, broken(found)
    assert found.dead_ends == 0
    assert found.stranded == 0


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [(("east", 1), ("west", 1)), (("east", 2), ("west", 1)), (("east", 4),)], ids=str)
def test_the_shipped_order_is_safe_in_larger_domains(clusters: tuple[tuple[str, int], ...]) -> None:
    domain = Domain(clusters)
    found = explore(domain, shipped(domain))
    assert found.safe
    assert found.finished
    assert found.dead_ends == 0


def test_the_order_that_is_explored_is_the_order_that_is_planned() -> None:
    kinds = [move.kind for move in shipped(TWO).moves]
    assert kinds == [
        StepKind.WIDEN_BUNDLE,
        StepKind.RESTART_CONTROL_PLANE,
        StepKind.RESTART_DATA_PLANE,
        StepKind.GATE_TRUST,
        StepKind.SWITCH_ISSUER,
        StepKind.RESTART_CONTROL_PLANE,
        StepKind.AWAIT_LEAVES,
        StepKind.NARROW_BUNDLE,
        StepKind.RESTART_CONTROL_PLANE,
        StepKind.RESTART_DATA_PLANE,
        StepKind.GATE_DISTRUST,
    ]
    assert all(move.clusters == ("east", "west") for move in shipped(TWO).moves)


WRONG_ORDERS = {
    "switching before the restart barrier": (WIDEN, SWITCH, *TRUST_BARRIER, SIGNERS, NARROW, *DISTRUST_BARRIER),
    "switching together with the bundle": (SWITCH, WIDEN, *TRUST_BARRIER, NARROW, *DISTRUST_BARRIER),
    "restarting the control plane alone before the switch": (WIDEN, TRUST_BARRIER[0], SWITCH, SIGNERS, NARROW),
    "dropping before the leaves are renewed": (WIDEN, *TRUST_BARRIER, SWITCH, SIGNERS, NARROW, *DISTRUST_BARRIER),
    "replacing the bundle at once": (NARROW, *DISTRUST_BARRIER, SWITCH, SIGNERS),
}


@pytest.mark.parametrize("order", WRONG_ORDERS.values(), ids=WRONG_ORDERS.keys())
@pytest.mark.parametrize("domain", [ONE, TWO], ids=["one cluster", "two clusters"])
def test_a_wrong_order_played_without_gates_is_found_unsafe(order: tuple[str, ...], domain: Domain) -> None:
    found = explore(domain, shipped(domain).blind().ordered(order))
    assert not found.safe
    assert "BROKEN" in broken(found)


@pytest.mark.parametrize("order", WRONG_ORDERS.values(), ids=WRONG_ORDERS.keys())
def test_the_gates_stop_every_wrong_order_before_it_breaks_anything(order: tuple[str, ...]) -> None:
    found = explore(ONE, Procedure(shipped(ONE).ordered(order).moves, resumable=False))
    assert found.safe, broken(found)


def test_the_right_order_without_gates_is_unsafe_because_a_restart_may_come_too_early_or_a_leaf_too_late() -> None:
    assert not explore(ONE, shipped(ONE).blind()).safe


def test_one_cluster_ahead_of_the_other_is_unsafe_although_its_own_gates_are_open() -> None:
    ahead = shipped(TWO).cluster_by_cluster()
    found = explore(TWO, ahead)
    assert not found.safe
    text = broken(found)
    assert "[issue/switch-issuer] east: issuer := new" in text
    assert "[trust/widen-bundle] west" not in text
    assert "BROKEN: west/" in text


def test_in_a_single_cluster_the_same_procedure_is_safe() -> None:
    found = explore(ONE, shipped(ONE).cluster_by_cluster())
    assert found.safe
    assert found.finished


def test_without_the_restart_after_the_switch_a_roll_back_strands_the_next_pod() -> None:
    moves = [move.step for move in shipped(ONE).moves if move.step != SIGNERS]
    found = explore(ONE, shipped(ONE).ordered(moves))
    text = broken(found)
    assert "the rotation is rolled back" in text
    assert "can take no new leaf" in text


def test_a_counterexample_is_a_shortest_one_and_reads_as_numbered_events() -> None:
    order = WRONG_ORDERS["switching before the restart barrier"]
    lines = broken(explore(ONE, shipped(ONE).blind().ordered(order))).splitlines()
    assert lines == [
        "1. [trust/widen-bundle] east: bundle := old+new",
        "2. [trust/widen-bundle] complete",
        "3. [issue/switch-issuer] east: issuer := new",
        "4. east/identity is restarted by somebody",
        "   BROKEN: east/web-1 trusts old and refuses east/identity, whose leaf is new",
    ]


def test_an_unknown_step_cannot_be_put_into_an_order() -> None:
    with pytest.raises(KeyError):
        shipped(ONE).ordered(["trust/hope"])
