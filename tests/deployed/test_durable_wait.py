"""Leaving the process and coming back, against a real Prefect server: what our waits and approvals rest on.

Runs are executed as a worker executes them (`python -m prefect.engine`), one process each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from flows.faults import DELAYS
from tests.support.prefect_server import prefect_server

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("durable")]

ROOT = Path(__file__).parents[2]


class Server:
    """A Prefect server, and processes that do what its workers would."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
        self.api = httpx.Client(base_url=environment["PREFECT_API_URL"], timeout=30)

    def post(self, path: str, **body: Any) -> Any:
        answer = self.api.post(path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def launch(self, flow: str, **parameters: Any) -> str:
        """A run of a deployment of that small flow, not started yet."""
        flow_id = self.post("/flows/", name=flow)["id"]
        deployment = self.post(
            "/deployments/", name="small", flow_id=flow_id, entrypoint=f"tests.deployed.small_flows.{flow}"
        )["id"]
        run = self.post(
            f"/deployments/{deployment}/create_flow_run",
            parameters=parameters,
            state={"type": "SCHEDULED", "state_details": {"scheduled_time": datetime.now(UTC).isoformat()}},
        )
        return str(run["id"])

    def execute(self, run: str) -> None:
        """Let a process run it, to its end or until it leaves."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect.engine"], cwd=ROOT, env={**self.environment, "PREFECT__FLOW_RUN_ID": run},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]

    def run(self, run: str) -> dict[str, Any]:
        return dict(self.api.get(f"/flow_runs/{run}").json())

    def resume(self, run: str, **answer: Any) -> dict[str, Any]:
        return dict(self.api.post(f"/flow_runs/{run}/resume", json={"run_input": answer}).json())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as environment:
        yield Server(environment)


def test_a_run_that_waits_is_scheduled_for_its_deadline_under_its_own_id_and_goes_on_after_it(
    server: Server, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    run = server.launch("waits", diary=str(diary), seconds=8)
    server.execute(run)
    state = server.run(run)["state"]
    assert (state["type"], state["name"]) == ("SCHEDULED", "Waiting")
    assert state["message"] == "waits for the deadline"
    deadline = datetime.fromisoformat(diary.read_text().splitlines()[0])
    planned = datetime.fromisoformat(state["state_details"]["scheduled_time"])
    assert abs(planned - deadline) < timedelta(seconds=1)
    time.sleep(max(0.0, (deadline - datetime.now(UTC)).total_seconds()))
    server.execute(run)
    assert server.run(run)["state"]["name"] == "Completed"
    assert diary.read_text().count("looked") == 2


def test_a_run_whose_cluster_is_away_comes_back_for_it_later_each_time(server: Server) -> None:
    run = server.launch("meets_a_fault")
    for number in (1, 2):
        server.execute(run)
        state = server.run(run)["state"]
        assert state["name"] == "Waiting"
        assert f"{number} of 10: no answer (https://prod.invalid): connection refused" in state["message"]
        away = datetime.fromisoformat(state["state_details"]["scheduled_time"]) - datetime.now(UTC)
        assert DELAYS[number - 1] / 2 < away <= DELAYS[number - 1]
        server.post(f"/flow_runs/{run}/set_state", state={"type": "PENDING"}, force=True)


def test_an_approval_asked_for_by_suspending_takes_only_an_answer_that_fits(server: Server, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    run = server.launch("asks", diary=str(diary))
    server.execute(run)
    assert server.run(run)["state"]["name"] == "Suspended"
    # Refused by the server, which says so in the body of an HTTP 200.
    for wrong in (
        {},
        {"decision": "maybe", "name": "ann", "request": "request-1"},
        {"decision": "approve", "name": "", "request": "request-1"},
        {"decision": "approve", "name": "ann", "request": "request-0"},
        {"decision": "approve", "name": "ann", "request": "request-1", "sudo": True},
    ):
        assert server.resume(run, **wrong)["status"] == "REJECT", wrong
    assert server.run(run)["state"]["name"] == "Suspended"
    answer = {"decision": "approve", "name": "ann", "ticket": "CHG-7", "request": "request-1"}
    assert server.resume(run, **answer)["status"] == "ACCEPT"
    server.execute(run)
    assert diary.read_text() == "approved by ann, CHG-7, answer 1"


def test_a_suspended_run_that_was_set_going_without_an_answer_asks_again(server: Server, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    run = server.launch("asks", diary=str(diary), approvers=["ann", "bob"])
    server.execute(run)
    server.post(f"/flow_runs/{run}/set_state", state={"type": "SCHEDULED", "name": "Scheduled"}, force=True)
    server.execute(run)
    assert server.run(run)["state"]["name"] == "Suspended"
    assert not diary.exists()
    # Where approvers are listed, their names are the choice, and nobody else's or unsigned answer gets in.
    assert server.resume(run, decision="approve", name="eve", signature="x", request="request-1")["status"] == "REJECT"
    assert server.resume(run, decision="approve", name="ann", request="request-1")["status"] == "REJECT"
    answer = {"decision": "reject", "name": "bob", "signature": "signed", "request": "request-1"}
    assert server.resume(run, **answer)["status"] == "ACCEPT"
    server.execute(run)
    assert diary.read_text() == "rejected by bob, , answer 2"
