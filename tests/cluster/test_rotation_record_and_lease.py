"""What a rotation remembers in the cluster, and the lock it writes it under."""

from __future__ import annotations

import json
import logging
import os
import secrets
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from capstan.cluster.events import emit
from capstan.cluster.lease import LeaseLock, holder_identity, holder_is_gone
from capstan.cluster.record import KEY, NAMESPACE, Approval, RecordStore, RotationRecord, record_name
from capstan.cluster.resources import CONFIG_MAPS, EVENTS, LEASES
from capstan.errors import InvalidInput, LockHeld, NotFound, Unreachable

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
def domain():
    return f"d-{secrets.token_hex(4)}"


def new_record(domain, **more):
    return RotationRecord(rotation_id="r-1", domain=domain, system="linkerd", started=NOW, **more)


def test_a_record_survives_its_trip_through_the_cluster(cluster, domain):
    approval = Approval(gate="trust", decision="approved", by="ada", at=NOW, digest="abc")
    record = new_record(
        domain, old=frozenset({"bb", "aa"}), vault={"root": "v1"}, approvals=(approval,), deadlines={"leaves": NOW}
    ).logged(NOW, "mint", "minted the root")
    RecordStore(cluster, domain).begin(record)
    assert RecordStore(cluster, domain).load() == record


def test_there_is_no_record_before_a_rotation(cluster, domain):
    assert RecordStore(cluster, domain).load() is None
    with pytest.raises(NotFound):
        RecordStore(cluster, domain).update(lambda record: record)


def test_a_rotation_that_goes_on_keeps_its_record_and_a_finished_one_gives_way(cluster, domain):
    store = RecordStore(cluster, domain)
    store.begin(new_record(domain))
    second = new_record(domain).model_copy(update={"rotation_id": "r-2"})
    assert store.begin(second).rotation_id == "r-1"
    store.update(lambda record: record.model_copy(update={"finished": NOW, "outcome": "completed"}))
    assert store.begin(second).rotation_id == "r-2"


def test_an_update_that_changes_nothing_writes_nothing(cluster, domain):
    store = RecordStore(cluster, domain)
    store.begin(new_record(domain))
    before = cluster.get(CONFIG_MAPS, record_name(domain), NAMESPACE)["metadata"]["resourceVersion"]
    store.update(lambda record: record)
    assert cluster.get(CONFIG_MAPS, record_name(domain), NAMESPACE)["metadata"]["resourceVersion"] == before


def test_a_lost_race_is_read_again_and_nobodys_change_is_lost(cluster, domain):
    store = RecordStore(cluster, domain)
    store.begin(new_record(domain))
    calls = []

    def change(record):
        calls.append(record.budget)
        if len(calls) == 1:  # somebody writes while we think
            RecordStore(cluster, domain).update(lambda other: other.model_copy(update={"new": "ff"}))
        return record.model_copy(update={"budget": record.budget - 1})

    after = store.update(change)
    assert calls == [5, 5]
    assert (after.new, after.budget) == ("ff", 4)


@pytest.mark.parametrize("text", ["", "no json", "[]", *(f'{{"schema_version": {number}}}' for number in (1, 2, 3, 4))])
def test_a_record_that_is_not_ours_is_refused_and_not_guessed(cluster, domain, text):
    store = RecordStore(cluster, domain)
    store.begin(new_record(domain))
    cluster.patch(CONFIG_MAPS, record_name(domain), {"data": {KEY: text}}, NAMESPACE)
    with pytest.raises(InvalidInput, match="cannot be read"):
        store.load()


def test_an_unknown_field_is_refused(cluster, domain):
    store = RecordStore(cluster, domain)
    store.begin(new_record(domain))
    raw = json.loads(cluster.get(CONFIG_MAPS, record_name(domain), NAMESPACE)["data"][KEY]) | {"surprise": 1}
    cluster.patch(CONFIG_MAPS, record_name(domain), {"data": {KEY: json.dumps(raw)}}, NAMESPACE)
    with pytest.raises(InvalidInput):
        store.load()


def test_the_log_keeps_its_newest_entries_only():
    record = new_record("d")
    for index in range(500):
        record = record.logged(NOW, "s", str(index))
    assert (len(record.log), record.log[-1].text) == (400, "499")


IN_3 = ("kind", "issuers", "issuers_before")


