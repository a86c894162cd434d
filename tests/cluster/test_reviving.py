"""Which dead run may be started again, by what the cluster remembers."""

from __future__ import annotations

import secrets
import socket
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from capstan.cluster.lease import LeaseLock, holder_identity
from capstan.cluster.record import BUDGET, Claim, RecordStore, RotationRecord, record_name
from capstan.config import TrustDomain
from capstan.pki.mint import RootPolicy, mint_root
from capstan.rotation.opening import begin_record
from capstan.rotation.reviving import HOLD, Death, Ruling, judge
from capstan.trust.observation import ClusterObservation

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
BEGAN = NOW - timedelta(hours=1)
ROOT = mint_root(RootPolicy(), 1, NOW).certificate


@pytest.fixture
def domain():
    return f"d-{secrets.token_hex(4)}"


@pytest.fixture
def record(cluster, domain):
    """Begins a rotation with the fields given; claimed by run `mine` unless said otherwise."""

    def begin(**fields):
        claim = Claim(run="mine", name="prod-eu: trust", at=BEGAN)
        record = RotationRecord(
            **{"rotation_id": "r-1", "domain": domain, "system": "linkerd", "started": BEGAN, "claim": claim, **fields}
        )
        return RecordStore(cluster, domain).begin(record)

    return begin


def death(state="state-1", run="mine"):
    return Death(run=run, name="prod-eu: trust", state=state, state_name="Crashed", began=BEGAN)


def rule(cluster, domain, what=None, at=NOW):
    return judge(domain, {"test": cluster}, what or death(), now=at)


def test_a_restart_of_a_run_that_died_is_taken_from_the_budget_and_logged(cluster, domain, record):
    record()
    judgement = rule(cluster, domain)
    assert (judgement.ruling, judgement.left, judgement.rotation) == (Ruling.REVIVE, BUDGET - 1, "r-1")
    now = RecordStore(cluster, domain).load()
    assert now.budget == BUDGET - 1
    assert "started again" in now.log[-1].text


def test_each_death_costs_one_restart_and_the_last_death_is_final(cluster, domain, record):
    record(budget=2)
    rulings = [rule(cluster, domain, death(f"state-{number}")).ruling for number in range(4)]
    assert rulings == [Ruling.REVIVE, Ruling.REVIVE, Ruling.EXHAUSTED, Ruling.EXHAUSTED]
    assert RecordStore(cluster, domain).load().budget == 0


