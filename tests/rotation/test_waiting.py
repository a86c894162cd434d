"""How long a gate is watched, what is written down when a run leaves, and what it finds when it comes back."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.record import RecordStore, RotationRecord
from capstan.config import RotationPolicy, TrustDomain
from capstan.errors import GateRefused, GateTimedOut
from capstan.evidence import Evidence, signer_from_vault
from capstan.pki.bundle import Bundle
from capstan.pki.mint import RootPolicy, mint_root
from capstan.rotation.session import OLD_ROOTS, Rotation
from capstan.rotation.waiting import watch_gate
from capstan.trust.phase import Phase
from capstan.vaults.opening import open_vault
from capstan.window import MaintenanceWindow
from flows.waiting import await_window, next_look
from tests.support.apiserver import Running
from tests.trust.domains import NEW, NOW, OTHER, cluster, only, peer, settled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from capstan.trust.observation import ClusterObservation

ROOT = mint_root(RootPolicy(common_name="root"), 1, NOW).certificate
OLD = ROOT.fingerprint
BOTH = only(OLD, NEW)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


class Mesh:
    """A trust system that only can be looked at: what is seen depends on the time."""

    cluster_name = "east"

    def __init__(self, now: datetime) -> None:
        self.time = now
        self.seen: list[tuple[datetime, ClusterObservation]] = []

    def now(self) -> datetime:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)

    def observe(self, known: object = ()) -> ClusterObservation:
        return [found for since, found in self.seen if since <= self.time][-1]

    def certificates(self) -> dict[str, Any]:
        return {}

    def then(self, at: datetime, found: ClusterObservation) -> None:
        self.seen.append((at, found))


@pytest.fixture(scope="module")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


_names = itertools.count(1)


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(NOW)


@pytest.fixture
def opened(apiserver: Running, mesh: Mesh, tmp_path: Path) -> Iterator[Rotation]:
    """A rotation past its mint, with its record on an API server: a new process each time it is asked for."""
    domain = TrustDomain(name=f"d-{next(_names)}", home=str(tmp_path))
    connection = apiserver.connect()
    store = RecordStore(connection, domain.name)
    record = RotationRecord(rotation_id="r", domain=domain.name, system="linkerd", started=NOW, new=NEW)
    store.begin(record.model_copy(update={"old": only(OLD), "notes": {OLD_ROOTS: Bundle.of(ROOT).pem()}}))
    vault = open_vault(f"local:{tmp_path / 'vault'}")
    account = Evidence.open(tmp_path / "account.jsonl", signer_from_vault(vault), "r", clock=mesh.now)
    systems: Any = {"east": mesh}
    yield Rotation(
        domain, "r", systems, {"east": store}, vault, account,
        resumed=False, requests=lambda: 0, now=mesh.now, sleep=mesh.sleep,
    )  # fmt: skip
    connection.close()


def half_trusting() -> ClusterObservation:
    """Every bundle and nearly every proxy has both roots; one was not restarted yet."""
    late = peer("late-1", trusts=only(OLD), anchors=only(OLD), owner="late")
    return cluster([peer(trusts=BOTH, anchors=only(OLD)), late], bundle=BOTH, issuer=only(OLD))


def half_renewed(until: datetime) -> ClusterObservation:
    """Everybody trusts both, the issuer is new, and one old leaf lives on."""
    old = peer("old-1", trusts=BOTH, anchors=only(OLD), until=until, owner="old")
    return cluster([peer(trusts=BOTH, anchors=only(NEW)), old], bundle=BOTH, issuer=only(NEW))


def test_a_wait_without_patience_lasts_until_the_evidence_is_there(opened: Rotation, mesh: Mesh) -> None:
    mesh.then(NOW, half_trusting())
    mesh.then(NOW + 7 * MINUTE, settled(BOTH, OLD))
    look = watch_gate(opened, Phase.ISSUE)
    assert look.open
    assert NOW + 7 * MINUTE <= mesh.time < NOW + 9 * MINUTE
    assert opened.record().deadlines == {}


def test_patience_ends_the_watching_and_says_who_is_waited_for_and_until_when(opened: Rotation, mesh: Mesh) -> None:
    mesh.then(NOW, half_trusting())
    look = watch_gate(opened, Phase.ISSUE, 2 * MINUTE)
    assert not look.open
    assert (look.done, look.total) == (1, 2)
    assert any("late-1" in name for name in look.waiting_for)
    assert look.until == NOW + opened.domain.policy.restart_deadline
    assert 2 * MINUTE <= mesh.time - NOW < 4 * MINUTE


def test_the_bound_of_a_wait_for_leaves_is_the_end_of_the_last_old_leaf(opened: Rotation, mesh: Mesh) -> None:
    until = NOW + 17 * HOUR
    mesh.then(NOW, half_renewed(until))
    assert watch_gate(opened, Phase.DISTRUST, MINUTE).until == until


def test_a_run_that_comes_back_does_not_begin_its_wait_anew(opened: Rotation, mesh: Mesh) -> None:
    mesh.then(NOW, half_trusting())
    opened.keep_deadline(watch_gate(opened, Phase.ISSUE, MINUTE))
    deadline = NOW + opened.domain.policy.restart_deadline
    assert set(opened.record().deadlines.values()) == {deadline}
    mesh.time = deadline - 5 * MINUTE
    assert watch_gate(opened, Phase.ISSUE, MINUTE).until == deadline


def test_a_deadline_that_passed_while_nobody_looked_refuses_nothing_that_is_there(opened: Rotation, mesh: Mesh) -> None:
    mesh.then(NOW, half_trusting())
    opened.keep_deadline(watch_gate(opened, Phase.ISSUE, MINUTE))
    mesh.then(NOW + 45 * MINUTE, settled(BOTH, OLD))
    mesh.time = NOW + 50 * MINUTE
    assert watch_gate(opened, Phase.ISSUE, MINUTE).open
    assert mesh.time == NOW + 50 * MINUTE  # the first look was enough
    assert opened.record().deadlines == {}


def test_past_its_deadline_a_wait_names_who_is_missing_and_the_next_run_waits_anew(
    opened: Rotation, mesh: Mesh
) -> None:
    mesh.then(NOW, half_trusting())
    opened.keep_deadline(watch_gate(opened, Phase.ISSUE, MINUTE))
    mesh.time = NOW + 50 * MINUTE
    with pytest.raises(GateTimedOut) as timed_out:
        watch_gate(opened, Phase.ISSUE, MINUTE)
    assert any("late-1" in name for name in timed_out.value.stragglers)
    assert opened.record().deadlines == {}
    look = watch_gate(opened, Phase.ISSUE, MINUTE)
    assert not look.open
    assert look.until > mesh.time


def test_a_wait_that_was_refused_leaves_no_deadline_for_the_run_after_the_cure(opened: Rotation, mesh: Mesh) -> None:
    mesh.then(NOW, half_trusting())
    opened.keep_deadline(watch_gate(opened, Phase.ISSUE, MINUTE))
    stranger = peer("stranger-1", trusts=BOTH, anchors=only(OTHER))
    mesh.then(NOW + 10 * MINUTE, replace(half_trusting(), peers=(*half_trusting().peers, stranger)))
    mesh.time = NOW + 10 * MINUTE
    with pytest.raises(GateRefused):
        watch_gate(opened, Phase.ISSUE, MINUTE)
    mesh.time = NOW + 50 * MINUTE
    mesh.then(mesh.time, half_trusting())
    assert watch_gate(opened, Phase.ISSUE, MINUTE).until > mesh.time


def test_a_short_rest_of_a_wait_is_waited_out_in_the_process(opened: Rotation, mesh: Mesh) -> None:
    until = NOW + 90 * timedelta(seconds=1)
    mesh.then(NOW, half_renewed(until))
    mesh.then(until - timedelta(seconds=10), settled(BOTH, NEW))
    assert watch_gate(opened, Phase.DISTRUST, 2 * MINUTE).open


LIFE = 10 * MINUTE


def unreadable(*pods: str, until: datetime | None = None) -> ClusterObservation:
    """Everybody trusts both and the issuer is new, but of some nobody can say what they present: a node was lost."""
    lost = [peer(pod, trusts=BOTH, anchors=None, owner=pod, why="node is gone") for pod in pods]
    late = [peer("old-1", trusts=BOTH, anchors=only(OLD), until=until, owner="old")] if until else []
    well = peer(trusts=BOTH, anchors=only(NEW), until=NOW + 48 * HOUR)
    seen = cluster([well, *late, *lost], bundle=BOTH, issuer=only(NEW))
    return replace(seen, leaf_lifetime=LIFE.total_seconds())


@pytest.fixture
def bounded(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that never ends is told instead of waited for."""
    sleep = mesh.sleep

    def bounded_sleep(seconds: float) -> None:
        assert mesh.time < NOW + 3 * HOUR, "nobody ends this wait"
        sleep(seconds)

    monkeypatch.setattr(mesh, "sleep", bounded_sleep)


