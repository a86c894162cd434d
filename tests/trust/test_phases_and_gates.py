"""Which phase a domain is in, and which it may enter."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.errors import GateRefused, GateTimedOut, NotYet
from capstan.trust.gates import may_enter, may_probe
from capstan.trust.observation import ClusterObservation, Observation, Peer, Role
from capstan.trust.phase import Phase, derive_phase, needed_roots, progress
from tests.trust.domains import BOTH, HOUR, NEW, NOW, OLD, OTHER, cluster, domain, only, peer, settled

GONE = only(OLD)


def both_clusters(trusts: frozenset[str], root: str) -> Observation:
    return domain(settled(trusts, root), settled(trusts, root, name="west"))


@pytest.mark.parametrize(
    ("observation", "phase"),
    [
        (both_clusters(only(OLD), OLD), Phase.PREPARE),
        (domain(settled(BOTH, OLD), settled(only(OLD), OLD, name="west")), Phase.TRUST),
        (domain(cluster([peer()], bundle=BOTH)), Phase.TRUST),
        (domain(cluster([peer(trusts=BOTH)], bundle=only(OLD))), Phase.TRUST),
        (domain(cluster([peer(trusts=BOTH)], bundle=BOTH, declared=(("linkerd-config", only(OLD)),))), Phase.TRUST),
        (both_clusters(BOTH, OLD), Phase.ISSUE),
        (domain(settled(BOTH, NEW), settled(BOTH, OLD, name="west")), Phase.ISSUE),
        (domain(cluster([peer(trusts=BOTH)], bundle=BOTH, issuer=only(NEW))), Phase.ISSUE),
        (both_clusters(BOTH, NEW), Phase.DISTRUST),
        (domain(settled(only(NEW), NEW), settled(BOTH, NEW, name="west")), Phase.DISTRUST),
        (domain(cluster([peer(trusts=BOTH, anchors=only(NEW))], bundle=only(NEW), issuer=only(NEW))), Phase.DISTRUST),
        (both_clusters(only(NEW), NEW), Phase.DONE),
        (both_clusters(only(NEW, OTHER), NEW), Phase.DISTRUST),
        # An old leaf turns up after narrowing began: the old root is needed again before anything else.
        (domain(cluster([peer(trusts=BOTH)], bundle=only(NEW), issuer=only(NEW))), Phase.TRUST),
        (domain(cluster([peer(trusts=None)], bundle=BOTH)), Phase.TRUST),
        (domain(cluster([peer(trusts=BOTH, anchors=None)], bundle=BOTH, issuer=only(NEW))), Phase.ISSUE),
    ],
)  # fmt: skip
def test_the_phase_is_read_from_the_certificates_alone(observation: Observation, phase: Phase) -> None:
    assert derive_phase(observation, GONE, NEW) is phase


def test_without_a_new_root_the_phase_is_prepare_whatever_else_holds() -> None:
    assert derive_phase(both_clusters(only(OLD), OLD), GONE, None) is Phase.PREPARE
    assert progress(both_clusters(only(OLD), OLD), Phase.TRUST, GONE, None).waiting_for


def test_an_old_root_is_needed_only_while_something_live_chains_to_it_alone() -> None:
    assert needed_roots(both_clusters(BOTH, OLD), GONE, NEW) == BOTH
    assert needed_roots(both_clusters(BOTH, NEW), GONE, NEW) == only(NEW)
    crossed = domain(cluster([peer(trusts=BOTH, anchors=BOTH)], bundle=BOTH, issuer=only(NEW)))
    assert needed_roots(crossed, GONE, NEW) == only(NEW)
    unread = domain(cluster([peer(trusts=BOTH, anchors=None)], bundle=BOTH, issuer=only(NEW)))
    assert needed_roots(unread, GONE, NEW) == BOTH


def test_progress_counts_peers_and_names_everything_behind_with_its_reason() -> None:
    east = cluster([peer("a", trusts=BOTH), peer("b"), peer("c", trusts=None, why="no answer")], bundle=BOTH)
    found = progress(domain(east), Phase.TRUST, GONE, NEW)
    assert (found.done, found.total, found.reached) == (1, 3, False)
    assert found.waiting_for == (
        f"east/app/b: does not trust {NEW[:16]}",
        "east/app/c: trust store cannot be read (no answer)",
    )


OPEN_UNTIL = [
    (both_clusters(only(OLD), OLD), None, Phase.PREPARE),
    (both_clusters(only(OLD), OLD), NEW, Phase.TRUST),
    (both_clusters(BOTH, OLD), NEW, Phase.ISSUE),
    (both_clusters(BOTH, NEW), NEW, Phase.DISTRUST),
    (both_clusters(only(NEW), NEW), NEW, Phase.DONE),
]


@pytest.mark.parametrize(("observation", "new", "last"), OPEN_UNTIL)
def test_gates_open_one_after_the_other_and_each_implies_those_before(
    observation: Observation, new: str | None, last: Phase
) -> None:
    opened = [may_enter(p, observation, GONE, new, NOW, old_leaf_refused=True).open for p in Phase]
    assert opened == [phase.number <= last.number for phase in Phase]


def test_one_lagging_peer_in_one_cluster_of_many_keeps_the_gate_shut_and_is_named() -> None:
    west = settled(BOTH, OLD, name="west", peers=50)
    lag = peer("lag", cluster="west", trusts=only(OLD))
    lagging = domain(settled(BOTH, OLD), cluster([*west.peers, lag], name="west", bundle=BOTH))
    found = may_enter(Phase.ISSUE, lagging, GONE, NEW, NOW)
    assert not found.open
    assert any(name.startswith("west/app/lag") for name in found.waiting_for)
    with pytest.raises(NotYet) as caught:
        found.require()
    assert caught.value.waiting_for == found.waiting_for


def test_a_place_that_declares_other_roots_keeps_the_gate_shut() -> None:
    good = settled(BOTH, OLD)
    drifted = cluster(good.peers, bundle=BOTH, declared=(("linkerd-config", only(OLD)),))
    assert (
        "east: linkerd-config lacks " + NEW[:16] in may_enter(Phase.ISSUE, domain(drifted), GONE, NEW, NOW).waiting_for
    )


def test_the_wait_for_leaves_is_bounded_by_the_last_old_leaf_that_was_seen() -> None:
    late = peer("late", trusts=BOTH, until=NOW + 7 * HOUR)
    soon = peer("soon", trusts=BOTH, until=NOW + 2 * HOUR)
    renewed = peer("new", trusts=BOTH, anchors=only(NEW), until=NOW + 24 * HOUR)
    waiting = domain(cluster([late, soon, renewed], bundle=BOTH, issuer=only(NEW)))
    found = may_enter(Phase.DISTRUST, waiting, GONE, NEW, NOW)
    assert found.bound == NOW + 7 * HOUR
    assert not found.overdue
    unread = domain(cluster([late, peer("dark", trusts=BOTH, anchors=None)], bundle=BOTH, issuer=only(NEW)))
    assert may_enter(Phase.DISTRUST, unread, GONE, NEW, NOW).bound == NOW + 24 * HOUR
    unswitched = domain(cluster([soon], bundle=BOTH))
    assert may_enter(Phase.DISTRUST, unswitched, GONE, NEW, NOW).bound == NOW + 24 * HOUR
    assert may_enter(Phase.ISSUE, waiting, GONE, NEW, NOW).bound is None


def test_past_the_bound_the_stragglers_are_named_and_the_gate_does_not_open() -> None:
    straggler = peer("late", trusts=BOTH, until=NOW + HOUR)
    waiting = domain(cluster([straggler], bundle=BOTH, issuer=only(NEW)))
    found = may_enter(Phase.DISTRUST, waiting, GONE, NEW, NOW + HOUR + dt.timedelta(seconds=1), max_age=2 * HOUR)
    assert found.overdue
    with pytest.raises(GateTimedOut) as caught:
        found.require()
    assert any("late" in name for name in caught.value.stragglers)


def test_a_broken_domain_is_refused_and_not_waited_for() -> None:
    broken = domain(cluster([peer("a"), peer("b", trusts=BOTH, anchors=only(NEW))], bundle=BOTH))
    for phase in Phase:
        with pytest.raises(GateRefused):
            may_enter(phase, broken, GONE, NEW, NOW).require()
    expired = domain(cluster([peer(until=NOW - HOUR / 2)]))
    with pytest.raises(GateRefused):
        may_enter(Phase.TRUST, expired, GONE, NEW, NOW).require()


def test_a_leaf_of_a_third_root_keeps_distrust_shut_although_everybody_would_still_trust_it() -> None:
    everything = only(OLD, NEW, OTHER)
    third = peer("third", trusts=everything, anchors=only(OTHER))
    mixed = domain(cluster([third], bundle=everything, issuer=only(NEW)))
    found = may_enter(Phase.DISTRUST, mixed, GONE, NEW, NOW)
    assert found.waiting_for == (f"east/app/third: leaf of other roots until {NOW + HOUR:%F %T}Z",)


def test_a_gate_says_on_what_evidence_it_opened() -> None:
    found = may_enter(Phase.DISTRUST, both_clusters(BOTH, NEW), GONE, NEW, NOW)
    assert found.evidence == (
        "now: safe",
        "prepare: 8 of 8 peers",
        "trust: 8 of 8 peers",
        "with east's issuer switched: safe",
        "with west's issuer switched: safe",
        "issue: 8 of 8 peers",
        "with the old roots dropped: safe",
    )


def test_an_old_observation_opens_nothing() -> None:
    good = both_clusters(BOTH, NEW)
    assert may_enter(Phase.DISTRUST, good, GONE, NEW, NOW + dt.timedelta(minutes=15)).open
    stale = may_enter(Phase.DISTRUST, good, GONE, NEW, NOW + dt.timedelta(minutes=16))
    assert not stale.open
    assert "fresh observation" in stale.waiting_for[0]


def test_done_needs_a_probe_that_was_refused() -> None:
    end = both_clusters(only(NEW), NEW)
    assert may_probe(end, GONE, NEW, NOW).open
    assert not may_enter(Phase.DONE, end, GONE, NEW, NOW).open
    with pytest.raises(GateRefused):
        may_enter(Phase.DONE, end, GONE, NEW, NOW, old_leaf_refused=False).require()
    assert may_enter(Phase.DONE, end, GONE, NEW, NOW, old_leaf_refused=True).require().open
    assert not may_probe(both_clusters(BOTH, NEW), GONE, NEW, NOW).open


# Any observation at all, sense or nonsense; and ones that are nearly in order, where gates do open.
some_roots = st.sets(st.sampled_from([OLD, NEW, OTHER])).map(frozenset)
peers = st.builds(
    lambda trusts, anchors, role, hours: peer(trusts=trusts, anchors=anchors, role=role, until=NOW + hours * HOUR),
    st.none() | some_roots,
    st.none() | some_roots,
    st.sampled_from(Role),
    st.integers(-1, 24),
)


def renamed(found: list[Peer], name: str) -> list[Peer]:
    return [dataclasses.replace(each, pod=f"p{n}", cluster=name) for n, each in enumerate(found)]


def clusters(name: str) -> st.SearchStrategy[ClusterObservation]:
    return st.builds(
        lambda found, bundle, issuer, place: cluster(
            renamed(found, name), name=name, bundle=bundle, issuer=issuer, declared=(("config", place),)
        ),
        st.lists(peers, max_size=4),
        some_roots,
        st.none() | some_roots,
        some_roots,
    )


anything = st.lists(st.sampled_from(["east", "west"]), min_size=1, max_size=2, unique=True).flatmap(
    lambda names: st.tuples(*(clusters(name) for name in names)).map(lambda made: domain(*made))
)


def one_peer_off(observation: Observation, spoilt: Peer | None) -> Observation:
    if spoilt is None:
        return observation
    east, *rest = observation.clusters
    return domain(dataclasses.replace(east, peers=(*east.peers, dataclasses.replace(spoilt, pod="odd"))), *rest)


in_order = [both_clusters(t, r) for t, r in ((only(OLD), OLD), (BOTH, OLD), (BOTH, NEW), (only(NEW), NEW))]
nearly_in_order = st.builds(one_peer_off, st.sampled_from(in_order), st.none() | peers)
observations = anything | nearly_in_order


@settings(max_examples=120, deadline=None)
@given(observations, st.sampled_from([GONE, BOTH, only(OLD, OTHER)]), st.none() | st.just(NEW))
def test_every_observation_has_a_phase_and_an_answer_at_every_gate(
    observation: Observation, old: frozenset[str], new: str | None
) -> None:
    phase = derive_phase(observation, old, new)
    assert (new is None) <= (phase is Phase.PREPARE)
    opened = [may_enter(each, observation, old, new, NOW, old_leaf_refused=True).open for each in Phase]
    assert opened == sorted(opened, reverse=True)  # an open gate implies the earlier ones
    if phase is Phase.DONE:
        assert all(c.bundle == only(NEW) for c in observation.clusters)
        assert all(p.trusts == only(NEW) for p in observation.peers)


def with_peer(observation: Observation, changed: Peer) -> Observation:
    return domain(
        *(
            dataclasses.replace(c, peers=tuple(changed if p.name == changed.name else p for p in c.peers))
            for c in observation.clusters
        )
    )


@settings(max_examples=120, deadline=None)
@given(observations, st.data())
def test_a_peer_that_moves_forward_never_closes_a_gate(observation: Observation, data: st.DataObject) -> None:
    """Forward: to trust the new root too; once everybody does, to present a leaf of it; then to drop the old."""
    if not observation.peers:
        return
    chosen = data.draw(st.sampled_from(observation.peers))
    for phase in Phase:
        if not may_enter(phase, observation, GONE, NEW, NOW, old_leaf_refused=True).open:
            break
        assert chosen.trusts is not None
        assert chosen.leaf is not None
        steps = [dataclasses.replace(chosen, trusts=chosen.trusts | {NEW})]
        if phase.number >= Phase.ISSUE.number:
            steps.append(dataclasses.replace(chosen, leaf=dataclasses.replace(chosen.leaf, anchors=only(NEW))))
        if phase.number >= Phase.DISTRUST.number:
            steps.append(dataclasses.replace(chosen, trusts=only(NEW)))
        if phase is Phase.DONE:
            del steps[0]  # nothing is forward of holding exactly the new root
        for step in steps:
            assert may_enter(phase, with_peer(observation, step), GONE, NEW, NOW, old_leaf_refused=True).open
