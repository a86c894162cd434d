"""Turns: written in every cluster, counted, told once, and never made without being asked for."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from capstan.cluster.record import Approval, Asked, Claim, RecordStore, RotationRecord
from capstan.config import TrustDomain
from capstan.errors import InvalidInput
from capstan.evidence import signer_from_vault
from capstan.pki.bundle import Bundle
from capstan.pki.mint import RootPolicy, mint_root
from capstan.rotation import Rotation
from capstan.rotation.accounts import open_account
from capstan.rotation.proving import finish
from capstan.rotation.turning import REJECTED, face_forward, recall, rejected, turn_back
from capstan.vaults.local import LocalVault
from tests.support.apiserver import Running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from capstan.cluster.client import Cluster

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
OLD = mint_root(RootPolicy(common_name="root.old"), 1, NOW).certificate
ASKED = Asked(id="q-1", digest="d" * 64, at=NOW, until=NOW + timedelta(days=7))
APPROVED = Approval(gate="trust", decision="approved", by="ann", at=NOW, digest="d" * 64, request="q-1")

RUN = Claim(run="run-1", name="mesh: roll back", at=NOW)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    api = Running(tmp_path_factory.mktemp("apiserver"))
    with closing(api.connect()) as cluster:
        yield cluster
    api.stop()


class Turning:
    """The records of a domain's clusters, and the rotation as each new process opens it."""

    def __init__(self, cluster: Cluster, home: Path) -> None:
        self.domain = TrustDomain(name="mesh", home=str(home))
        self.vault = LocalVault(home / "vault")
        self.stores = {name: RecordStore(cluster, f"{home.name}-{name}".replace("_", "-")) for name in ("east", "west")}
        for store in self.stores.values():
            store.begin(
                RotationRecord(
                    rotation_id="r-1", domain="mesh", system="linkerd", started=NOW, old=frozenset({OLD.fingerprint}),
                    notes={"old-roots.pem": Bundle.of(OLD).pem()}, asked={"trust": ASKED}, approvals=(APPROVED,),
                    deadlines={"turn 1, gate issue": NOW},
                )
            )  # fmt: skip

    def opened(self, *clusters: str) -> Rotation:
        stores = {name: self.stores[name] for name in clusters or self.stores}
        record = next(iter(stores.values())).load()
        assert record is not None
        account = open_account(self.domain, record, signer_from_vault(self.vault), lambda: NOW)
        return Rotation(
            self.domain, "r-1", {}, stores, self.vault, account,
            resumed=True, requests=lambda: 0, now=lambda: NOW, sleep=lambda _: None,
        )  # fmt: skip

    def records(self) -> list[RotationRecord]:
        found = [store.load() for store in self.stores.values()]
        return [record for record in found if record is not None]


@pytest.fixture
def turning(cluster: Cluster, tmp_path: Path) -> Turning:
    return Turning(cluster, tmp_path)


def back(rotation: Rotation, **options: str) -> None:
    recall(rotation)
    turn_back(rotation, **options)  # type: ignore[arg-type]  # options by name


def told(rotation: Rotation) -> list[tuple[int, str]]:
    return [(e.body["turn"], e.body["direction"]) for e in rotation.evidence.entries if e.kind == "turned"]


def test_a_turn_is_written_in_every_cluster_and_takes_back_requests_and_deadlines_but_no_history(
    turning: Turning,
) -> None:
    back(turning.opened())
    for record in turning.records():
        assert (record.direction, record.turn) == ("back", 2)
        assert (record.asked, record.deadlines) == ({}, {})
        assert record.approvals == (APPROVED,)  # what was answered stays on record, and answers no open request


def test_run_again_it_is_the_same_turn_and_is_told_once(turning: Turning) -> None:
    back(turning.opened())
    again = turning.opened()
    back(again)
    assert [record.turn for record in turning.records()] == [2, 2]
    assert told(again) == [(2, "back")]


def test_a_turn_that_died_between_two_clusters_or_before_its_account_is_completed_by_the_next_run(
    turning: Turning,
) -> None:
    back(turning.opened("east"))
    assert [record.turn for record in turning.records()] == [2, 1]
    again = turning.opened("west", "east")  # the one that is behind may come first
    back(again)
    east, west = turning.records()
    assert (west.turn, west.direction, west.asked, west.deadlines) == (2, "back", {}, {})
    assert (east.turn, east.direction) == (2, "back")
    assert told(again) == [(2, "back")]


def test_looking_back_turns_nothing(turning: Turning) -> None:
    recall(turning.opened())
    assert [(record.direction, record.turn) for record in turning.records()] == [("forward", 1)] * 2
    with pytest.raises(InvalidInput, match="nobody has looked back"):
        turn_back(turning.opened())


