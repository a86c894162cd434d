"""The order of a rotation of an Istio mesh, against all that several istiods and their proxies may do meanwhile."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from capstan.trust.explore import Explored, explore, shipped
from capstan.trust.model import OLD, OLDER
from capstan.trust.model_istio import IstioDomain
from capstan.trust.phase import Phase
from capstan.trust.procedure import Move, Procedure
from capstan.trust.steps import StepKind

ONE = IstioDomain((("east", 2),), replicas=2)
TWO = IstioDomain((("east", 1), ("west", 1)), replicas=1)
SMALL = IstioDomain((("east", 1),), replicas=2)
TWO_ROOTS = IstioDomain((("east", 1),), replicas=2, before=frozenset({OLD, OLDER}))
WIDEN, SWITCH, NARROW = "trust/widen-bundle", "issue/switch-issuer", "distrust/narrow-bundle"
TRUSTED, SIGNED, NARROWED = (f"{phase}/restart-control-plane" for phase in ("trust", "issue", "distrust"))
WAIT_TRUST, WAIT_LEAVES = "trust/gate-trust", "issue/await-leaves"


@cache
def explored_as_shipped(domain: IstioDomain) -> Explored:
    """One exploration answers several questions."""
    return explore(domain, shipped(domain))


def broken(found: Explored) -> str:
    assert found.counterexample is not None
    return str(found.counterexample)


def played_by_hand(domain: IstioDomain, *steps: str, gates: tuple[str, ...] = ()) -> Procedure:
    """These steps in this order, behind the gates of those named alone; never resumed."""
    moves: dict[str, Move] = {move.step: move for move in shipped(domain).moves}
    chosen = [moves[step] if step in gates else replace(moves[step], gate=None) for step in steps]
    return Procedure(tuple(chosen), resumable=False)


@pytest.mark.parametrize("domain", [ONE, SMALL, TWO_ROOTS], ids=["two proxies", "one proxy", "two old roots"])
def test_the_shipped_order_is_safe_whatever_each_istiod_takes_when_killed_resumed_or_turned_round_anywhere(
    domain: IstioDomain,
) -> None:
    found = explored_as_shipped(domain)
    assert found.counterexample is None, broken(found)
    assert found.finished
    assert found.states > 1000  # it did go somewhere


@pytest.mark.parametrize("domain", [ONE, SMALL, TWO_ROOTS], ids=["two proxies", "one proxy", "two old roots"])
def test_from_every_state_it_can_still_finish_and_the_way_back_can_end_with_what_there_was(domain: IstioDomain) -> None:
    found = explored_as_shipped(domain)
    assert (found.dead_ends, found.stranded) == (0, 0)


@pytest.mark.slow
def test_the_shipped_order_is_safe_in_two_clusters_that_share_roots() -> None:
    found = explored_as_shipped(TWO)
    assert found.counterexample is None, broken(found)
    assert found.finished
    assert (found.dead_ends, found.stranded) == (0, 0)


def test_workloads_are_waited_for_and_not_restarted() -> None:
    kinds = [move.kind for move in shipped(ONE).moves]
    assert StepKind.RESTART_DATA_PLANE not in kinds
    assert kinds == [
        StepKind.WIDEN_BUNDLE,
        StepKind.RESTART_CONTROL_PLANE,
        StepKind.GATE_TRUST,
        StepKind.SWITCH_ISSUER,
        StepKind.RESTART_CONTROL_PLANE,
        StepKind.AWAIT_LEAVES,
        StepKind.NARROW_BUNDLE,
        StepKind.RESTART_CONTROL_PLANE,
        StepKind.GATE_DISTRUST,
    ]


def test_the_documented_two_step_of_the_aks_add_on_drops_handshakes() -> None:
    """Every proxy trusts both (the documented 24 hours); then root and intermediate are replaced in one update."""
    two_step = played_by_hand(
        ONE, WIDEN, TRUSTED, WAIT_TRUST, SWITCH, NARROW, NARROWED, gates=(WAIT_TRUST,)
    )  # fmt: skip
    text = broken(explore(ONE, two_step))
    assert "[issue/switch-issuer] east: issuer := new" in text
    assert "trusts new and refuses" in text
    assert "whose leaf is old" in text


def test_with_the_missing_phase_between_them_the_same_two_updates_are_safe() -> None:
    three = played_by_hand(
        ONE, WIDEN, TRUSTED, WAIT_TRUST, SWITCH, SIGNED, WAIT_LEAVES, NARROW, NARROWED, gates=(WAIT_TRUST, WAIT_LEAVES)
    )
    found = explore(ONE, three)
    assert found.safe, broken(found)
    assert found.finished


def test_a_root_swapped_in_place_drops_handshakes_or_keeps_istiod_from_starting() -> None:
    swap = played_by_hand(SMALL, NARROW, SWITCH, NARROWED)
    assert "cannot start: its issuer is old" in broken(explore(SMALL, swap))
    issuer_first = played_by_hand(ONE, SWITCH, NARROW, NARROWED)
    assert not explore(ONE, issuer_first).safe


def test_an_intermediate_of_the_new_root_before_everybody_trusts_it_drops_handshakes() -> None:
    hasty = played_by_hand(ONE, WIDEN, TRUSTED, SWITCH, SIGNED)
    assert "trusts old and refuses" in broken(explore(ONE, hasty))


def test_a_procedure_that_takes_the_source_for_what_each_istiod_has_drops_handshakes() -> None:
    unasked = replace(ONE, asks_signers=False)
    moves = [move for move in shipped(unasked).moves if move.kind is not StepKind.RESTART_CONTROL_PLANE]
    text = broken(explore(unasked, Procedure(tuple(moves), resumable=False)))
    assert "renews its leaf at east/istiod-" in text


def test_asked_one_by_one_the_same_steps_without_any_restart_are_safe() -> None:
    moves = [move for move in shipped(ONE).moves if move.kind is not StepKind.RESTART_CONTROL_PLANE]
    found = explore(ONE, Procedure(tuple(moves), resumable=False))
    assert found.safe, broken(found)
    assert found.finished


def test_after_a_turn_an_answer_may_be_out_of_date_so_every_istiod_is_started_anew_once() -> None:
    believing = replace(ONE, fences=False)
    text = broken(explore(believing, shipped(believing)))
    assert "the rotation is rolled back" in text


def test_one_cluster_ahead_of_the_other_drops_handshakes_although_its_own_gates_are_open() -> None:
    found = explore(TWO, shipped(TWO).cluster_by_cluster())
    text = broken(found)
    assert "[issue/switch-issuer] east: issuer := new" in text
    assert "west/web-1 trusts old and refuses east/web-1" in text


@pytest.mark.parametrize(
    "order", [(SWITCH, WIDEN, TRUSTED), (WIDEN, SWITCH, SIGNED), (NARROW, SWITCH)], ids=["switch", "hasty", "narrow"]
)
def test_the_gates_stop_a_wrong_order_before_it_breaks_anything(order: tuple[str, ...]) -> None:
    found = explore(ONE, Procedure(shipped(ONE).ordered(order).moves, resumable=False))
    assert found.safe, broken(found)


def test_the_gates_are_those_before_the_three_phases() -> None:
    gates = [move.gate for move in shipped(ONE).moves if move.gate is not None]
    assert gates == [Phase.TRUST, Phase.ISSUE, Phase.ISSUE, Phase.DISTRUST, Phase.DISTRUST, Phase.DONE]
