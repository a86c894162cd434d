"""What starts a rotation without a person at the UI: a schedule, the REST API; and one domain has one at a time."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from deployments.notifications import Notified
from tests.deployed.halts import Halts
from tests.deployed.meshes import Mesh, wait_for
from tests.support.prefect_deployment import JOB_VARIABLES, Deployed
from tests.support.webhooks import Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.labs import RunningLab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DEPLOYMENT = "linkerd-trust-anchor/mesh"
ROLL_BACK = "linkerd-roll-back/mesh"
HALT = "mint begin"


class OneDomain:
    """A deployment of one domain, and what several launches of it come to."""

    def __init__(self, deployed: Deployed, mesh: Mesh, halts: Halts) -> None:
        self.deployed = deployed
        self.mesh = mesh
        self.halts = halts

    def schedule(self, at: datetime) -> str:
        """Add a yearly schedule that is due at a time, and return the id of the run that it makes."""
        deployment = self.deployed.ask("GET", f"deployments/name/{DEPLOYMENT}")["id"]
        rule = f"DTSTART:{at:%Y%m%dT%H%M%S}\nRRULE:FREQ=YEARLY"
        body = [{"schedule": {"rrule": rule, "timezone": "UTC"}, "active": True, "slug": "soon"}]
        self.deployed.ask("POST", f"deployments/{deployment}/schedules", json=body)
        found: list[dict[str, Any]] = []

        def made() -> bool:
            wanted = {"deployments": {"id": {"any_": [deployment]}}}
            found[:] = self.deployed.ask("POST", "flow_runs/filter", json=wanted)
            return bool(found)

        wait_for(made, "the run of the schedule", 60)
        (run,) = found
        assert run["auto_scheduled"] is True
        return str(run["id"])

    def require_refused(self, second: str, first: str) -> None:
        """The second launch has ended, says whose the rotation is, and has changed nothing."""
        self.deployed.wait_for_state(second, "Failed", seconds=180, fatal=("Completed", "Suspended", "Crashed"))
        message = self.deployed.run(second)["state"]["message"]
        assert first in message, message
        assert self.mesh.record()["claim"]["run"] == first

    def execute(self, run: str) -> None:
        """Run a scheduled run here and now, without a worker."""
        environment = {**self.deployed.client_environment, **self.halts.environment}
        self.deployed.call([sys.executable, "-m", "prefect", "flow-run", "execute", run], environment)


@pytest.fixture
def one(lab: RunningLab, tmp_path: Path) -> Iterator[OneDomain]:
    mesh, halts = Mesh(lab, tmp_path / "capstan"), Halts(tmp_path / "halts")
    mesh.forget_earlier()
    with Deployed(tmp_path / "prefect", environment=halts.environment) as deployed:
        deployed.deploy_inventory(
            mesh.inventory(tmp_path / "inventory.yaml", defaults={"job_variables": JOB_VARIABLES})
        )
        yield OneDomain(deployed, mesh, halts)


@pytest.mark.long
def test_a_rejection_goes_back_by_the_policy_of_the_domain_and_the_webhook_is_told_of_every_turn(
    lab: RunningLab, tmp_path: Path
) -> None:
    mesh, receiver = Mesh(lab, tmp_path / "capstan"), Receiver()
    mesh.forget_earlier()
    with Deployed(tmp_path / "prefect") as deployed, closing(receiver):
        notifications = {"webhook": {"url": receiver.url}}
        deployed.deploy_inventory(
            mesh.inventory(
                tmp_path / "inventory.yaml", defaults={"job_variables": JOB_VARIABLES}, notifications=notifications
            )
        )
        run = deployed.launch(DEPLOYMENT)
        deployed.wait_for_state(run, "Suspended", seconds=180, fatal=("Failed", "Crashed"))
        asked = receiver.await_one(Notified.WAITING_FOR_APPROVAL)
        assert (asked["run_id"], asked["url"]) == (run, f"{deployed.ui_url}/runs/flow-run/{run}")
        deployed.approve(run)
        deployed.wait_for_state(run, "Running", "Waiting", seconds=60)
        deployed.wait_for_state(run, "Suspended", seconds=300, fatal=("Failed", "Crashed"))
        answer = {"decision": "reject", "name": "Grace", "comment": "the shop has its sale today"}
        assert deployed.resume(run, answer)["status"] == "ACCEPT"
        deployed.wait_for_state(run, "Completed", seconds=400, fatal=("Failed", "Crashed"))
        mesh.require_rolled_back()
        decided = [(entry["gate"], entry["decision"], entry["by"]) for entry in mesh.record()["approvals"]]
        assert decided == [("trust", "approved", "Ada"), ("issue", "rejected", "Grace")]
        told = receiver.await_one(Notified.ROLLED_BACK)
        assert told["url"] == asked["url"]


def test_a_schedule_rotates_no_other_launch_gets_in_between_and_a_launched_roll_back_takes_it_back(
    one: OneDomain,
) -> None:
    deployed = one.deployed
    one.halts.want([HALT])
    first = one.schedule(datetime.now(UTC) + timedelta(seconds=12))

    # 1. While it runs: the same key twice is one launch, and that one is refused.
    wait_for(lambda: one.halts.reached(HALT) is not None, "the scheduled run to mint", 180)
    second = deployed.launch(DEPLOYMENT, idempotency_key="mesh/2026")
    assert deployed.launch(DEPLOYMENT, idempotency_key="mesh/2026") == second
    one.require_refused(second, first)
    one.halts.release(HALT)

    # 2. While it is suspended for an approval, and holds no Lease.
    deployed.wait_for_state(first, "Suspended", seconds=180, fatal=("Failed", "Crashed"))
    one.require_refused(deployed.launch(DEPLOYMENT), first)

    # 3. While it waits without a process; without a worker, which would wake it up as well.
    given = []
    while deployed.wait_for_state(first, "Suspended", "Waiting", seconds=300, fatal=("Failed", "Crashed")) != "Waiting":
        gate = deployed.run(first)["state"]["message"].rpartition(" ")[2]
        deployed.approve(first, name="Grace")
        given.append((gate, "Grace"))
        deployed.wait_for_state(first, "Running", "Waiting", seconds=180)
    deployed.kill_worker()
    third = deployed.launch(DEPLOYMENT)
    one.execute(third)
    assert deployed.state(first) in ("Waiting", "Late"), deployed.state(first)
    one.require_refused(third, first)

    # 4. The refused ones left no trace: the first one finishes.
    deployed.start_worker()
    deployed.wait_for_state(first, "Suspended", seconds=300, fatal=("Failed", "Crashed", "Completed"))
    deployed.approve(first, name="Grace")
    given.append(("distrust", "Grace"))
    deployed.wait_for_state(first, "Completed", seconds=300, fatal=("Failed", "Crashed"))
    one.mesh.require_finished(given)

    # 5. Launched afterwards, a roll-back is asked for once, as a whole, and takes everything back.
    back = deployed.launch(ROLL_BACK)
    deployed.wait_for_state(back, "Suspended", seconds=180, fatal=("Failed", "Crashed", "Completed"))
    assert "roll-back" in deployed.run(back)["state"]["message"]
    deployed.approve(back, name="Grace")
    deployed.wait_for_state(back, "Completed", seconds=400, fatal=("Failed", "Crashed", "Suspended"))
    one.mesh.require_rolled_back()
