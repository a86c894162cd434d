"""The invariant: every peer trusts every chain that any live peer may present."""

from __future__ import annotations

import dataclasses
import time

import pytest

from capstan.errors import InvalidInput
from capstan.trust.observation import Observation, Owner
from capstan.trust.safety import (
    Action,
    Distrust,
    RenewLeaf,
    Restart,
    Safe,
    SetBundle,
    SwitchIssuer,
    Unsafe,
    verdict,
    who_would_break,
)
from tests.trust.domains import BOTH, HOUR, NEW, NOW, OLD, cluster, domain, only, peer, settled


def unsafe(observation: Observation) -> Unsafe:
    found = verdict(observation)
    assert isinstance(found, Unsafe)
    return found


def test_a_settled_domain_is_safe_in_every_phase_of_the_right_order() -> None:
    for trusts, root in ((only(OLD), OLD), (BOTH, OLD), (BOTH, NEW), (only(NEW), NEW)):
        found = verdict(domain(settled(trusts, root), settled(trusts, root, name="west")))
        assert isinstance(found, Safe)
        assert found.peers == 8


def test_who_does_not_trust_whom_is_named_across_clusters() -> None:
    east = cluster([peer("e", trusts=only(OLD))], bundle=BOTH)
    west = cluster([peer("w", cluster="west", trusts=BOTH, anchors=only(NEW))], name="west", bundle=BOTH)
    found = unsafe(domain(east, west))
    assert [(pair.who, pair.whom) for pair in found.pairs] == [(("east/app/e",), ("west/app/w",))]
    assert "east/app/e" in str(found)
    assert OLD[:16] in str(found)


def test_a_pod_started_now_and_a_leaf_renewed_now_count_like_live_ones() -> None:
    narrow = unsafe(domain(cluster([peer(trusts=BOTH)], bundle=only(NEW), issuer=only(NEW))))
    assert narrow.pairs[0].who == ("east: a pod started now",)
    early = unsafe(domain(cluster([peer(trusts=only(OLD))], bundle=BOTH, issuer=only(NEW))))
    assert early.pairs[0].whom == ("east: a leaf renewed now",)


def test_what_could_not_be_read_is_unsafe_and_says_why() -> None:
    for gap in (peer(trusts=None, why="timeout"), peer(anchors=None, why="refused")):
        found = unsafe(domain(cluster([gap])))
        assert found.unreadable == (("east/app/web-1", gap.unreadable),)
    assert unsafe(domain(cluster([peer()], issuer=None))).unreadable == (("east: issuer", "not read"),)


def test_an_expired_leaf_is_accepted_by_nobody_and_so_unsafe() -> None:
    late = peer(until=NOW - HOUR / 2)
    assert unsafe(domain(cluster([late]))).expired[0][0] == late.name
    assert verdict(domain(cluster([peer(until=NOW)]))).safe


def test_a_cross_signed_chain_is_trusted_through_either_root() -> None:
    crossed = peer("x", trusts=BOTH, anchors=BOTH)
    assert verdict(domain(cluster([crossed, peer(trusts=only(OLD), anchors=only(OLD))], bundle=BOTH))).safe


def test_a_peer_that_trusts_nothing_and_a_leaf_of_no_known_root_are_unsafe() -> None:
    assert not verdict(domain(cluster([peer(trusts=frozenset())]))).safe
    assert not verdict(domain(cluster([peer(anchors=frozenset())]))).safe


def test_an_observation_of_nothing_proves_nothing() -> None:
    with pytest.raises(InvalidInput):
        verdict(domain())


OLD_DOMAIN = domain(settled(only(OLD), OLD), settled(only(OLD), OLD, name="west"))
WIDE_DOMAIN = domain(settled(BOTH, OLD), settled(BOTH, OLD, name="west"))
NEW_DOMAIN = domain(settled(BOTH, NEW), settled(BOTH, NEW, name="west"))


@pytest.mark.parametrize(
    ("before", "action", "breaks"),
    [
        (OLD_DOMAIN, SwitchIssuer("east", only(NEW)), True),
        (WIDE_DOMAIN, SwitchIssuer("east", only(NEW)), False),
        (OLD_DOMAIN, SetBundle("west", BOTH), False),
        (OLD_DOMAIN, SetBundle("west", only(NEW)), True),
        (WIDE_DOMAIN, SetBundle("west", only(NEW)), True),
        (NEW_DOMAIN, SetBundle("west", only(NEW)), False),
        (WIDE_DOMAIN, Distrust(only(OLD)), True),
        (NEW_DOMAIN, Distrust(only(OLD)), False),
        (NEW_DOMAIN, Distrust(BOTH), True),
        (WIDE_DOMAIN, RenewLeaf("east/app/east-web-1"), False),
        (WIDE_DOMAIN, Restart("east/app/east-web-1"), False),
        (NEW_DOMAIN, Restart(Owner("Deployment", "app", "id")), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Action) else None,
)
def test_who_would_break_is_told_before_anything_is_done(before: Observation, action: Action, breaks: bool) -> None:
    assert who_would_break(before, action).safe is not breaks
    assert verdict(before).safe  # the question changes nothing


def test_a_restart_heals_a_peer_that_lags_behind_the_bundle() -> None:
    lagging = [
        peer("lag", trusts=only(OLD), anchors=only(OLD), owner="lag"),
        peer("ok", trusts=BOTH, anchors=only(NEW)),
    ]
    before = domain(cluster(lagging, bundle=BOTH, issuer=only(NEW)))
    assert not verdict(before).safe
    assert who_would_break(before, Restart("east/app/lag")).safe
    assert who_would_break(before, Restart(Owner("Deployment", "app", "lag"))).safe
    assert not who_would_break(before, RenewLeaf("east/app/lag")).safe


@pytest.mark.parametrize(
    "action", [SwitchIssuer("north", BOTH), RenewLeaf("x"), SetBundle("north", BOTH), Restart("x")]
)
def test_an_action_on_something_that_was_not_observed_is_refused(action: Action) -> None:
    with pytest.raises(InvalidInput):
        who_would_break(OLD_DOMAIN, action)


def test_two_thousand_peers_are_judged_in_a_moment() -> None:
    many = [
        peer(f"web-{n}", trusts=BOTH if n % 3 else only(OLD), anchors=only(NEW) if n % 2 else only(OLD))
        for n in range(2000)
    ]
    observation = domain(cluster(many, bundle=BOTH))
    start = time.perf_counter()
    found = unsafe(observation)
    assert time.perf_counter() - start < 0.5
    assert len(found.pairs) == 1
    assert len(found.pairs[0].who) == 667
    assert len(found.pairs[0].whom) == 1000
    assert len(str(found)) < 1000  # a person can still read it


def test_observations_are_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        OLD_DOMAIN.taken_at = NOW  # type: ignore[misc]  # the point of the test
