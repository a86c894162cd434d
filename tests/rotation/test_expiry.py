"""What the radar calls urgent."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from capstan.approvals.policy import compiled
from capstan.config import ApproverKey
from capstan.pki.mint import RootPolicy, mint_root
from capstan.rotation.expiry import Level, WarnBefore, findings, worst
from capstan.systems.base import CheckResult, Severity, Status
from capstan.trust.observation import ClusterObservation, Issuer, Leaf, Observation, Owner, Peer, Role

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)
NOBODY = compiled((), 1, "the test")
ROOT = mint_root(RootPolicy(validity=3650 * DAY), 1, NOW).certificate


def leaf(age, life=DAY):
    return Leaf("leaf", "web", "issuer", frozenset({ROOT.fingerprint}), NOW - age, NOW - age + life)


def peer(pod="web-1", age=timedelta(hours=1)):
    return Peer(
        "east", "app", pod, Role.WORKLOAD, Owner("Deployment", "app", pod), frozenset({ROOT.fingerprint}), leaf(age)
    )


def cluster(**changed):
    whole = ClusterObservation(
        "east", frozenset({ROOT.fingerprint}), (), Issuer("issuer", frozenset({ROOT.fingerprint}), NOW + 300 * DAY),
        (peer(),), DAY.total_seconds(),
    )  # fmt: skip
    return replace(whole, **changed)


def found(seen=None, *, roots=(ROOT,), checks=(), approvers=NOBODY, now=NOW):
    certificates = {root.fingerprint: root for root in roots}
    return findings(
        Observation(now, (seen or cluster(),)), certificates, {"east": checks}, approvers, WarnBefore(), now
    )


def of(kind, items):
    (item,) = [item for item in items if item.kind == kind]
    return item


def test_a_domain_that_lasts_is_ok_and_every_end_is_listed():
    items = found()
    assert worst(items) is Level.OK
    assert {item.kind for item in items} == {"root", "issuer", "leaf"}
    assert of("root", items).ends == ROOT.not_after


@pytest.mark.parametrize(
    ("left", "level"),
    [(91, Level.OK), (90, Level.WARNING), (31, Level.WARNING), (30, Level.CRITICAL), (-1, Level.CRITICAL)],
)
def test_a_root_is_urgent_by_the_days_it_has_left(left, level):
    root = mint_root(RootPolicy(validity=100 * DAY), 1, NOW).certificate
    at = root.not_after - left * DAY
    item = of("root", found(cluster(bundle=frozenset({root.fingerprint})), roots=(root,), now=at))
    assert item.level is level
    assert ("ended" in item.text) == (left < 0)


@pytest.mark.parametrize(("left", "level"), [(61, Level.OK), (60, Level.WARNING), (14, Level.CRITICAL)])
def test_an_issuer_is_urgent_by_the_days_it_has_left(left, level):
    issuer = Issuer("issuer", frozenset({ROOT.fingerprint}), NOW + left * DAY)
    assert of("issuer", found(cluster(issuer=issuer))).level is level


@pytest.mark.parametrize(
    ("hours", "level"),
    [(17, Level.OK), (19, Level.OK), (20, Level.WARNING), (23, Level.CRITICAL), (25, Level.CRITICAL)],
)
def test_of_all_leaves_the_one_with_the_least_of_its_life_left_is_judged(hours, level):
    peers = (peer("web-1"), peer("web-2", timedelta(hours=hours)), peer("web-3"))
    item = of("leaf", found(cluster(peers=peers)))
    assert (item.name, item.level) == ("east/app/web-2", level)
    if level is not Level.OK:
        assert "1 of 3 leaves have missed their renewal" in item.text


def test_what_cannot_be_read_is_not_taken_for_healthy():
    assert of("issuer", found(cluster(issuer=None))).level is Level.CRITICAL
    assert of("root", found(cluster(bundle=frozenset()))).level is Level.CRITICAL
    assert of("root", found(roots=())).level is Level.WARNING


def test_a_failed_check_is_critical_and_a_warning_of_a_check_alone_wakes_nobody():
    def check(name, level, status):
        return CheckResult("linkerd-identity", name, "https://example.com", level, status, "first line\nsecond")

    items = found(
        checks=(
            check("leaves are trusted", Severity.FATAL, Status.ERROR),
            check("places agree", Severity.WARNING, Status.ERROR),
            check("fine", Severity.ERROR, Status.OK),
        )
    )
    assert [(item.name, item.level, item.text) for item in items if item.kind == "check"] == [
        ("leaves are trusted", Level.CRITICAL, "first line"),
        ("places agree", Level.NOTICE, "first line"),
    ]
    assert items[0].level is Level.CRITICAL, "the most urgent comes first"


def test_an_approvers_certificate_that_ends_soon_is_told_before_a_rotation_needs_it():
    root = mint_root(RootPolicy(validity=20 * DAY), 1, NOW).certificate
    ada = compiled((ApproverKey(name="Ada", key=root.pem()),), 1, "the test")
    item = of("approver", found(approvers=ada))
    assert (item.name, item.level) == ("Ada", Level.WARNING)