def test_forward_again_is_a_turn_of_its_own_and_never_made_without_the_word(turning: Turning) -> None:
    back(turning.opened())
    with pytest.raises(InvalidInput, match="is being rolled back") as refused:
        face_forward(turning.opened())
    assert "capstan rollback --rotation r-1" in refused.value.next_command
    assert "capstan rotate --rotation r-1 --forward" in refused.value.next_command
    assert [record.turn for record in turning.records()] == [2, 2]
    again = turning.opened()
    face_forward(again, again=True)
    assert [(record.direction, record.turn) for record in turning.records()] == [("forward", 3)] * 2
    face_forward(turning.opened())  # and now it is on its way
    assert told(turning.opened()) == [(2, "back"), (3, "forward")]


def test_the_word_does_nothing_to_a_rotation_that_goes_forward(turning: Turning) -> None:
    face_forward(turning.opened(), again=True)
    assert [(record.direction, record.turn) for record in turning.records()] == [("forward", 1)] * 2
    assert told(turning.opened()) == []


def test_a_finished_one_goes_on_unfinished_claimed_and_in_a_further_account(turning: Turning) -> None:
    first = turning.opened()
    first.evidence.finish("completed")
    head = first.evidence.head
    first.remember(
        lambda record: record.model_copy(
            update={"finished": NOW, "outcome": "completed", "notes": {**record.notes, "evidence-head": head}}
        )
    )
    again = turning.opened()
    recall(again)
    turn_back(again, RUN)
    for record in turning.records():
        assert (record.finished, record.outcome, record.claim, record.turn) == (None, "", RUN, 2)
    assert again.evidence.path.name == "mesh-r-1.2.jsonl"
    assert {record.notes["evidence-head"] for record in turning.records()} == {again.evidence.entries[0].digest}
    assert told(again) == [(2, "back")]
    assert turning.opened().evidence.path == again.evidence.path


def test_a_rotation_that_was_rolled_back_is_over(turning: Turning) -> None:
    rotation = turning.opened()
    back(rotation)
    finish(rotation)
    assert {record.outcome for record in turning.records()} == {"rolled back"}
    for word in (False, True):
        with pytest.raises(InvalidInput, match="was rolled back and is over") as refused:
            face_forward(turning.opened(), again=word)
        assert "--rotation r-1-again" in refused.value.next_command
    assert [(record.turn, bool(record.finished)) for record in turning.records()] == [(2, True)] * 2


@pytest.mark.parametrize("first", ["east", "west"])
def test_an_end_that_was_written_into_one_cluster_only_is_written_into_the_others(turning: Turning, first: str) -> None:
    rotation = turning.opened()
    back(rotation)
    rotation.stores = {first: turning.stores[first]}
    finish(rotation)  # killed before the other cluster's record was closed
    assert len({bool(record.finished) for record in turning.records()}) == 2
    recall(turning.opened())
    assert {record.outcome for record in turning.records()} == {"rolled back"}
    assert {record.finished for record in turning.records()} == {NOW}


def test_a_rolled_back_rotation_that_ended_in_one_cluster_only_keeps_no_other_from_beginning(turning: Turning) -> None:
    rotation = turning.opened()
    back(rotation)
    rotation.stores = {"east": turning.stores["east"]}
    finish(rotation)
    with pytest.raises(InvalidInput, match="was rolled back and is over"):
        face_forward(turning.opened())
    assert all(record.finished for record in turning.records())


def test_a_finished_one_that_was_turned_in_one_cluster_only_goes_on_in_both(turning: Turning) -> None:
    rotation = turning.opened()
    rotation.evidence.finish("completed")
    ended = {"finished": NOW, "outcome": "completed"}
    noted = {"evidence-head": rotation.evidence.head}
    rotation.remember(lambda record: record.model_copy(update={**ended, "notes": record.notes | noted}))
    half = turning.opened("west")
    recall(half)
    turn_back(half, RUN)
    recall(turning.opened())
    assert {(record.turn, record.finished, record.claim) for record in turning.records()} == {(2, None, RUN)}


def test_a_rejection_knows_the_run_it_came_in(turning: Turning) -> None:
    rotation = turning.opened()
    recall(rotation)
    turn_back(rotation, RUN, why=REJECTED)
    assert all(rejected(record, RUN) for record in turning.records())
    assert not any(rejected(record, RUN.model_copy(update={"run": "run-2"})) for record in turning.records())


def test_why_it_turned_is_on_record(turning: Turning) -> None:
    rotation = turning.opened()
    back(rotation, why=REJECTED)
    assert all(rejected(record) for record in turning.records())
    assert not any(rejected(record, RUN) for record in turning.records())  # not in that run
    (entry,) = [entry for entry in rotation.evidence.entries if entry.kind == "turned"]
    assert entry.body["why"] == REJECTED
    face_forward(turning.opened(), again=True)
    assert not any(rejected(record) for record in turning.records())