@pytest.mark.usefixtures("bounded")
def test_a_proxy_that_stays_unreadable_is_named_once_any_old_leaf_of_it_must_have_ended(
    opened: Rotation, mesh: Mesh
) -> None:
    opened.sleep = mesh.sleep
    mesh.then(NOW, unreadable("lost-1"))
    with pytest.raises(GateTimedOut) as timed_out:
        watch_gate(opened, Phase.DISTRUST)
    assert any("lost-1" in name and "node is gone" in name for name in timed_out.value.stragglers)
    assert NOW + LIFE <= mesh.time <= NOW + LIFE + 2 * MINUTE


@pytest.mark.usefixtures("bounded")
def test_leaves_that_are_seen_to_live_on_are_waited_for_beside_the_unreadable(opened: Rotation, mesh: Mesh) -> None:
    opened.sleep = mesh.sleep
    mesh.then(NOW, unreadable("lost-1", until=NOW + 2 * LIFE))
    mesh.then(NOW + 2 * LIFE - MINUTE, unreadable("lost-1"))
    with pytest.raises(GateTimedOut):
        watch_gate(opened, Phase.DISTRUST)
    assert NOW + 2 * LIFE - MINUTE <= mesh.time <= NOW + 2 * LIFE + MINUTE


def test_proxies_that_come_and_go_are_each_waited_for_anew(opened: Rotation, mesh: Mesh) -> None:
    for minute in range(40):
        mesh.then(NOW + minute * MINUTE, unreadable(f"starting-{minute // 5}"))
    mesh.then(NOW + 40 * MINUTE, settled(BOTH, NEW))
    assert watch_gate(opened, Phase.DISTRUST).open
    assert mesh.time >= NOW + 40 * MINUTE


