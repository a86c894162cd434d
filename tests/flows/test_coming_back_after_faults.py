"""How often a run comes back for a fault, read from its own states."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from prefect.states import Completed, Running, Scheduled, State, Suspended

from flows.faults import DELAYS, times

BEGAN = datetime(2026, 11, 22, tzinfo=UTC)
FAULT = "comes back after a fault, 1 of 10: no answer (https://prod): refused"


def past(*states: State) -> list[State]:
    """A run's states, in this order, a minute apart; handed over in another order, as an API may."""
    stamped = [
        state.model_copy(update={"timestamp": BEGAN + n * timedelta(minutes=1)}) for n, state in enumerate(states)
    ]
    return stamped[::-1]


def waits(why: str) -> State:
    return Scheduled(name="Waiting", message=why)


def test_a_run_that_never_came_back_for_a_fault_has_all_its_tries() -> None:
    assert times(past(Running(), waits("gate before distrust: 3 of 12 there"), Running())) == 0


def test_each_return_for_a_fault_counts() -> None:
    assert times(past(Running(), waits(FAULT), Running(), waits(FAULT), Running())) == 2


def test_a_wait_or_an_approval_in_between_begins_the_count_anew() -> None:
    for progress in (waits("gate before distrust: 3 of 12 there"), Suspended(pause_key="k")):
        assert times(past(waits(FAULT), waits(FAULT), Running(), progress, Running(), waits(FAULT), Running())) == 1


def test_states_of_other_names_count_for_nothing() -> None:
    assert times(past(Scheduled(message=FAULT), Completed(message=FAULT))) == 0


def test_a_run_stays_away_longer_each_time_and_gives_up_after_about_two_hours() -> None:
    assert list(DELAYS) == sorted(DELAYS)
    assert timedelta(hours=1.5) < sum(DELAYS, timedelta()) < timedelta(hours=2.5)
