"""What has expired in a Linkerd: told apart, refused or replaced, and told to whoever decides."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from capstan.approvals.rendering import WIDTH
from capstan.cli.entry_points import What, require_rotation
from capstan.cli.outages import print_outages, span
from capstan.cluster.record import RecordStore, RotationRecord
from capstan.config import System, TrustDomain
from capstan.errors import GateRefused, InvalidInput
from capstan.pki.bundle import Bundle
from capstan.pki.mint import IssuerPolicy, RootPolicy, mint_issuer, mint_root
from capstan.rotation import expired
from capstan.rotation.claims import Unclaimed
from capstan.rotation.expired import FOUND, ROOTS_AFTER, Found
from capstan.rotation.expiry import Finding, Level
from capstan.rotation.opening import begin_record
from capstan.rotation.outcome import Outage
from capstan.rotation.session import OLD_ROOTS, plan_policy
from capstan.rotation.turning import aim_of, require_unused
from capstan.systems.linkerd.control_plane import why_stale
from capstan.trust.expired import Scope
from capstan.trust.observation import ClusterObservation, Issuer, Leaf, Observation, Owner, Peer, Role
from capstan.trust.phase import Phase
from capstan.trust.replacing import ExpiredAim
from capstan.trust.steps import StepKind
from flows.radar import cure
from tests.support.apiserver import Running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster
    from capstan.pki.inspect import Certificate

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
HOUR = timedelta(hours=1)
OLD = mint_root(RootPolicy("root.linkerd.cluster.local", validity=timedelta(days=30)), 1, NOW - timedelta(days=30))
GOOD = mint_root(RootPolicy("root.linkerd.cluster.local"), 2, NOW - timedelta(days=1))
DEAD = mint_issuer(
    IssuerPolicy("identity.linkerd.cluster.local", validity=timedelta(hours=20)), GOOD, NOW - timedelta(hours=22)
)
ALIVE = mint_issuer(IssuerPolicy("identity.linkerd.cluster.local"), GOOD, NOW - timedelta(hours=2))
KNOWN: dict[str, Certificate] = {m.certificate.fingerprint: m.certificate for m in (OLD, GOOD, DEAD, ALIVE)}
OLD_ROOT, GOOD_ROOT = OLD.certificate.fingerprint, GOOD.certificate.fingerprint
DEAD_ISSUER, ALIVE_ISSUER = DEAD.certificate.fingerprint, ALIVE.certificate.fingerprint


def peer(
    name: str, *, until: datetime | None, issuer: str = ALIVE_ISSUER, trusts: frozenset[str] = frozenset({GOOD_ROOT}),
    anchors: frozenset[str] | None = None, started: datetime | None = None,
) -> Peer:  # fmt: skip
    leaf = None
    if until is not None:
        leaf = Leaf(f"leaf of {name}", name, issuer, trusts if anchors is None else anchors, until - 24 * HOUR, until)
    owner = Owner("Deployment", "shop", name.rpartition("-")[0])
    why = "" if leaf else "leaf: the proxy shows no leaf"
    return Peer("east", "shop", name, Role.WORKLOAD, owner, trusts, leaf, why, started=started)


def seen(
    *peers: Peer, bundle: frozenset[str] = frozenset({GOOD_ROOT}), issuer: Certificate = ALIVE.certificate,
    anchors: frozenset[str] | None = None, at: datetime = NOW,
) -> Observation:  # fmt: skip
    found = Issuer(issuer.fingerprint, bundle if anchors is None else anchors, issuer.not_after)
    return Observation(at, (ClusterObservation("east", bundle, (), found, peers, 86440.0),))


DEAD_ISSUER_SEEN = seen(
    peer("web-1", until=NOW - 2 * HOUR, issuer=DEAD_ISSUER),
    peer("web-2", until=NOW - 3 * HOUR, issuer=DEAD_ISSUER),
    peer("cart-1", until=None, started=NOW - HOUR),
    issuer=DEAD.certificate,
)
# The anchor has ended, so that the product's verifiers find no chain any more; proxies go on by the leaves they have.
DEAD_ANCHOR_SEEN = seen(
    peer("web-1", until=NOW + 5 * HOUR, trusts=frozenset({OLD_ROOT}), anchors=frozenset()),
    bundle=frozenset({OLD_ROOT}), anchors=frozenset(),
)  # fmt: skip
HEALTHY = seen(peer("web-1", until=NOW + HOUR), peer("cart-1", until=NOW + 2 * HOUR))
LEAVES_SEEN = seen(peer("web-1", until=NOW - HOUR), peer("cart-1", until=NOW + HOUR))
REMNANT_SEEN = seen(
    peer("web-1", until=NOW + HOUR, trusts=frozenset({OLD_ROOT, GOOD_ROOT}), anchors=frozenset({GOOD_ROOT})),
    bundle=frozenset({OLD_ROOT, GOOD_ROOT}), anchors=frozenset({GOOD_ROOT}),
)  # fmt: skip


def look(observation: Observation) -> Any:
    return expired.look(observation, KNOWN, NOW)


@pytest.mark.proves("faults", "expired issuer", "who is without an identity, and since when, is read from the leaves")
def test_an_issuer_that_has_ended_is_told_with_each_workload_that_is_without_an_identity_and_since_when() -> None:
    found = look(DEAD_ISSUER_SEEN)
    assert found.issuers == {"east": DEAD.certificate.not_after}
    assert not found.roots
    assert [(w.workload, w.since, w.proxies) for w in found.workloads] == [
        ("east: deployment/web -n shop", NOW - 3 * HOUR, 2),
        # It never had a leaf: it is without one since it was started, after the issuer had ended.
        ("east: deployment/cart -n shop", NOW - HOUR, 1),
    ]
    assert (found.without, found.proxies, found.since) == (3, 3, NOW - 3 * HOUR)


def test_an_anchor_that_has_ended_leaves_living_leaves_valid_and_stops_its_issuer() -> None:
    found = look(DEAD_ANCHOR_SEEN)
    assert found.roots == {OLD_ROOT: OLD.certificate.not_after}
    assert found.issuers == {"east": OLD.certificate.not_after}
    assert (found.without, found.last_leaf) == (0, NOW + 5 * HOUR)
    assert found.ends == {"east: deployment/web -n shop": NOW + 5 * HOUR}


def test_leaves_alone_a_remnant_beside_a_good_anchor_and_nothing_are_told_apart() -> None:
    leaves, remnant = look(LEAVES_SEEN), look(REMNANT_SEEN)
    assert (leaves.without, dict(leaves.issuers), dict(leaves.roots)) == (1, {}, {})
    assert (remnant.without, dict(remnant.issuers), list(remnant.roots)) == (0, {}, [OLD_ROOT])
    assert leaves.anything
    assert remnant.anything
    assert not look(HEALTHY).anything


def test_a_proxy_that_could_not_be_asked_is_no_evidence_of_an_expiry() -> None:
    silent = replace(peer("web-1", until=None), trusts=None)
    assert not look(seen(silent)).anything
    assert look(seen(silent, issuer=DEAD.certificate)).without == 0


DOMAIN = TrustDomain(name="mesh", system=System.LINKERD)


@pytest.mark.proves("faults", "expired issuer", "an ordinary rotation refuses, and names the command that replaces it")
@pytest.mark.parametrize(
    ("observation", "told"),
    [
        (DEAD_ISSUER_SEEN, "the issuer of cluster east signs nothing that is accepted since 2026-11-22 01:00:00Z"),
        (DEAD_ANCHOR_SEEN, "ended on 2026-11-22 03:00:00Z"),
        (LEAVES_SEEN, "east: deployment/web -n shop: 1 without a valid identity since 2026-11-22 02:00:00Z"),
    ],
    ids=["issuer", "anchor", "leaves"],
)
def test_an_ordinary_rotation_refuses_what_has_expired_and_names_the_command_for_it(
    observation: Observation, told: str
) -> None:
    with pytest.raises(GateRefused) as refused:
        expired.require_nothing_expired(DOMAIN, observation, KNOWN, NOW)
    assert told in refused.value.observed
    assert refused.value.next_command == "capstan rotate --system linkerd --what expired"
    assert expired.advice(observation, KNOWN, NOW).startswith("capstan rotate --system linkerd --what expired")


def test_what_has_not_expired_is_left_to_an_ordinary_rotation_of_what_ends_first() -> None:
    expired.require_nothing_expired(DOMAIN, HEALTHY, KNOWN, NOW)
    expired.require_nothing_expired(DOMAIN, REMNANT_SEEN, KNOWN, NOW)  # which it removes with the rest
    assert expired.advice(HEALTHY, KNOWN, NOW) == ""
    with pytest.raises(GateRefused, match="nothing has expired") as refused:
        expired.require_expired(DOMAIN, {}, HEALTHY, KNOWN, NOW)
    assert refused.value.next_command == "capstan rotate --system linkerd --what issuer"
    # An issuer that is the anchor itself cannot be rotated alone.
    both = seen(peer("web-1", until=NOW + HOUR), issuer=GOOD.certificate)
    with pytest.raises(GateRefused) as refused:
        expired.require_expired(DOMAIN, {}, both, KNOWN, NOW)
    assert refused.value.next_command == "capstan rotate --system linkerd --what anchor"
    expired.require_expired(DOMAIN, {}, LEAVES_SEEN, KNOWN, NOW)


# --- the plan ---------------------------------------------------------------------------------------------------------


def aim(goal: str = ALIVE_ISSUER, *, before: str = DEAD_ISSUER, roots: frozenset[str] = frozenset({GOOD_ROOT}),
        roots_before: frozenset[str] = frozenset({GOOD_ROOT})) -> ExpiredAim:  # fmt: skip
    return ExpiredAim({"east": before}, {"east": goal} if goal else {}, roots_before, roots)


def kinds(plan: Any) -> list[StepKind]:
    return [step.kind for step in plan.pending]


RESTARTS = [StepKind.RESTART_CONTROL_PLANE, StepKind.RESTART_DATA_PLANE, StepKind.AWAIT_LEAVES]


@pytest.mark.parametrize(
    ("wanted", "observation", "steps"),
    [
        (aim(), DEAD_ISSUER_SEEN, [StepKind.SWITCH_ISSUER, *RESTARTS]),
        (
            aim("f" * 64, before=ALIVE_ISSUER, roots_before=frozenset({OLD_ROOT})),
            DEAD_ANCHOR_SEEN,
            [StepKind.REPLACE_ROOTS, StepKind.SWITCH_ISSUER, *RESTARTS],
        ),
        (aim(before=ALIVE_ISSUER), LEAVES_SEEN, RESTARTS),
        (
            aim(before=ALIVE_ISSUER, roots_before=frozenset({OLD_ROOT, GOOD_ROOT})),
            REMNANT_SEEN,
            [StepKind.REPLACE_ROOTS, *RESTARTS],
        ),
    ],
    ids=["issuer", "anchor", "leaves", "remnant"],
)
def test_the_plan_writes_what_has_to_be_written_asks_once_and_starts_anew_who_is_behind(
    wanted: ExpiredAim, observation: Observation, steps: list[StepKind]
) -> None:
    plan = wanted.plan(observation, plan_policy(DOMAIN))
    assert kinds(plan) == [StepKind.APPROVE, *steps]
    assert plan.phase is Phase.ISSUE
    assert not plan.entered(Phase.ISSUE)
    assert not plan.verdict.safe or observation is REMNANT_SEEN


def test_expired_leaves_never_contradict_and_are_waited_for_at_the_end() -> None:
    wanted = aim()
    entering = wanted.may_enter(Phase.ISSUE, DEAD_ISSUER_SEEN, NOW)
    assert entering.open
    done = wanted.may_enter(Phase.DONE, DEAD_ISSUER_SEEN, NOW)
    assert not done.contradictions
    assert any("web-1" in why for why in done.waiting_for)
    assert done.bound is None  # nothing is waited for because its leaf would end some day
    assert wanted.may_enter(Phase.DONE, HEALTHY, NOW).open
    assert wanted.plan(HEALTHY, plan_policy(DOMAIN)).phase is Phase.DONE


def test_a_leaf_of_the_right_issuer_that_has_ended_is_behind_and_its_workload_is_started_anew() -> None:
    late = aim(before=ALIVE_ISSUER).progress(LEAVES_SEEN, Phase.ISSUE)
    assert (late.done, late.total) == (1, 2)
    assert "its leaf ended on 2026-11-22 02:00:00Z" in late.waiting_for[0]
    dead, living = LEAVES_SEEN.peers
    roots = frozenset({GOOD_ROOT})
    assert "ended on 2026-11-22 02:00:00Z" in why_stale(dead, roots, ALIVE_ISSUER, NOW)
    assert why_stale(living, roots, ALIVE_ISSUER, NOW) == ""


def test_an_approval_holds_still_while_pods_of_a_mesh_that_is_down_come_and_go() -> None:
    policy = plan_policy(DOMAIN)
    before = aim().plan(DEAD_ISSUER_SEEN, policy).digest()
    crashing = replace(DEAD_ISSUER_SEEN.peers[2], trusts=None, unreadable="connection refused")
    cluster = replace(DEAD_ISSUER_SEEN.clusters[0], peers=(*DEAD_ISSUER_SEEN.peers[:2], crashing))
    assert aim().plan(replace(DEAD_ISSUER_SEEN, clusters=(cluster,)), policy).digest() == before
    assert aim("e" * 64).plan(DEAD_ISSUER_SEEN, policy).entered(Phase.ISSUE) is False


# --- what is remembered, told, and closed -----------------------------------------------------------------------------


def found(observation: Observation, scope: Scope, living: tuple[Certificate, ...] = (GOOD.certificate,)) -> Found:
    return expired.remembered(look(observation), scope, "", KNOWN, living, NOW)


def test_what_was_found_is_remembered_as_it_was_told() -> None:
    first = found(DEAD_ISSUER_SEEN, Scope.ISSUER)
    record = RotationRecord(
        rotation_id="r", domain="mesh", system="linkerd", kind="expired", started=NOW, notes={FOUND: first.text()}
    )
    assert Found.of(record) == first
    assert "since 2026-11-22 00:00:00 UTC proxies have no valid identity" in first.told()
    assert "Downtime is unavoidable, and is happening already" in first.told()
    waiting = found(DEAD_ANCHOR_SEEN, Scope.ANCHOR, ())
    assert "the last leaf ends at 2026-11-22 08:00:00 UTC" in waiting.told()
    assert "Nobody is down" in found(REMNANT_SEEN, Scope.REMNANT).told()


def record_of(scope: Scope, **more: Any) -> RotationRecord:
    return RotationRecord(
        rotation_id="r", domain="mesh", system="linkerd", kind="expired", started=NOW, old=frozenset({GOOD_ROOT}),
        new=GOOD_ROOT, issuers_before={"east": DEAD_ISSUER}, issuers={"east": ALIVE_ISSUER},
        notes={
            FOUND: found(DEAD_ISSUER_SEEN, scope).text(), OLD_ROOTS: Bundle.of(GOOD.certificate).pem(),
            ROOTS_AFTER: Bundle.of(GOOD.certificate).pem(),
        },
        **more,
    )  # fmt: skip


def test_a_record_alone_says_what_a_replacement_is_after() -> None:
    assert aim_of(record_of(Scope.ISSUER)) == aim()


@pytest.mark.proves("faults", "expired issuer", "rolled back only as long as nothing was written; then it says why not")
def test_the_way_back_is_open_while_nothing_is_written_and_closed_from_then_on() -> None:
    policy = plan_policy(DOMAIN)
    require_unused(record_of(Scope.ISSUER), DEAD_ISSUER_SEEN, policy)
    with pytest.raises(GateRefused, match="what there was before has expired") as refused:
        require_unused(record_of(Scope.ISSUER), HEALTHY, policy)
    assert "--what expired --rotation r" in refused.value.next_command
    finished = record_of(Scope.ISSUER, finished=NOW, outcome="completed")
    with pytest.raises(GateRefused) as refused:
        require_unused(finished, DEAD_ISSUER_SEEN, policy)
    assert refused.value.next_command.startswith("capstan rotate --what anchor")


def test_how_long_each_workload_was_down_is_a_table_of_at_most_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    long = "east: statefulset/a-very-long-name-of-a-workload -n in-a-namespace-of-a-long-name"
    print_outages([Outage(long, NOW - 50 * HOUR, NOW), Outage("east: deployment/web -n shop", NOW - HOUR, NOW)])
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= WIDTH
    assert "in-a-namespace-of-a-long-name" in shown
    assert "2 d 2 h" in shown
    assert "60 min" in shown
    print_outages([])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "told"), [(48.2, "48 s"), (121, "2 min"), (3 * 3600 + 180, "3 h 03 min"), (200_000, "2 d 7 h")]
)
def test_a_span_is_told_in_two_units_at_most(seconds: float, told: str) -> None:
    assert span(seconds) == told


def test_the_radar_names_the_flow_that_replaces_what_has_ended_already() -> None:
    ended = Finding("issuer", "east", "identity", Level.CRITICAL, NOW - HOUR, "ended")
    assert cure(DOMAIN, [ended], NOW) == "linkerd-expired"
    assert cure(DOMAIN, [replace(ended, ends=NOW + HOUR)], NOW) == "linkerd-issuer"
    assert cure(DOMAIN, [replace(ended, kind="approver")], NOW) == "linkerd-trust-anchor"
    istio = TrustDomain(name="mesh", system=System.ISTIO)
    assert cure(istio, [ended], NOW) == "istio-intermediate"


# --- a rotation that is stuck -----------------------------------------------------------------------------------------


class Still:
    """A cluster that does not move."""

    cluster_name = "east"

    def __init__(self, observation: Observation) -> None:
        self.seen = observation.clusters[0]

    def observe(self, known: Any = ()) -> ClusterObservation:
        del known
        return self.seen

    def certificates(self) -> dict[str, Certificate]:
        return KNOWN


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    api = Running(tmp_path_factory.mktemp("apiserver"))
    with closing(api.connect()) as connected:
        yield connected
    api.stop()


def begin(cluster: Cluster, domain: TrustDomain, observation: Observation, kind: Any) -> tuple[RotationRecord, bool]:
    systems: Any = {"east": Still(observation)}
    stores = {"east": RecordStore(cluster, domain.name)}
    return begin_record(domain, None, systems, stores, lambda: NOW, Unclaimed(), take_over=False, kind=kind)


@pytest.mark.proves("faults", "expired issuer", "a rotation that is stuck because of it makes room for the replacement")
def test_a_rotation_that_something_expired_under_makes_room_and_one_that_can_go_on_does_not(cluster: Cluster) -> None:
    domain = TrustDomain(name="stuck")
    store = RecordStore(cluster, domain.name)
    store.begin(RotationRecord(rotation_id="r-1", domain="stuck", system="linkerd", started=NOW))
    with pytest.raises(GateRefused, match="nothing has expired"):
        begin(cluster, domain, HEALTHY, "expired")
    kept = store.load()
    assert kept is not None
    assert kept.finished is None
    with pytest.raises(GateRefused, match="nobody is down") as refused:
        begin(cluster, domain, REMNANT_SEEN, "expired")
    assert refused.value.next_command == "capstan rotate --rotation r-1"
    begun, resumed = begin(cluster, domain, DEAD_ISSUER_SEEN, "expired")
    assert (begun.kind, begun.rotation_id, resumed) == ("expired", "2026-11-22-expired", False)
    assert begun.issuers_before == {"east": DEAD_ISSUER}
    # And an ordinary one does not take it for its own.
    with pytest.raises(InvalidInput, match="of another kind"):
        begin(cluster, domain, DEAD_ISSUER_SEEN, "anchor")
    again, resumed = begin(cluster, domain, DEAD_ISSUER_SEEN, "expired")
    assert (again.rotation_id, resumed) == ("2026-11-22-expired", True)


def test_an_ordinary_rotation_is_not_even_begun_where_something_has_expired(cluster: Cluster) -> None:
    domain = TrustDomain(name="ordinary")
    with pytest.raises(GateRefused, match="something has expired"):
        begin(cluster, domain, DEAD_ISSUER_SEEN, "anchor")
    assert RecordStore(cluster, domain.name).load() is None


@pytest.mark.parametrize("system", [System.ISTIO, System.AKS_ISTIO])
def test_only_linkerd_has_this_command(system: System) -> None:
    require_rotation(System.LINKERD, What.EXPIRED)
    with pytest.raises(InvalidInput, match="no such rotation"):
        require_rotation(system, What.EXPIRED)
