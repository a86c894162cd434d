"""A rotation of the issuers alone, and a re-date: who is waited for, and what is planned."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capstan.errors import InvalidInput
from capstan.trust.issuers import derive_issuer_phase, issuer_progress, may_enter_issuer, plan_issuers
from capstan.trust.observation import ClusterObservation, Leaf, Observation, Signer
from capstan.trust.phase import Phase
from capstan.trust.plan import LeafRenewal, Policy
from capstan.trust.redating import RedateAim
from tests.trust.domains import HOUR, NEW, NOW, OLD, cluster, domain, only, peer

BEFORE, AFTER = "1" * 64, "2" * 64
GOAL = {"east": AFTER}
ROOT = {"east": only(OLD)}


def mesh(
    issuer: str = BEFORE, *, signers: tuple[str | None, ...] = (BEFORE,), leaves: tuple[str, ...] = (BEFORE,)
) -> ClusterObservation:
    peers = [
        replace(
            peer(f"web-{n}"), leaf=Leaf(f"leaf-{n}", "", leaf, only(OLD), NOW - HOUR, NOW + (5 + n) * HOUR)
        )
        for n, leaf in enumerate(leaves)
    ]  # fmt: skip
    live = tuple(
        Signer(
            f"istiod-{n}",
            each,
            only(OLD) if each else frozenset(),
            only(OLD) if each else None,
            "" if each else "silent",
        )
        for n, each in enumerate(signers)
    )
    return replace(cluster(peers, issuer_fingerprint=issuer), signers=live, roots_with_leaf=True)


def states(*more: ClusterObservation) -> Observation:
    return domain(*more)


@pytest.mark.parametrize(
    ("seen", "phase", "named"),
    [
        (mesh(), Phase.PREPARE, "issuer is 1111"),
        (mesh(AFTER), Phase.ISSUE, "istiod-0 signs with 1111"),
        (mesh(AFTER, signers=(AFTER, BEFORE)), Phase.ISSUE, "istiod-1 signs with 1111"),
        (mesh(AFTER, signers=(AFTER, None)), Phase.ISSUE, "istiod-1 cannot be read (silent)"),
        (mesh(AFTER, signers=()), Phase.ISSUE, "no live process that signs"),
        (mesh(AFTER, signers=(AFTER,)), Phase.ISSUE, "web-0: leaf of another issuer"),
        (mesh(AFTER, signers=(AFTER,), leaves=(AFTER, BEFORE)), Phase.ISSUE, "web-1: leaf of another issuer"),
        (mesh(AFTER, signers=(AFTER,), leaves=(AFTER,)), Phase.DONE, ""),
    ],
)
def test_the_phase_is_read_from_whose_issuer_signs_and_is_presented(
    seen: ClusterObservation, phase: Phase, named: str
) -> None:
    assert derive_issuer_phase(domain(seen), GOAL) is phase
    waiting = issuer_progress(domain(seen), Phase.ISSUE, GOAL).waiting_for
    assert any(named in name for name in waiting) if named else not waiting
    assert may_enter_issuer(Phase.DONE, domain(seen), GOAL, ROOT, NOW).open is (phase is Phase.DONE)


def test_the_wait_ends_with_the_last_leaf_of_another_issuer() -> None:
    seen = domain(mesh(AFTER, signers=(AFTER,), leaves=(BEFORE, AFTER, BEFORE)))
    assert may_enter_issuer(Phase.DONE, seen, GOAL, ROOT, NOW).bound == NOW + 7 * HOUR
    stale = domain(mesh(AFTER, signers=(BEFORE,), leaves=(AFTER,)))
    assert may_enter_issuer(Phase.DONE, stale, GOAL, ROOT, NOW).bound == NOW + 24 * HOUR


def test_an_issuer_under_a_root_that_somebody_does_not_trust_is_refused_before_it_is_switched() -> None:
    found = may_enter_issuer(Phase.ISSUE, domain(mesh()), GOAL, {"east": only(NEW)}, NOW)
    assert any("with every issuer switched" in pair for pair in found.contradictions)
    assert may_enter_issuer(Phase.ISSUE, domain(mesh()), GOAL, ROOT, NOW).open


def test_nothing_is_entered_before_the_issuers_are_minted() -> None:
    found = may_enter_issuer(Phase.ISSUE, domain(mesh()), {}, {}, NOW)
    assert found.waiting_for == ("east: a new issuer: none is minted",)


def test_its_steps_are_mint_approve_switch_take_wait() -> None:
    names = [step.name for step in plan_issuers(domain(mesh()), {"east": BEFORE}, GOAL).steps]
    assert names == [
        "prepare/mint", "issue/approve", "issue/switch-issuer", "issue/restart-control-plane", "issue/await-leaves",
    ]  # fmt: skip
    by_choice = plan_issuers(domain(mesh()), {"east": BEFORE}, GOAL, Policy(renewal=LeafRenewal.RESTART))
    assert "issue/restart-data-plane" in [step.name for step in by_choice.steps]


def test_what_is_true_already_is_done_and_its_digest_holds_still_while_leaves_renew() -> None:
    early = plan_issuers(domain(mesh(AFTER, signers=(AFTER,))), {"east": BEFORE}, GOAL)
    late = plan_issuers(domain(mesh(AFTER, signers=(AFTER,), leaves=(AFTER,))), {"east": BEFORE}, GOAL)
    assert not [step for step in late.steps if not step.done]
    assert early.digest() == late.digest()
    assert early.as_json()["decidedOn"]["kind"] == "issuer"


def test_the_way_back_mints_nothing_and_believes_no_answer_of_before_the_turn() -> None:
    seen = domain(mesh(BEFORE, signers=(BEFORE,)))
    back = plan_issuers(seen, {"east": AFTER}, {"east": BEFORE}, back=True)
    assert {step.name: step.done for step in back.steps} == {
        "issue/switch-issuer": True, "issue/restart-control-plane": False, "issue/await-leaves": True,
    }  # fmt: skip


def test_an_issuer_before_that_is_not_known_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no rotation of issuers can be planned"):
        plan_issuers(domain(mesh()), {}, GOAL)


REDATE = RedateAim({"east": OLD}, {"east": NEW})
EITHER = only(OLD, NEW)


def redated(bundle: str, signer: str | None, *proxies: str) -> Observation:
    """Old and new are one key: every chain leads to either."""
    peers = [
        peer(f"web-{n}", trusts=only(each), anchors=EITHER, until=NOW + (n + 1) * HOUR)
        for n, each in enumerate(proxies)
    ]
    live = (Signer("istiod-0", "i", EITHER, only(signer) if signer else None, ""),)
    seen = cluster(peers, bundle=only(bundle), issuer=EITHER)
    return domain(replace(seen, signers=live, roots_with_leaf=True))


@pytest.mark.parametrize(
    ("seen", "named"),
    [
        (redated(OLD, OLD, OLD), "bundle does not hold exactly"),
        (redated(NEW, OLD, NEW), "istiod-0 does not hand out exactly"),
        (redated(NEW, None, NEW), "istiod-0 cannot be read"),
        (redated(NEW, NEW, NEW, OLD), "web-1: does not hold exactly"),
    ],
)
def test_a_re_date_waits_for_source_signers_places_and_proxies(seen: Observation, named: str) -> None:
    found = REDATE.may_enter(Phase.DONE, seen, NOW)
    assert any(named in name for name in found.waiting_for)
    assert REDATE.plan(seen, Policy()).phase is not Phase.DONE


def test_a_re_date_is_done_when_everybody_has_it_and_bounded_by_the_leaves_that_came_with_the_old_one() -> None:
    assert REDATE.may_enter(Phase.DONE, redated(NEW, NEW, NEW), NOW).open
    assert REDATE.may_enter(Phase.DONE, redated(NEW, NEW, NEW, OLD), NOW).bound == NOW + 2 * HOUR
    done = REDATE.plan(redated(NEW, NEW, NEW), Policy())
    assert done.phase is Phase.DONE
    assert not done.pending
    assert [step.name for step in REDATE.plan(redated(OLD, OLD, OLD), Policy()).pending] == [
        "trust/approve", "trust/re-date-root", "trust/restart-control-plane", "trust/gate-trust",
    ]  # fmt: skip
