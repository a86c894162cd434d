"""The sweep on a real Prefect server: which runs it starts again, which it never touches, and when it gives up."""

from __future__ import annotations

import contextvars
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Scheduled

from capstan.cluster.record import BUDGET
from capstan.rotation.reviving import SweepThresholds
from flows import sweep as sweeping
from flows.events import EventName
from flows.sweep import HEARTBEAT, RECOVERING, Swept, sweep

if TYPE_CHECKING:
    from tests.flows.conftest import Domain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("flows")]

AT_ONCE = SweepThresholds(silent_seconds=0.001, crashed_seconds=0, pending_seconds=0.001)


def swept(domain: Domain, thresholds: SweepThresholds = AT_ONCE) -> tuple[Swept, ...]:
    with domain.prefect.as_client():
        return sweep(thresholds, (domain.tag,))


def exhausted(domain: Domain) -> list[dict[str, Any]]:
    """The events that told of a used-up budget."""
    wanted = {"event": {"name": [EventName.BUDGET_EXHAUSTED]}, "resource": {"id": [f"capstan.domain.{domain.name}"]}}
    return list(domain.prefect.ask("POST", "events/filter", json={"filter": wanted})["events"])


def await_told(domain: Domain) -> None:
    deadline = time.monotonic() + 30
    while not exhausted(domain):
        assert time.monotonic() < deadline, "the event did not arrive"
        time.sleep(0.2)


@pytest.mark.parametrize("state", ["CRASHED", "RUNNING", "PENDING"])
def test_a_dead_run_is_scheduled_again_under_its_own_id_and_costs_one_restart(domain, state):
    run = domain.launch(state)
    domain.record(run)
    (done,) = swept(domain)
    assert (done.run, done.did, done.domain) == (run, "started again", domain.name)
    assert domain.prefect.run(run)["state"]["type"] == "SCHEDULED"
    assert domain.states(run)[-1] == RECOVERING
    assert domain.budget() == BUDGET - 1
    assert swept(domain) == ()


def test_a_run_that_waits_is_asked_about_has_ended_or_is_not_ours_is_never_touched(domain):
    untouched = [
        domain.launch("SCHEDULED", "Waiting"),
        domain.launch("PAUSED", "Suspended"),
        domain.launch("PAUSED", "Paused"),
        domain.launch("SCHEDULED", "Late"),
        domain.launch("CANCELLING"),
        domain.launch("CANCELLED"),
        domain.launch("COMPLETED"),
        domain.launch("FAILED"),
        domain.launch("CRASHED", tags=[domain.tag]),  # without the tag `capstan`
    ]
    assert swept(domain) == ()
    assert [run for run in untouched if RECOVERING in domain.states(run)] == []


def test_a_run_is_dead_only_after_its_time(domain):
    runs = [domain.launch(state) for state in ("CRASHED", "RUNNING", "PENDING")]
    domain.record(runs[1])
    assert swept(domain, SweepThresholds(silent_seconds=60, crashed_seconds=60, pending_seconds=60)) == ()
    assert domain.budget() == BUDGET


def test_a_heartbeat_keeps_a_running_run_alive(domain):
    alive, silent = domain.launch("RUNNING"), domain.launch("RUNNING")
    domain.record(silent)
    # From a clock that is ahead, so that it stays fresh however slow this machine is just now.
    at = datetime.now(UTC) + timedelta(seconds=25)
    beat = {
        "event": HEARTBEAT, "id": str(uuid4()), "occurred": at.isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{alive}"},
    }  # fmt: skip
    domain.prefect.ask("POST", "events", json=[beat])
    about = {"id": {"id": [beat["id"]]}, "occurred": {"until": (at + timedelta(seconds=1)).isoformat()}}
    while not domain.prefect.ask("POST", "events/filter", json={"filter": about})["events"]:
        assert datetime.now(UTC) < at, "the event did not arrive"
        time.sleep(0.1)
    assert {done.run: done.did for done in swept(domain)} == {silent: "started again"}
    assert domain.states(alive)[-1] == "Running"


def test_with_no_restart_left_a_run_stays_dead_and_that_is_told_once(domain):
    run = domain.launch("RUNNING")
    domain.record(run, budget=0)
    (first,) = swept(domain)
    assert first.did == "left dead"
    assert f"prefect flow-run retry {run}" in first.why
    assert domain.states(run)[-1] == "Crashed", "whoever launches next must see that this run has ended"
    await_told(domain)
    (second,) = swept(domain)
    assert second.did == "nothing"
    (told,) = exhausted(domain)
    assert run in told["payload"]["next_command"]
    assert told["related"][0]["prefect.resource.id"] == f"prefect.flow-run.{run}", "the run is what the link goes to"


def test_a_run_that_died_before_its_rotation_began_gets_so_many_tries(domain):
    run = domain.launch("CRASHED")
    thresholds = AT_ONCE.model_copy(update={"tries_without_record": 2})
    for _ in range(2):
        assert [done.did for done in swept(domain, thresholds)] == ["started again"]
        domain.enter(run, "CRASHED")
    assert [done.did for done in swept(domain, thresholds)] == ["left dead"]
    assert domain.states(run).count(RECOVERING) == 2


def test_two_sweeps_at_once_start_a_run_once(domain):
    run = domain.launch("CRASHED")
    domain.record(run)
    start = threading.Barrier(2)
    done: list[Swept] = []

    def one() -> None:
        start.wait()
        done.extend(swept(domain))

    threads = [threading.Thread(target=contextvars.copy_context().run, args=(one,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert domain.states(run).count(RECOVERING) == 1
    assert domain.budget() == BUDGET - 1
    assert [item.did for item in done].count("started again") == 1


def test_a_state_that_changed_meanwhile_wins(domain):
    run = domain.launch("CRASHED")
    with domain.prefect.as_client(), get_client(sync_client=True) as client:
        found = client.read_flow_run(run)
        domain.enter(run, "PAUSED", "Suspended")
        assert "changed to Suspended" in sweeping._move(client, found, Scheduled())
    assert domain.states(run)[-1] == "Suspended"


def test_a_cluster_that_does_not_answer_costs_nothing_and_the_next_sweep_looks_again(domain):
    run = domain.launch("CRASHED")
    domain.record(run)
    api = domain.api
    api.call(api.server.stop())
    try:
        (done,) = swept(domain)
        assert (done.did, domain.states(run)[-1]) == ("nothing", "Crashed")
        assert "cannot be read" in done.why
    finally:
        api.call(api.server.start())
    assert [done.did for done in swept(domain)] == ["started again"]
    assert domain.budget() == BUDGET - 1


def test_parameters_that_are_no_trust_domain_stop_the_sweep_of_that_run_alone(domain):
    strange = domain.launch("CRASHED", parameters={"domain": {"name": "NOT A LABEL"}})
    run = domain.launch("CRASHED")
    domain.record(run)
    assert {done.run: done.did for done in swept(domain)} == {strange: "nothing", run: "started again"}
