"""Whose rotation it is while nobody holds the Lease, and what a second process of the same run does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from capstan.cluster.lease import LeaseLock
from capstan.cluster.record import Claim, RecordStore, RotationRecord
from capstan.errors import GateRefused, LockHeld, Retryable, StillRunning, Unreachable
from capstan.rotation.claims import Claimant, Unclaimed, given_up_on_failure, require_unclaimed
from capstan.rotation.opening import locked
from tests.support.apiserver import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from capstan.cluster.client import Cluster

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
FIRST = Claim(run="run-1", name="prod: issue", url="https://prefect.example/runs/run-1", at=NOW)


class Run:
    """A run of a deployment, and what it knows of others."""

    def __init__(self, run: str, *, ended: bool | None = False, tries: bool = False) -> None:
        self.run = run
        self.ended = ended
        self.tries = tries

    def claim(self, at: datetime) -> Claim | None:
        return Claim(run=self.run, name="prod: trust", at=at) if self.run else None

    def has_ended(self, claim: Claim) -> bool | None:
        return self.ended

    def comes_back(self, error: Exception) -> bool:
        return isinstance(error, Retryable) and self.tries


def record(claim: Claim | None = FIRST, **more: object) -> RotationRecord:
    made = RotationRecord(rotation_id="r", domain="prod", system="linkerd", started=NOW, claim=claim)
    return made.model_copy(update=more)


def required(found: RotationRecord, run: Run, *, take_over: bool = False) -> Claim | None:
    return require_unclaimed(found, run, NOW, where="configmap", take_over=take_over)


def test_a_second_launch_is_refused_and_names_the_first() -> None:
    with pytest.raises(LockHeld) as refused:
        required(record(), Run("run-2"))
    for part in ("prod: issue", "run-1", "https://prefect.example/runs/run-1", "2026-11-22 03:00:00 UTC"):
        assert part in refused.value.observed
    assert "cancel it first" in refused.value.next_command


def claim_after(owner: Claimant, failure: BaseException) -> Claim | None:
    """The claim in the record after a run has ended so."""
    kept = record()

    def remember(change: Callable[[RotationRecord], RotationRecord]) -> None:
        nonlocal kept
        kept = change(kept)

    with pytest.raises(type(failure)), given_up_on_failure(owner, remember, lambda: NOW):
        raise failure
    return kept.claim


FAULT = Unreachable("no answer", where="https://prod", observed="refused")


def test_a_run_that_has_failed_for_good_gives_its_rotation_up() -> None:
    assert claim_after(Run("run-1", tries=True), GateRefused("no")) is None
    assert claim_after(Run("run-1", tries=False), FAULT) is None


def test_a_run_that_comes_back_after_a_fault_keeps_its_rotation_meanwhile() -> None:
    """Else somebody could roll it back without ending that run, which would then begin another rotation."""
    assert claim_after(Run("run-1", tries=True), FAULT) == FIRST


def test_a_run_that_leaves_its_process_to_wait_keeps_its_rotation_and_one_without_a_claim_touches_none() -> None:
    assert claim_after(Run("run-1"), KeyboardInterrupt()) == FIRST  # Prefect's Pause is no Exception either
    assert claim_after(Unclaimed(), GateRefused("no")) == FIRST


def test_a_run_that_nobody_here_can_ask_about_counts_as_alive() -> None:
    with pytest.raises(LockHeld, match="under way") as refused:
        required(record(), Run("run-2", ended=None))
    assert "cannot be asked" in refused.value.observed
    assert "--take-over" in refused.value.next_command


def test_a_run_on_a_terminal_is_refused_like_any_other() -> None:
    with pytest.raises(LockHeld):
        required(record(), Run("", ended=None))


def test_the_run_itself_goes_on_with_what_it_claimed() -> None:
    assert required(record(), Run("run-1")) is None


def test_what_a_run_that_has_ended_left_behind_is_taken_over_and_told() -> None:
    assert required(record(), Run("run-2", ended=True)) == FIRST


def test_an_operator_may_say_that_a_run_is_never_to_go_on() -> None:
    assert required(record(), Run("run-2", ended=None), take_over=True) == FIRST


def test_a_rotation_that_is_over_belongs_to_nobody() -> None:
    assert required(record(finished=NOW), Run("run-2")) is None
    assert required(record(None), Run("run-2")) is None


@pytest.fixture(scope="module")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


@pytest.fixture
def cluster(apiserver: Running) -> Iterator[Cluster]:
    """A cluster on which waiting costs no time."""
    passed = [0.0]

    def sleep(seconds: float) -> None:
        passed[0] += seconds

    connection = apiserver.connect(clock=lambda: passed[0], sleep=sleep)
    yield connection
    connection.close()


@pytest.mark.parametrize(("run", "error"), [("run-1", StillRunning), ("run-2", LockHeld)])
def test_while_the_lease_is_renewed_its_own_run_is_told_apart_from_others(
    apiserver: Running, cluster: Cluster, run: str, error: type[LockHeld]
) -> None:
    domain = f"prod-{run}"
    store = RecordStore(cluster, domain)
    store.begin(record().model_copy(update={"domain": domain}))
    holder = apiserver.connect()
    ahead = timedelta(hours=1)  # renewed, by a clock that the other's waiting cannot outrun
    with (
        LeaseLock(holder, domain, identity="another-host/1/x", now=lambda: datetime.now(UTC) + ahead),
        pytest.raises(LockHeld) as held,
        locked(cluster, domain, Run(run), lambda: NOW),
    ):
        pass
    holder.close()
    assert type(held.value) is error
    assert "another-host" in held.value.observed
    if error is LockHeld:
        assert "prod: issue" in held.value.observed
