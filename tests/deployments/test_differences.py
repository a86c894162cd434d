"""What is between an inventory and a server is told field by field; nothing else is a difference."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule

from deployments.deployed import Deployed
from deployments.diff import Action, Change, compare, differences
from deployments.wanted import Wanted, wanted
from tests.deployments.inventories import domains, inventory


def as_deployed(item: Wanted, *, is_ours: bool = True, **edited: Any) -> Deployed:
    """The answer of a server that holds a deployment as it is wanted, but for what was edited."""
    facts: dict[str, Any] = {
        "id": uuid4(), "flow_id": uuid4(), "name": item.name, "version": item.version, "description": item.description,
        "entrypoint": item.entrypoint, "tags": list(item.tags), "labels": {}, "parameters": dict(item.parameters),
        "parameter_openapi_schema": dict(item.parameter_schema), "work_pool_name": item.work_pool,
        "job_variables": dict(item.job_variables), "enforce_parameter_schema": True,
        "schedules": [
            DeploymentSchedule(schedule=timed.schedule, slug=timed.slug, active=True)
            for timed in item.schedules.values()
        ],
    }  # fmt: skip
    return Deployed(item.flow, is_ours, DeploymentResponse.model_validate({**facts, **edited}))


@pytest.fixture(scope="module")
def rotation() -> Wanted:
    return wanted(inventory(domains("prod-eu")))[0]


def way(items: list[Wanted], present: list[Deployed], **options: Any) -> list[Change]:
    settings: dict[str, Any] = {"prune": False, "adopt": False, "live": {}, **options}
    return compare(items, {item.key: item for item in present}, **settings)


def test_each_domain_gets_rotation_way_back_and_radar_and_the_inventory_one_sweep() -> None:
    items = wanted(inventory(domains("prod-eu", "staging")))
    assert [item.key for item in items] == [
        "linkerd-trust-anchor/prod-eu", "linkerd-issuer/prod-eu", "linkerd-roll-back/prod-eu",
        "linkerd-expired/prod-eu", "linkerd-webhooks/prod-eu", "radar/prod-eu",
        "linkerd-trust-anchor/staging", "linkerd-issuer/staging", "linkerd-roll-back/staging",
        "linkerd-expired/staging", "linkerd-webhooks/staging", "radar/staging",
        "sweep/fleet",
    ]  # fmt: skip
    assert [list(item.schedules) for item in items] == [["yearly"], [], [], [], [], ["daily"]] * 2 + [["sweep"]]
    assert items[0].tags == ("capstan", "domain:prod-eu", "inventory:fleet", "system:linkerd")
    assert items[-1].parameters["tags"] == ["capstan", "inventory:fleet"]


def test_a_disabled_domain_keeps_its_deployments_and_loses_its_schedules() -> None:
    items = wanted(inventory(domains("prod-eu", more=", enabled: false")))
    assert [(item.key, list(item.schedules)) for item in items[:6]] == [
        ("linkerd-trust-anchor/prod-eu", []), ("linkerd-issuer/prod-eu", []), ("linkerd-roll-back/prod-eu", []),
        ("linkerd-expired/prod-eu", []), ("linkerd-webhooks/prod-eu", []), ("radar/prod-eu", []),
    ]  # fmt: skip


def test_a_domains_own_policy_is_merged_over_the_defaults_key_by_key() -> None:
    text = (
        "schemaVersion: 1\ndefaults: {policy: {on_reject: stop, parallel_restarts: 8}}\n"
        + domains("a", more=", policy: {parallel_restarts: 2}")
    )  # fmt: skip
    policy = wanted(inventory(text, head=""))[0].parameters["domain"]["policy"]
    assert (policy["on_reject"], policy["parallel_restarts"], policy["issuer_validity"]) == ("stop", 2, "P1Y85D")


def test_what_is_missing_is_created_and_what_is_as_wanted_is_left_alone(rotation: Wanted) -> None:
    assert [change.action for change in way([rotation], [])] == [Action.CREATE]
    (change,) = way([rotation], [as_deployed(rotation)])
    assert (change.action, change.fields, change.pending) == (Action.UNCHANGED, (), False)


@pytest.mark.parametrize(
    ("edited", "field"),
    [
        ({"tags": ["capstan", "inventory:fleet"]}, "tags"),
        ({"description": "edited"}, "description"),
        ({"work_pool_name": "another"}, "work_pool"),
        ({"job_variables": {"env": {"A": "b"}}}, "job_variables.env.A"),
        ({"entrypoint": "flows/linkerd.py:rotate_trust_anchor"}, "entrypoint"),
        ({"enforce_parameter_schema": False}, "enforce_parameter_schema"),
        ({"pull_steps": [{"prefect.deployments.steps.git_clone": {}}]}, "pull_steps"),
        ({"path": "/somewhere"}, "path"),
        ({"schedules": []}, "schedules.yearly"),
        ({"parameter_openapi_schema": {"type": "object", "properties": {}}}, "form"),
        ({"version": "0.0.1"}, "version"),
    ],
)
def test_whatever_somebody_edits_in_prefect_shows_as_a_difference(
    rotation: Wanted, edited: dict[str, Any], field: str
) -> None:
    assert [item.name for item in differences(rotation, as_deployed(rotation, **edited))] == [field]


def test_a_changed_parameter_is_named_down_to_its_own_field(rotation: Wanted) -> None:
    domain = rotation.parameters["domain"]
    edited = {"domain": {**domain, "clusters": [{**domain["clusters"][0], "context": "elsewhere"}]}}
    (found,) = differences(rotation, as_deployed(rotation, parameters=edited))
    assert (found.name, found.before, found.after) == (
        "parameters.domain.clusters[0].context", "elsewhere", "prod-eu",
    )  # fmt: skip


def test_a_schedule_that_somebody_added_shows(rotation: Wanted) -> None:
    extra = DeploymentSchedule(schedule=CronSchedule(cron="0 4 * * *", timezone="UTC"), active=True)
    present = as_deployed(rotation)
    present.found.schedules.append(extra)
    (found,) = differences(rotation, present)
    assert (found.name, found.before, found.after) == (
        f"schedules.{extra.id}", "unnamed = cron 0 4 * * * UTC", None,
    )  # fmt: skip


def test_a_schedule_paused_in_prefect_is_told_and_is_no_difference(rotation: Wanted) -> None:
    present = as_deployed(rotation, paused=True)
    present.found.schedules[0].active = False
    (change,) = way([rotation], [present])
    assert change.action is Action.UNCHANGED
    assert change.notes == (
        "paused in Prefect, and stays so: no schedule starts it", "schedule yearly is paused in Prefect, and stays so",
    )  # fmt: skip


def test_a_deployment_of_somebody_else_is_never_touched(rotation: Wanted) -> None:
    theirs = as_deployed(rotation, is_ours=False, tags=["theirs"], description="theirs")
    (change,) = way([rotation], [theirs])
    assert (change.action, change.pending) == (Action.TAKEN, False)
    assert [change.action for change in way([rotation], [theirs], adopt=True)] == [Action.CHANGE]
    assert way([], [theirs], prune=True) == []


def test_what_left_the_inventory_goes_only_when_asked_and_never_with_a_live_run(rotation: Wanted) -> None:
    present = as_deployed(rotation)
    assert [change.action for change in way([], [present])] == [Action.LEFT]
    assert [change.action for change in way([], [present], prune=True)] == [Action.REMOVE]
    (change,) = way([], [present], prune=True, live={present.key: ["prod-eu: issue (Suspended)"]})
    assert (change.action, change.pending) == (Action.BUSY, False)
    assert change.notes == ("not ended: prod-eu: issue (Suspended); --force-prune removes it all the same",)
