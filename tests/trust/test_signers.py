"""What live signers say, roots that come with every leaf, and how long is waited for them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from capstan.errors import GateTimedOut
from capstan.trust.gates import may_enter
from capstan.trust.observation import Observation, Signer
from capstan.trust.phase import Phase, derive_phase, progress
from capstan.trust.plan import LeafRenewal, Policy, StepKind, plan
from capstan.trust.safety import Unsafe, verdict
from tests.trust.domains import BOTH, HOUR, NEW, NOW, OLD, cluster, domain, only, peer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capstan.trust.observation import ClusterObservation, Peer

ONLY_OLD, ONLY_NEW = only(OLD), only(NEW)


def signer(
    name: str = "istiod-1",
    *,
    roots: frozenset[str] | None = ONLY_OLD,
    signs: str | None = OLD,
    why: str = "",
) -> Signer:
    return Signer(name, f"issuer of {signs}" if signs else None, only(signs) if signs else frozenset(), roots, why)


def mesh(
    peers: Iterable[Peer], *signers: Signer, bundle: frozenset[str] = ONLY_OLD, issues: str = OLD, name: str = "east"
) -> ClusterObservation:
    seen = cluster(peers, name=name, bundle=bundle, issuer=only(issues))
    return replace(seen, signers=signers, roots_with_leaf=True)


def web(number: int, trusts: frozenset[str] = ONLY_OLD, presents: str = OLD, hours: float = 10) -> Peer:
    return peer(f"web-{number}", trusts=trusts, anchors=only(presents), until=NOW + hours * HOUR)


def waits(seen: Observation, phase: Phase) -> str:
    return "; ".join(progress(seen, phase, ONLY_OLD, NEW).waiting_for)


def test_a_replica_that_does_not_hand_out_the_new_root_holds_up_trust() -> None:
    seen = domain(mesh([web(1, BOTH)], signer(roots=BOTH), signer("istiod-2"), bundle=BOTH))
    assert derive_phase(seen, ONLY_OLD, NEW) is Phase.TRUST
    assert "east: istiod-2 does not hand out" in waits(seen, Phase.TRUST)
    assert not may_enter(Phase.ISSUE, seen, ONLY_OLD, NEW, NOW).open


def test_a_replica_that_still_signs_by_the_old_root_holds_up_issue_although_every_leaf_is_new() -> None:
    seen = domain(
        mesh(
            [web(1, BOTH, NEW)], signer(roots=BOTH, signs=NEW), signer("istiod-2", roots=BOTH), bundle=BOTH, issues=NEW
        )
    )
    assert derive_phase(seen, ONLY_OLD, NEW) is Phase.ISSUE
    assert "istiod-2 signs with an issuer that does not chain to" in waits(seen, Phase.ISSUE)
    assert not may_enter(Phase.DISTRUST, seen, ONLY_OLD, NEW, NOW).open


def test_a_mesh_half_of_whose_replicas_hand_out_the_old_root_is_never_done() -> None:
    new = signer(roots=ONLY_NEW, signs=NEW)
    more = signer("istiod-2", roots=BOTH, signs=NEW)
    done = domain(mesh([web(1, ONLY_NEW, NEW)], new, bundle=ONLY_NEW, issues=NEW))
    half = domain(mesh([web(1, ONLY_NEW, NEW)], new, more, bundle=ONLY_NEW, issues=NEW))
    assert derive_phase(done, ONLY_OLD, NEW) is Phase.DONE
    assert derive_phase(half, ONLY_OLD, NEW) is Phase.DISTRUST
    assert "istiod-2 hands out" in waits(half, Phase.DISTRUST)


@pytest.mark.parametrize("phase", [Phase.TRUST, Phase.ISSUE, Phase.DISTRUST])
def test_a_replica_that_cannot_be_asked_has_reached_nothing(phase: Phase) -> None:
    silent = signer("istiod-2", roots=None, signs=None, why="connection refused")
    seen = domain(mesh([web(1, ONLY_NEW, NEW)], silent, bundle=ONLY_NEW, issues=NEW))
    assert "istiod-2 cannot be read (connection refused)" in waits(seen, phase)
    found = verdict(seen)
    assert isinstance(found, Unsafe)
    assert ("east: istiod-2", "connection refused") in found.unreadable


def test_where_signers_can_be_asked_none_at_all_is_not_all_of_them() -> None:
    seen = domain(mesh([web(1, ONLY_NEW, NEW)], bundle=ONLY_NEW, issues=NEW))
    assert derive_phase(seen, ONLY_OLD, NEW) is not Phase.DONE
    assert "no live process that signs leaves was found" in waits(seen, Phase.DISTRUST)


def test_what_a_replica_would_hand_out_next_is_judged_as_if_it_were_handed_out() -> None:
    stale = signer("istiod-2", roots=ONLY_OLD)
    seen = domain(mesh([web(1, BOTH, NEW)], signer(roots=BOTH, signs=NEW), stale, bundle=BOTH, issues=NEW))
    found = verdict(seen)
    assert isinstance(found, Unsafe)
    assert any("east: istiod-2, a proxy it signs for now" in pair.who for pair in found.pairs)


def test_the_wait_for_trust_stores_ends_with_the_last_leaf_of_those_that_are_behind() -> None:
    peers = [web(1, hours=3), web(2, hours=7), web(3, BOTH, hours=20)]
    seen = domain(mesh(peers, signer(roots=BOTH), bundle=BOTH))
    assert may_enter(Phase.ISSUE, seen, ONLY_OLD, NEW, NOW).bound == NOW + 7 * HOUR
    leaving = [web(1, BOTH, NEW, hours=5), web(2, ONLY_NEW, NEW, hours=20)]
    last = domain(mesh(leaving, signer(roots=ONLY_NEW, signs=NEW), bundle=ONLY_NEW, issues=NEW))
    assert may_enter(Phase.DONE, last, ONLY_OLD, NEW, NOW, old_leaf_refused=True).bound == NOW + 5 * HOUR


def test_past_that_bound_who_is_missing_is_named_and_not_let_through() -> None:
    seen = domain(mesh([web(1, hours=-0.1)], signer(roots=BOTH), bundle=BOTH), at=NOW - HOUR / 2)
    found = may_enter(Phase.ISSUE, seen, ONLY_OLD, NEW, NOW, max_age=HOUR)
    assert found.overdue
    with pytest.raises(GateTimedOut) as late:
        found.require()
    assert any("web-1" in name for name in late.value.stragglers)


def test_no_leaf_bounds_a_wait_for_a_replica_alone() -> None:
    seen = domain(mesh([web(1, BOTH)], signer(), bundle=BOTH))
    found = may_enter(Phase.ISSUE, seen, ONLY_OLD, NEW, NOW)
    assert not found.open
    assert found.bound is None


def test_where_roots_come_with_a_restart_no_leaf_bounds_the_wait_for_them() -> None:
    seen = domain(replace(cluster([web(1)], bundle=BOTH), roots_with_leaf=False))
    assert may_enter(Phase.ISSUE, seen, ONLY_OLD, NEW, NOW).bound is None


def test_a_stale_replica_may_give_out_an_old_leaf_now_so_the_wait_for_leaves_lasts_another_life() -> None:
    seen = domain(mesh([web(1, BOTH, NEW)], signer(roots=BOTH), bundle=BOTH, issues=NEW))
    assert may_enter(Phase.DISTRUST, seen, ONLY_OLD, NEW, NOW).bound == NOW + 24 * HOUR


def kinds(seen: Observation, **options: bool | LeafRenewal) -> list[tuple[str, bool]]:
    renewal = options.pop("renewal", LeafRenewal.AWAIT)
    found = plan(seen, ONLY_OLD, NEW, Policy(renewal=LeafRenewal(renewal)), **options)  # type: ignore[arg-type]
    return [(step.name, step.done) for step in found.steps]


def test_workloads_are_restarted_only_by_choice() -> None:
    seen = domain(mesh([web(1)], signer()))
    assert not [name for name, _ in kinds(seen) if StepKind.RESTART_DATA_PLANE in name]
    by_choice = [name for name, _ in kinds(seen, renewal=LeafRenewal.RESTART) if StepKind.RESTART_DATA_PLANE in name]
    assert by_choice == [f"{phase}/restart-data-plane" for phase in ("trust", "issue", "distrust")]


def test_a_replica_step_is_done_when_each_replica_was_seen_to_hold_it() -> None:
    trusted = domain(mesh([web(1)], signer(roots=BOTH), bundle=BOTH))
    assert dict(kinds(trusted))["trust/restart-control-plane"]
    half = domain(mesh([web(1)], signer(roots=BOTH), signer("istiod-2"), bundle=BOTH))
    assert not dict(kinds(half))["trust/restart-control-plane"]


def test_after_a_turn_what_was_seen_is_not_believed_until_a_bundle_was_narrowed() -> None:
    trusted = domain(mesh([web(1)], signer(roots=BOTH), bundle=BOTH))
    assert not dict(kinds(trusted, turned=True))["trust/restart-control-plane"]
    narrowed = domain(
        mesh([web(1, ONLY_NEW, NEW)], signer(roots=ONLY_NEW, signs=NEW), bundle=ONLY_NEW, issues=NEW),
        mesh([web(2, BOTH, NEW)], signer(roots=BOTH, signs=NEW), bundle=BOTH, issues=NEW, name="west"),
    )
    assert dict(kinds(narrowed, turned=True))["trust/restart-control-plane"]
