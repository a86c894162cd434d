"""An inventory on a real Prefect server: deployed once, edited by others, pruned; nobody else's is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Scheduled, Suspended

from deployments.apply import Plan, apply, plan
from deployments.diff import Action
from deployments.reading import load
from tests.deployments.inventories import HEAD, domains
from tests.support.prefect_server import prefect_server

if TYPE_CHECKING:
    from collections.abc import Iterator

KUBERNETES = Path(__file__).parents[2] / "infra" / "kubernetes" / "work-pool.json"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("deployments")]


class Fleet:
    """An inventory file, and the server it is deployed to."""

    def __init__(self, file: Path, client: SyncPrefectClient, environment: dict[str, str]) -> None:
        self.file = file
        self.client = client
        self.environment = environment

    def write(self, text: str) -> None:
        self.file.write_text(HEAD + text)

    def plan(self, **options: bool) -> Plan:
        return plan(self.client, load(self.file), self.file, **options)

    def apply(self, **options: bool) -> Plan:
        planned = self.plan(**options)
        list(apply(self.client, load(self.file), planned))
        return planned

    def pending(self, **options: bool) -> dict[str, str]:
        return {change.key: change.action.value for change in self.plan(**options).deployments if change.pending}

    def capstan(self, *arguments: str, seed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "capstan.cli", *arguments],
            capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL, cwd=self.file.parent,
            env={**os.environ, **self.environment, "PYTHONHASHSEED": seed},
        )  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as environment:
        yield environment


@pytest.fixture
def fleet(server: dict[str, str], tmp_path: Path) -> Iterator[Fleet]:
    with temporary_settings({PREFECT_API_URL: server["PREFECT_API_URL"]}), get_client(sync_client=True) as client:
        for pool in client.read_work_pools():
            client.delete_work_pool(pool.name)
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)
        yield Fleet(tmp_path / "fleet.yaml", client, server)


def test_a_second_deploy_in_another_process_does_nothing_and_an_edit_in_the_ui_shows(fleet: Fleet) -> None:
    fleet.write(domains("prod-eu", "staging"))
    asked = fleet.capstan("deploy", str(fleet.file), seed="1")
    assert (asked.returncode, "this is no terminal" in asked.stderr) == (1, True), asked.stderr
    first = fleet.capstan("deploy", str(fleet.file), "--yes", seed="1")
    assert first.returncode == 0, first.stderr
    assert "14 to create" in first.stdout
    # Sets come in another order under another seed; that must not look like a difference.
    second = fleet.capstan("deploy", str(fleet.file), "-o", "json", seed="2")
    assert (second.returncode, json.loads(second.stdout)["pending"]) == (0, False), second.stdout

    found = fleet.client.read_deployment_by_name("linkerd-trust-anchor/prod-eu")
    assert found.entrypoint == "flows.linkerd.rotate_trust_anchor"
    assert (found.pull_steps or None, found.path, found.enforce_parameter_schema) == (None, None, True)
    fleet.client.update_deployment(found.id, DeploymentUpdate(tags=["mine"], description="mine", concurrency_limit=1))
    third = fleet.capstan("deploy", str(fleet.file), "--dry-run", "-o", "json", "--adopt", seed="3")
    assert third.returncode == 2, third.stderr
    (changed,) = [item for item in json.loads(third.stdout)["deployments"] if item["action"] == "change"]
    assert [item["name"] for item in changed["fields"]] == ["tags", "description", "concurrency_limit"]
    fleet.apply(adopt=True)
    assert fleet.pending() == {}


def test_every_field_that_somebody_edited_is_brought_back(fleet: Fleet) -> None:
    fleet.write(domains("prod-eu"))
    fleet.apply()
    found = fleet.client.read_deployment_by_name("linkerd-trust-anchor/prod-eu")
    fleet.client.update_deployment(
        found.id,
        DeploymentUpdate(
            parameters={**found.parameters, "rotation": "by-hand"}, path="/tmp", pull_steps=[{"a": {}}],
            job_variables={"env": {"A": "b"}}, enforce_parameter_schema=False, entrypoint="x.py:y", version="0",
        ),
    )  # fmt: skip
    daily = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 1 * * *", timezone="UTC"), slug="mine")
    fleet.client.create_deployment_schedules(found.id, [daily])
    (change,) = [change for change in fleet.plan().deployments if change.pending]
    assert [field.name for field in change.fields] == [
        "entrypoint", "schedules.mine", "parameters.rotation", "job_variables.env.A", "version",
        "enforce_parameter_schema", "path", "pull_steps",
    ]  # fmt: skip
    fleet.apply()
    assert fleet.pending() == {}
    again = fleet.client.read_deployment_by_name("linkerd-trust-anchor/prod-eu")
    assert [schedule.slug for schedule in again.schedules] == [schedule.slug for schedule in found.schedules]


def test_a_schedule_paused_in_the_ui_stays_paused_when_its_rule_changes(fleet: Fleet) -> None:
    fleet.write(domains("prod-eu", more=", schedule: {week: 10}"))
    fleet.apply()
    found = fleet.client.read_deployment_by_name("linkerd-trust-anchor/prod-eu")
    fleet.client.update_deployment_schedule(found.id, found.schedules[0].id, active=False)
    assert fleet.pending() == {}
    fleet.write(domains("prod-eu", more=", schedule: {week: 20}"))
    fleet.apply()
    after = fleet.client.read_deployment_by_name("linkerd-trust-anchor/prod-eu").schedules
    assert [(schedule.active, schedule.slug) for schedule in after] == [
        (False, "yearly: week 20, Sat 03:00 Europe/Berlin")
    ]
    assert fleet.pending() == {}


def test_only_what_was_ours_is_pruned_and_nothing_that_has_a_live_run(fleet: Fleet) -> None:
    @flow(name="linkerd-trust-anchor")
    def theirs() -> None:
        """Of somebody who gave his flow the same name."""

    fleet.write(domains("prod-eu", "staging", "test"))
    fleet.apply()
    flow_id = fleet.client.create_flow_from_name(theirs.name)
    fleet.client.create_deployment(flow_id, "theirs", entrypoint="theirs.py:theirs", tags=["capstan"])
    live = {name: fleet.client.read_deployment_by_name(f"linkerd-trust-anchor/{name}") for name in ("staging", "test")}
    later = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=300))
    runs = {
        name: fleet.client.create_flow_run_from_deployment(live[name].id, name=name, state=later) for name in live
    }  # fmt: skip
    fleet.client.set_flow_run_state(runs["staging"].id, Suspended(timeout_seconds=3600), force=True)

    fleet.write(domains("prod-eu"))
    assert fleet.pending() == {}
    blocked = fleet.plan(prune=True)
    assert {change.key: change.notes for change in blocked.deployments if change.action is Action.BUSY} == {
        "linkerd-trust-anchor/staging": ("not ended: staging (Suspended); --force-prune removes it all the same",),
        "linkerd-trust-anchor/test": ("not ended: test (Scheduled); --force-prune removes it all the same",),
    }
    assert fleet.plan(force_prune=True).blocked == ()
    for run in runs.values():
        fleet.client.delete_flow_run(run.id)
    fleet.apply(prune=True)
    left = {f"{deployment.entrypoint} {deployment.name}" for deployment in fleet.client.read_deployments()}
    assert left == {
        "flows.linkerd.rotate_trust_anchor prod-eu", "flows.linkerd.rotate_issuer prod-eu",
        "flows.linkerd_webhooks.rotate_webhooks prod-eu", "flows.linkerd_expired.replace_expired prod-eu",
        "flows.linkerd.roll_back prod-eu", "flows.radar.radar prod-eu", "flows.sweep.sweep fleet",
        "theirs.py:theirs theirs",
    }  # fmt: skip


def test_a_name_that_another_inventory_has_taken_stops_everything(fleet: Fleet) -> None:
    fleet.write(domains("prod-eu"))
    fleet.apply()
    fleet.file.write_text(HEAD.replace("fleet", "second") + domains("prod-eu"))
    refused = fleet.capstan("deploy", str(fleet.file), "--yes", seed="0")
    assert refused.returncode == 1
    assert "nothing was deployed" in refused.stderr
    assert "--adopt takes it over" in " ".join(refused.stderr.split())
    assert "sweep/second" not in {f"sweep/{item.name}" for item in fleet.client.read_deployments()}


def test_a_job_template_from_a_file_is_kept_as_the_file_says(fleet: Fleet) -> None:
    template: dict[str, Any] = {
        "job_configuration": {"image": "{{ image }}"},
        "variables": {"type": "object", "properties": {"image": {"type": "string", "default": "capstan:1"}}},
    }
    (fleet.file.parent / "pool.json").write_text(json.dumps(template))
    pool = "work_pools: [{name: capstan, type: kubernetes, base_job_template: pool.json}]\n"
    vault = ", vault: 'https://keys.vault.azure.net'"
    fleet.write(pool + domains("prod-eu", more=vault))
    fleet.apply()
    assert fleet.plan().pending is False
    template["variables"]["properties"]["image"]["default"] = "capstan:2"
    (fleet.file.parent / "pool.json").write_text(json.dumps(template))
    (change,) = fleet.plan().pools
    assert [(field.name, field.before, field.after) for field in change.fields] == [
        ("base_job_template.variables.properties.image.default", "capstan:1", "capstan:2")
    ]
    fleet.apply()
    assert fleet.plan().pending is False
    fleet.write(domains("prod-eu"))
    assert [change.action for change in fleet.plan().pools] == [Action.TAKEN]

    ours = f"work_pools: [{{name: capstan, type: kubernetes, base_job_template: {KUBERNETES}}}]\n"
    fleet.write(
        ours + "radar: {job_variables: {service_account_name: capstan-reader}}\n" + domains("prod-eu", more=vault)
    )
    fleet.apply()  # the server checks the variables against the template
    assert fleet.plan().pending is False
    variables = {item.key: item.deployed.found.job_variables for item in fleet.plan().deployments if item.deployed}
    assert variables["radar/prod-eu"] == {"service_account_name": "capstan-reader"}
    assert variables["linkerd-trust-anchor/prod-eu"] == {}