@pytest.mark.parametrize(
    ("version", "added_since"), [(1, ("direction", "turn", "asked", "claim", *IN_3)), (2, IN_3)], ids=["1", "2"]
)
def test_a_record_of_a_schema_before_this_one_is_read(cluster, domain, version, added_since):
    store = RecordStore(cluster, domain)
    store.begin(new_record(domain))
    raw = json.loads(cluster.get(CONFIG_MAPS, record_name(domain), NAMESPACE)["data"][KEY])
    for added in added_since:
        del raw[added]
    text = json.dumps(raw | {"schema_version": version})
    cluster.patch(CONFIG_MAPS, record_name(domain), {"data": {KEY: text}}, NAMESPACE)
    read = store.load()
    assert (read.direction, read.turn, read.asked, read.claim) == ("forward", 1, {}, None)
    assert (read.kind, read.issuers, read.issuers_before) == ("anchor", {}, {})
    store.update(lambda record: record.model_copy(update={"new": "ff"}))
    written = json.loads(cluster.get(CONFIG_MAPS, record_name(domain), NAMESPACE)["data"][KEY])
    assert written["schema_version"] == 3


def test_only_one_holds_the_lease_and_the_other_learns_who(cluster, domain):
    with LeaseLock(cluster, domain, identity="ada/1/x") as held:
        assert held.transitions == 1
        with pytest.raises(LockHeld) as caught:
            LeaseLock(cluster, domain, identity="bob/2/y").acquire()
        assert "ada/1/x since 2" in caught.value.observed
    with LeaseLock(cluster, domain, identity="bob/2/y") as next_one:
        assert next_one.transitions == 2


def test_the_lease_is_kept_alive_in_the_background(cluster, domain):
    with LeaseLock(cluster, domain, duration=0.6) as lease:
        first = cluster.get(LEASES, record_name(domain), NAMESPACE)["spec"]["renewTime"]
        cluster.sleep(0.9)
        assert cluster.get(LEASES, record_name(domain), NAMESPACE)["spec"]["renewTime"] > first
        lease.check()


def test_a_lease_that_stopped_being_renewed_is_taken_over_with_a_warning(cluster, domain, caplog):
    past = LeaseLock(cluster, domain, identity="gone/1/x", now=lambda: datetime.now(UTC) - timedelta(hours=1))
    past.acquire()
    past._stop.set()
    slept = []
    cluster.sleep = slept.append
    with caplog.at_level(logging.WARNING):
        taker = LeaseLock(cluster, domain, identity="ada/2/y")
        taker.acquire()
    assert taker.transitions == 2
    assert slept, "it was watched before it was taken"
    assert "taking over" in caplog.text
    taker.release()


def test_a_holder_with_a_wrong_clock_that_still_renews_is_left_alone(cluster, domain, running):
    slow = LeaseLock(cluster, domain, identity="slow/1/x", now=lambda: datetime.now(UTC) - timedelta(hours=1))
    slow.acquire()

    def meanwhile(_seconds):
        item = cluster.get(LEASES, record_name(domain), NAMESPACE)
        item["spec"]["renewTime"] = "2026-01-01T00:00:01.000000Z"
        cluster.replace(LEASES, item)

    other = running.connect(sleep=meanwhile)
    with pytest.raises(LockHeld):
        LeaseLock(other, domain, identity="ada/2/y").acquire()
    slow.release()


