"""Work pools: made when they are missing; a job template that the inventory names is kept as its file says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists

from capstan.errors import InvalidInput
from deployments.diff import Action, Field, flat
from deployments.inventory import Inventory, WorkPool, beside

_DESCRIPTION = (
    "Runs Capstan's flows: rotations of trust anchors. Workers need Capstan installed and access to the clusters."
)


@dataclass(frozen=True, slots=True)
class PoolChange:
    """What is to be done about one work pool."""

    action: Action
    name: str
    type: str
    template: dict[str, Any] | None
    fields: tuple[Field, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def pending(self) -> bool:
        """Whether applying does something."""
        return self.action in (Action.CREATE, Action.CHANGE)

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "work_pool": self.name,
            "action": self.action.value,
            "fields": [{"name": item.name, "before": item.before, "after": item.after} for item in self.fields],
            "notes": list(self.notes),
        }


def compare_pools(client: SyncPrefectClient, inventory: Inventory, file: Path) -> list[PoolChange]:
    """What is to be done about the pools of an inventory.

    Args:
        file: The inventory's file: templates are named relative to it.

    Raises:
        InvalidInput: A template cannot be read.
    """
    present = {pool.name: pool for pool in client.read_work_pools(limit=200)}
    changes: list[PoolChange] = []
    for pool in inventory.work_pools:
        template = _template(pool, file)
        found = present.get(pool.name)
        if found is None:
            changes.append(PoolChange(Action.CREATE, pool.name, pool.type, template))
            continue
        notes = ("paused in Prefect, and stays so: its workers get no runs",) if found.is_paused else ()
        if found.type != pool.type:
            note = f"is of type {found.type}, not {pool.type}; name another pool, or delete this one first"
            changes.append(PoolChange(Action.TAKEN, pool.name, pool.type, template, notes=(note, *notes)))
            continue
        fields = _differences(found.base_job_template, template) if template is not None else ()
        action = Action.CHANGE if fields else Action.UNCHANGED
        changes.append(PoolChange(action, pool.name, pool.type, template, fields, notes))
    return changes


def apply_pools(client: SyncPrefectClient, changes: Iterable[PoolChange]) -> None:
    """Make the pools as they should be."""
    for change in changes:
        if change.action is Action.CREATE:
            template = change.template if change.template is not None else _process_template()
            pool = WorkPoolCreate(
                name=change.name, type=change.type, description=_DESCRIPTION, base_job_template=template
            )
            # A worker that starts just now makes its pool itself; then that one stays, as any that was there before.
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(pool)
        elif change.action is Action.CHANGE:
            client.update_work_pool(change.name, WorkPoolUpdate(base_job_template=change.template or {}))


def _template(pool: WorkPool, file: Path) -> dict[str, Any] | None:
    if pool.base_job_template is None:
        return None
    path = beside(file, pool.base_job_template)
    try:
        template = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            "the job template of a work pool cannot be read",
            where=str(path),
            observed=getattr(error, "strerror", None) or str(error),
            expected="a JSON file with job_configuration and variables",
            next_command=f"correct base_job_template of work pool {pool.name}; it is relative to the inventory",
        ) from error
    if not isinstance(template, dict) or not {"job_configuration", "variables"} <= template.keys():
        raise InvalidInput(
            "this is no job template",
            where=str(path),
            observed="job_configuration or variables is missing",
            expected="a base job template of Prefect: job_configuration and variables",
            next_command="prefect work-pool get-default-base-job-template --type kubernetes",
        )
    return template


def _differences(before: dict[str, Any], after: dict[str, Any]) -> tuple[Field, ...]:
    was, will_be = flat("base_job_template", before), flat("base_job_template", after)
    names = sorted(was.keys() | will_be.keys())
    return tuple(Field(name, was.get(name), will_be.get(name)) for name in names if was.get(name) != will_be.get(name))


def _process_template() -> dict[str, Any]:
    """Prefect's own for a process pool, but for one thing: a run does not print through its worker.

    Where it does, it dies of the broken pipe when the worker is killed; the server has its log in any case.
    """
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["stream_output"]["default"] = False
    return template
