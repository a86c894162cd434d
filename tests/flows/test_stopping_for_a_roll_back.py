"""Which runs a roll-back ends before it takes a rotation over, on a real Prefect server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from capstan.cluster.record import Claim, RotationRecord
from flows.claims import cancel_waiting_run

if TYPE_CHECKING:
    from tests.flows.conftest import Domain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("flows")]


def stop(domain: Domain, run: str, finished: datetime | None = None) -> None:
    now = datetime.now(UTC)
    claim = Claim(run=run, name="a run", at=now)
    record = RotationRecord(
        rotation_id="r-1", domain=domain.name, system="linkerd", started=now, claim=claim, finished=finished
    )
    with domain.prefect.as_client():
        cancel_waiting_run(record)


def state(domain: Domain, run: str) -> str:
    return str(domain.prefect.run(run)["state"]["type"])


@pytest.mark.parametrize(
    ("kind", "name"), [("SCHEDULED", "Waiting"), ("PAUSED", "Suspended"), ("PENDING", ""), ("SCHEDULED", "Late")]
)
def test_a_rotation_that_waits_or_is_suspended_is_cancelled_and_says_why(domain: Domain, kind: str, name: str) -> None:
    run = domain.launch(kind, name)
    stop(domain, run)
    assert state(domain, run) == "CANCELLED"
    assert "rolls the rotation back" in domain.prefect.run(run)["state"]["message"]


@pytest.mark.parametrize("kind", ["RUNNING", "COMPLETED", "CRASHED", "FAILED"])
def test_one_that_is_at_work_or_has_ended_is_left_alone(domain: Domain, kind: str) -> None:
    run = domain.launch(kind)
    stop(domain, run)
    assert state(domain, run) == kind


def test_so_are_the_run_of_a_finished_rotation_another_roll_back_and_a_run_of_another_server(domain: Domain) -> None:
    run = domain.launch("SCHEDULED", "Waiting")
    stop(domain, run, finished=datetime.now(UTC))
    assert state(domain, run) == "SCHEDULED"
    stop(domain, str(uuid4()))
    stop(domain, "no id at all")
    flow = domain.prefect.ask("POST", "flows/", json={"name": "linkerd-roll-back"})["id"]
    other = domain.prefect.ask("POST", "flow_runs/", json={"flow_id": flow, "state": {"type": "PAUSED"}})["id"]
    stop(domain, other)
    assert state(domain, other) == "PAUSED"
