"""Bringing an inventory to a Prefect server: look, show, do. Killed anywhere and run again, it does the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate

from deployments import automations
from deployments.automations import Difference
from deployments.deployed import Deployed, live_runs, read_deployed
from deployments.diff import Action, Change, compare
from deployments.inventory import Inventory
from deployments.pools import PoolChange, apply_pools, compare_pools
from deployments.wanted import Wanted, inventory_tag, wanted


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything between an inventory and a server."""

    pools: tuple[PoolChange, ...]
    deployments: tuple[Change, ...]
    notifications: tuple[Difference, ...]
    prune: bool

    @property
    def pending(self) -> bool:
        """Whether applying does something."""
        changes: tuple[PoolChange | Change, ...] = (*self.pools, *self.deployments)
        return any(change.pending for change in changes) or any(
            difference.verb != "unchanged" and (self.prune or difference.verb != "remove")
            for difference in self.notifications
        )

    @property
    def blocked(self) -> tuple[str, ...]:
        """What stands in the way, each in a line; nothing is applied while there is any."""
        changes: tuple[PoolChange | Change, ...] = (*self.pools, *self.deployments)
        stopping = (Action.TAKEN, Action.BUSY)
        return tuple(
            f"{change.key if isinstance(change, Change) else change.name}: {'; '.join(change.notes)}"
            for change in changes
            if change.action in stopping
        )

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "pending": self.pending,
            "work_pools": [change.as_json() for change in self.pools],
            "deployments": [change.as_json() for change in self.deployments],
            "notifications": [
                {
                    "kind": difference.kind,
                    "name": difference.name,
                    "action": "left" if difference.verb == "remove" and not self.prune else difference.verb,
                    "fields": [
                        {"name": name, "before": before, "after": after}
                        for name, (before, after) in difference.fields.items()
                    ],
                }
                for difference in self.notifications
            ],
        }


def plan(
    client: SyncPrefectClient,
    inventory: Inventory,
    file: Path,
    *,
    prune: bool = False,
    force_prune: bool = False,
    adopt: bool = False,
) -> Plan:
    """Look at the server, and say what would be done. Changes nothing.

    Args:
        file: The inventory's file: job templates are named relative to it.
        prune: Remove what left the inventory.
        force_prune: Remove it even while a run of it has not ended; such a run can then not be resumed.
        adopt: Take over deployments of wanted names that carry another inventory's tag, or none.

    Raises:
        InvalidInput: A flow or a job template is missing.
    """
    items = wanted(inventory)
    deployed = read_deployed(client, {item.flow for item in items}, inventory_tag(inventory.name))
    names = {item.key for item in items}
    live: dict[str, list[str]] = {}
    if prune and not force_prune:
        gone = {key: item for key, item in deployed.items() if item.is_ours and key not in names}
        live = {key: live_runs(client, item.id) for key, item in gone.items()}
    changes = compare(items, deployed, prune=prune or force_prune, adopt=adopt, live=live)
    return Plan(
        tuple(compare_pools(client, inventory, file)),
        tuple(changes),
        automations.diff(client, inventory.notifications, inventory.name),
        prune or force_prune,
    )


def apply(client: SyncPrefectClient, inventory: Inventory, planned: Plan) -> Iterator[Change]:
    """Do it, pools first and notifications last; yields each deployment as it is done."""
    apply_pools(client, planned.pools)
    for change in planned.deployments:
        if change.action is Action.CREATE and change.wanted:
            _create(client, change.wanted)
        elif change.action is Action.CHANGE and change.wanted and change.deployed:
            _change(client, change.wanted, change.deployed)
        elif change.action is Action.REMOVE and change.deployed:
            client.delete_deployment(change.deployed.id)
        else:
            continue
        yield change
    automations.apply(client, inventory.notifications, inventory.name, prune=planned.prune)


def _create(client: SyncPrefectClient, item: Wanted) -> None:
    client.create_deployment(
        flow_id=client.create_flow_from_name(item.flow),
        name=item.name,
        version=item.version,
        entrypoint=item.entrypoint,
        parameters=dict(item.parameters),
        parameter_openapi_schema=dict(item.parameter_schema),
        enforce_parameter_schema=True,
        tags=list(item.tags),
        description=item.description,
        schedules=[
            DeploymentScheduleCreate(schedule=timed.schedule, slug=timed.slug) for timed in item.schedules.values()
        ],
        work_pool_name=item.work_pool,
        job_variables=dict(item.job_variables),
    )


def _change(client: SyncPrefectClient, item: Wanted, present: Deployed) -> None:
    """Write everything but the schedules, then those one by one: a paused one stays paused."""
    client.update_deployment(
        present.id,
        DeploymentUpdate(
            version=item.version,
            entrypoint=item.entrypoint,
            path=None,
            pull_steps=None,
            storage_document_id=None,
            concurrency_limit=None,
            parameters=dict(item.parameters),
            parameter_openapi_schema=item.parameter_schema,
            enforce_parameter_schema=True,
            tags=list(item.tags),
            description=item.description,
            work_pool_name=item.work_pool,
            job_variables=dict(item.job_variables),
        ),
    )
    for role, schedule in present.schedules.items():
        if role not in item.schedules:
            client.delete_deployment_schedule(present.id, schedule.id)
    for role, timed in item.schedules.items():
        there = present.schedules.get(role)
        if there is None:
            new = DeploymentScheduleCreate(schedule=timed.schedule, slug=timed.slug)
            client.create_deployment_schedules(present.id, [new])
        else:
            client.update_deployment_schedule(
                present.id, there.id, schedule=timed.schedule, slug=timed.slug, parameters={}
            )