def test_a_process_of_this_machine_that_died_gives_way_at_once(cluster, domain):
    child = subprocess.run(
        [sys.executable, "-c", "from capstan.cluster.lease import holder_identity as h; print(h())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    dead = child.stdout.strip()
    assert holder_is_gone(dead)
    LeaseLock(cluster, domain, identity=dead)._try()
    slept = []
    cluster.sleep = slept.append
    with LeaseLock(cluster, domain) as lease:
        assert lease.transitions == 2
    assert slept == []


def test_a_running_process_or_a_strangers_never_counts_as_gone():
    assert not holder_is_gone(holder_identity())
    assert not holder_is_gone(f"elsewhere-000000000000/{os.getpid()}/x")
    assert not holder_is_gone("no such form")


def test_a_lost_lease_refuses_every_write(cluster, domain):
    lease = LeaseLock(cluster, domain, identity="ada/1/x", duration=0.3)
    lease.acquire()
    store = RecordStore(cluster, domain, lease=lease)
    store.begin(new_record(domain))
    cluster.patch(LEASES, record_name(domain), {"spec": {"holderIdentity": "bob/2/y"}}, NAMESPACE)
    cluster.sleep(0.4)
    with pytest.raises(LockHeld, match="no longer holds"):
        store.update(lambda record: record.model_copy(update={"new": "ff"}))
    lease.release()
    assert cluster.get(LEASES, record_name(domain), NAMESPACE)["spec"]["holderIdentity"] == "bob/2/y"


def test_a_lease_that_could_not_be_renewed_refuses_every_write_until_it_is_renewed(cluster, domain):
    passed = [0.0]
    lease = LeaseLock(cluster, domain, identity="ada/1/x")
    lease.acquire()
    store = RecordStore(cluster, domain, lease=lease)
    store.begin(new_record(domain))
    clock, cluster.clock = cluster.clock, lambda: clock() + passed[0]
    passed[0] = lease.duration + 1  # stalled, or cut off from the API server; nobody else has taken it
    with pytest.raises(Unreachable, match="could not be renewed"):
        store.update(lambda record: record.model_copy(update={"new": "ff"}))
    passed[0] = 0.0
    assert store.update(lambda record: record.model_copy(update={"new": "ff"})).new == "ff"
    lease.release()


def test_a_record_written_by_a_later_holder_fences_the_earlier_one(cluster, domain):
    lease = LeaseLock(cluster, domain)
    lease.acquire()
    store = RecordStore(cluster, domain, lease=lease)
    store.begin(new_record(domain))
    RecordStore(cluster, domain).update(lambda record: record.model_copy(update={"fence": 9}))
    with pytest.raises(LockHeld):
        store.update(lambda record: record.model_copy(update={"new": "ff"}))
    lease.release()


def test_the_record_carries_the_number_of_the_lease_it_was_written_under(cluster, domain):
    with LeaseLock(cluster, domain) as lease:
        RecordStore(cluster, domain, lease=lease).begin(new_record(domain))
    with LeaseLock(cluster, domain) as lease:
        after = RecordStore(cluster, domain, lease=lease).update(lambda r: r.model_copy(update={"new": "ff"}))
    assert after.fence == 2


def test_a_lease_that_was_deleted_by_hand_locks_nobody_out_of_the_record(cluster, domain):
    for _ in range(4):
        with LeaseLock(cluster, domain) as lease:
            store = RecordStore(cluster, domain, lease=lease)
            if not store.load():
                store.begin(new_record(domain))
            store.update(lambda record: record.logged(NOW, "step", "taken"))
    assert store.load().fence == 4
    cluster.delete(LEASES, record_name(domain), NAMESPACE)
    with LeaseLock(cluster, domain) as lease:
        store = RecordStore(cluster, domain, lease=lease)
        assert store.update(lambda record: record.model_copy(update={"new": "ff"})).fence == 5


def test_a_lease_is_taken_only_after_as_long_as_its_holder_may_believe_in_it(cluster, domain):
    # Renewed every third of its duration, it may miss one renewal and still be the holder's.
    past = LeaseLock(cluster, domain, identity="gone/1/x", now=lambda: datetime.now(UTC) - timedelta(hours=1))
    past.acquire()
    past._stop.set()
    slept = []
    cluster.sleep = slept.append
    with LeaseLock(cluster, domain, identity="ada/2/y") as taker:
        assert sum(slept) >= past.duration
        taker.check()


def test_watching_anothers_long_lease_takes_nothing_from_ones_own(cluster, domain):
    passed = [0.0]
    long = LeaseLock(
        cluster, domain, identity="gone/1/x", duration=300, now=lambda: datetime.now(UTC) - timedelta(hours=1)
    )
    long.acquire()
    long._stop.set()
    cluster.clock = lambda: passed[0]

    def sleep(seconds):
        passed[0] += seconds

    cluster.sleep = sleep
    with LeaseLock(cluster, domain, identity="ada/2/y") as taker:
        taker.check()


def test_an_event_tells_the_story_and_one_that_cannot_be_written_stops_nothing(running, cluster, domain, faults):
    RecordStore(cluster, domain).begin(new_record(domain))
    assert emit(cluster, domain, "BundleWidened", "two roots")
    items = cluster.list(EVENTS, NAMESPACE, field_selector=f"involvedObject.name={record_name(domain)}").items
    assert [(event["reason"], event["message"]) for event in items] == [("BundleWidened", "two roots")]
    faults(method="POST", path="/events", action={"status": 403})
    assert not emit(cluster, domain, "Lost", "never seen")