@pytest.mark.usefixtures("bounded")
def test_a_run_that_leaves_its_process_does_not_wait_for_the_unreadable_anew_each_time(
    opened: Rotation, mesh: Mesh
) -> None:
    opened.sleep = mesh.sleep
    mesh.then(NOW, unreadable("lost-1"))

    def come_back_until_it_ends() -> None:
        for _ in range(50):
            look = watch_gate(opened, Phase.DISTRUST, MINUTE)
            opened.keep_deadline(look)
            mesh.time = next_look(mesh.time, look.until, MINUTE)

    with pytest.raises(GateTimedOut) as timed_out:
        come_back_until_it_ends()
    assert any("lost-1" in name for name in timed_out.value.stragglers)
    restart = opened.domain.policy.restart_deadline
    assert NOW + LIFE <= mesh.time <= NOW + LIFE + restart + 5 * MINUTE
    assert opened.record().deadlines == {}


def test_whoever_is_unreadable_when_a_run_comes_back_late_has_the_time_of_a_restart(
    opened: Rotation, mesh: Mesh
) -> None:
    mesh.then(NOW, unreadable("lost-1"))
    opened.keep_deadline(watch_gate(opened, Phase.DISTRUST, MINUTE))
    mesh.time = NOW + 40 * MINUTE  # nobody looked for long; the lost one is back, and another one is just starting
    mesh.then(mesh.time, unreadable("starting-1"))
    mesh.then(mesh.time + 5 * MINUTE, settled(BOTH, NEW))
    assert watch_gate(opened, Phase.DISTRUST, MINUTE).open


def test_a_day_is_looked_at_a_few_times_and_once_more_at_its_end() -> None:
    until, now, looks = NOW + 24 * HOUR, NOW, []
    while now < until:
        now = next_look(now, until, 2 * MINUTE)
        looks.append(now)
    assert looks[0] == NOW + 6 * HOUR
    assert looks[-1] == until
    assert len(looks) < 30
    assert all(later - earlier >= MINUTE for earlier, later in itertools.pairwise(looks[:-1]))


def test_a_wait_that_is_over_is_looked_at_again_at_once() -> None:
    assert next_look(NOW, NOW - HOUR, 2 * MINUTE) == NOW


def test_each_phase_left_fills_the_budget_of_restarts_again(opened: Rotation, mesh: Mesh) -> None:
    mesh.then(NOW, settled(BOTH, OLD))
    opened.remember(lambda record: record.model_copy(update={"budget": 1}))
    with opened.phase(Phase.TRUST):
        pass
    assert opened.record().budget == 5


def test_a_phase_begins_when_the_window_opens_and_one_that_has_begun_is_not_held_up(
    opened: Rotation, mesh: Mesh
) -> None:
    # Saturday noon, UTC; the window opens on Sunday at three in Berlin.
    night = MaintenanceWindow(days=("sunday",), start="03:00", end="05:00")
    policy = RotationPolicy(window=night, time_zone="Europe/Berlin")
    opened.domain = opened.domain.model_copy(update={"policy": policy})
    mesh.then(NOW, settled(only(OLD), OLD))
    await_window(opened, Phase.TRUST)
    assert mesh.time == datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
    await_window(opened, Phase.TRUST)
    assert mesh.time == datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
    mesh.time += 6 * HOUR
    mesh.then(mesh.time, half_trusting())
    await_window(opened, Phase.TRUST)
    assert mesh.time == datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


def test_the_policy_says_after_how_long_a_run_leaves_its_process() -> None:
    assert RotationPolicy().leave_process_after == 2 * MINUTE