def test_of_two_sweeps_at_once_one_is_told_to_act_and_one_restart_is_spent(running, domain, record):
    record()
    start = threading.Barrier(4)
    found = []

    def one_sweep():
        with closing(running.connect()) as own:
            start.wait()
            found.append(rule(own, domain).ruling)

    threads = [threading.Thread(target=one_sweep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([Ruling.REVIVE, *[Ruling.NOT_NOW] * 3])
    with closing(running.connect()) as own:
        assert RecordStore(own, domain).load().budget == BUDGET - 1


def test_a_sweep_that_died_after_spending_is_taken_over_without_spending_again(cluster, domain, record):
    record()
    assert rule(cluster, domain).ruling is Ruling.REVIVE
    assert rule(cluster, domain, at=NOW + HOLD / 2).ruling is Ruling.NOT_NOW
    later = rule(cluster, domain, at=NOW + HOLD)
    assert (later.ruling, later.left) == (Ruling.REVIVE, BUDGET - 1)


def test_a_run_whose_lease_is_renewed_lives_whatever_prefect_says(cluster, domain, record):
    record()
    elsewhere = holder_identity().replace(socket.gethostname(), "another-host")
    with LeaseLock(cluster, domain, identity=elsewhere):
        judgement = rule(cluster, domain, at=datetime.now(UTC))
        assert judgement.ruling is Ruling.NOT_NOW
        assert elsewhere in judgement.why
        assert RecordStore(cluster, domain).load().budget == BUDGET
    assert rule(cluster, domain).ruling is Ruling.REVIVE


def test_a_lease_that_ran_out_or_whose_process_is_gone_holds_nobody_back(cluster, domain, record):
    record()
    lock = LeaseLock(cluster, domain, identity=holder_identity().replace(socket.gethostname(), "another-host"))
    lock.acquire()
    assert rule(cluster, domain, at=datetime.now(UTC) + timedelta(minutes=2)).ruling is Ruling.REVIVE
    lock.release()
    host, _, nonce = holder_identity().split("/")
    gone = LeaseLock(cluster, domain, identity=f"{host}/{2**22 + 1}/{nonce}")  # above Linux's largest process id
    gone.acquire()
    assert rule(cluster, domain, death("state-2"), at=datetime.now(UTC)).ruling is Ruling.REVIVE
    gone.release()


def test_a_run_that_died_before_any_rotation_began_is_counted_elsewhere(cluster, domain):
    assert rule(cluster, domain).ruling is Ruling.REVIVE_UNRECORDED


def test_last_years_rotation_says_nothing_about_a_run_of_today(cluster, domain, record):
    record(claim=Claim(run="last-year", name="old", at=BEGAN - timedelta(days=365)))
    RecordStore(cluster, domain).update(
        lambda record: record.model_copy(update={"finished": BEGAN - timedelta(days=364), "outcome": "completed"})
    )
    assert rule(cluster, domain).ruling is Ruling.REVIVE_UNRECORDED


def test_a_run_that_died_before_it_claimed_the_rotation_is_counted_elsewhere(cluster, domain, record):
    record(claim=None)
    assert rule(cluster, domain).ruling is Ruling.REVIVE_UNRECORDED
    assert RecordStore(cluster, domain).load().budget == BUDGET


@pytest.mark.parametrize("finished", [None, NOW])
def test_a_run_whose_rotation_went_on_without_it_stays_dead(cluster, domain, record, finished):
    record(claim=Claim(run="another", name="prod-eu: roll back", at=NOW))
    RecordStore(cluster, domain).update(lambda record: record.model_copy(update={"finished": finished}))
    judgement = rule(cluster, domain)
    assert judgement.ruling is Ruling.NOT_ITS_OWN
    assert "prod-eu: roll back" in judgement.why


def test_a_run_that_died_after_its_rotation_had_finished_is_started_again_to_end(cluster, domain, record):
    record()
    RecordStore(cluster, domain).update(lambda record: record.model_copy(update={"finished": NOW}))
    assert rule(cluster, domain).ruling is Ruling.REVIVE


def test_while_the_record_cannot_be_read_nothing_is_decided(running, cluster, domain, record, faults):
    record()
    faults(method="GET", path=f"/configmaps/{record_name(domain)}$", times=0, action={"status": 503})
    with closing(running.connect(sleep=lambda _: None)) as impatient:
        judgement = rule(impatient, domain)
    assert judgement.ruling is Ruling.NOT_NOW
    assert "cannot be read" in judgement.why


def test_every_cluster_of_a_domain_learns_what_is_left(running, domain, record, tmp_path, cluster):
    record()
    other = type(running)(tmp_path)
    try:
        with closing(other.connect()) as second:
            RecordStore(second, domain).begin(RecordStore(cluster, domain).load())
            assert judge(domain, {"one": cluster, "two": second}, death(), now=NOW).left == BUDGET - 1
            assert RecordStore(second, domain).load().budget == BUDGET - 1
    finally:
        other.stop()


class Durable:
    """A run that outlives its process."""

    def __init__(self, run):
        self.run = run

    def claim(self, at):
        return Claim(run=self.run, name="prod-eu", at=at)

    def has_ended(self, claim):
        return None


@pytest.mark.parametrize(("run", "rotation"), [("mine", "2026-11-21"), ("another", "2026-11-22")])
def test_a_run_started_again_after_midnight_does_not_begin_a_second_rotation(cluster, domain, record, run, rotation):
    record(rotation_id="2026-11-21", finished=NOW, outcome="completed")
    store = RecordStore(cluster, domain)

    class Mesh:
        """What a new rotation would be begun from."""

        def observe(self, known=()):
            return ClusterObservation("test", frozenset({ROOT.fingerprint}), (), None, (), 86400.0)

        def certificates(self):
            return {ROOT.fingerprint: ROOT}

    tomorrow = NOW + timedelta(days=1)
    begun, _ = begin_record(
        TrustDomain(name=domain), None, {"test": Mesh()}, {"test": store}, lambda: tomorrow, Durable(run),
        take_over=False, kind="anchor",
    )  # fmt: skip
    assert begun.rotation_id == rotation
