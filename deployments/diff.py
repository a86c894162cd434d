"""What is between the deployments an inventory wants and those Prefect has, field by field. Pure.

A schedule that somebody paused in Prefect stays paused: it is the brake an operator reaches for, and a deploy must not
release it behind their back. It is shown, and is no difference. `enabled: false` in the inventory takes the schedule
away altogether, so that the two never mean the same thing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from prefect.client.schemas.schedules import NoSchedule

from deployments.deployed import Deployed
from deployments.wanted import Schedule, Wanted

_NONE: Any = None


class Action(StrEnum):
    """What has to be done about a deployment."""

    CREATE = "create"
    CHANGE = "change"
    UNCHANGED = "unchanged"
    REMOVE = "remove"
    """It left the inventory, and is to be removed."""
    LEFT = "left"
    """It left the inventory, and stays until somebody prunes."""
    BUSY = "busy"
    """It left the inventory and would be removed, but one of its runs has not ended."""
    TAKEN = "taken"
    """Its name belongs to a deployment of somebody else."""


@dataclass(frozen=True, slots=True)
class Field:
    """One difference: None where there is, or was, nothing."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done about one deployment.

    Attributes:
        action: What.
        key: FLOW/NAME.
        fields: The differences of a change.
        notes: What a person should know, such as a schedule that is paused.
        wanted: As it should be; None where it left the inventory.
        deployed: As it is; None where it is missing.
    """

    action: Action
    key: str
    fields: tuple[Field, ...] = ()
    notes: tuple[str, ...] = ()
    wanted: Wanted | None = field(default=None, repr=False)
    deployed: Deployed | None = field(default=None, repr=False)

    @property
    def pending(self) -> bool:
        """Whether applying does something."""
        return self.action in (Action.CREATE, Action.CHANGE, Action.REMOVE)

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "deployment": self.key,
            "action": self.action.value,
            "fields": [{"name": item.name, "before": item.before, "after": item.after} for item in self.fields],
            "notes": list(self.notes),
        }


def compare(
    wanted: Iterable[Wanted],
    deployed: Mapping[str, Deployed],
    *,
    prune: bool,
    adopt: bool,
    live: Mapping[str, list[str]],
) -> list[Change]:
    """The way from `deployed` to `wanted`.

    Args:
        deployed: By key: those of this inventory, and all others of the same flows.
        prune: Whether what left the inventory is removed.
        adopt: Whether a deployment of a wanted name without this inventory's tag is taken over.
        live: Unfinished runs of those that left the inventory, by key; they keep a deployment from being removed.
    """
    changes: list[Change] = []
    keys = set()
    for item in wanted:
        keys.add(item.key)
        present = deployed.get(item.key)
        if present is None:
            changes.append(Change(Action.CREATE, item.key, wanted=item))
        elif not present.is_ours and not adopt:
            note = f"exists with tags {', '.join(present.found.tags) or '(none)'}; --adopt takes it over"
            changes.append(Change(Action.TAKEN, item.key, notes=(note,), wanted=item, deployed=present))
        else:
            fields = differences(item, present)
            action = Action.CHANGE if fields else Action.UNCHANGED
            changes.append(Change(action, item.key, fields, _brakes(present), item, present))
    gone = sorted(key for key, present in deployed.items() if present.is_ours and key not in keys)
    for key in gone:
        notes: tuple[str, ...] = ()
        if not prune:
            action, notes = Action.LEFT, ("not in the inventory; --prune removes it",)
        elif live.get(key):
            action, notes = Action.BUSY, (f"not ended: {', '.join(live[key])}; --force-prune removes it all the same",)
        else:
            action = Action.REMOVE
        changes.append(Change(action, key, notes=notes, deployed=deployed[key]))
    return changes


def differences(wanted: Wanted, deployed: Deployed) -> tuple[Field, ...]:
    """Field by field; empty when the deployment is as it should be."""
    is_now, should_be = facts_of_deployed(deployed), facts_of_wanted(wanted)
    return tuple(
        Field(name, is_now.get(name), should_be.get(name))
        for name in sorted(is_now.keys() | should_be.keys(), key=_reading_order)
        if is_now.get(name) != should_be.get(name)
    )


def facts_of_wanted(wanted: Wanted) -> dict[str, Any]:
    """Everything that is compared, by field name."""
    return {
        "entrypoint": wanted.entrypoint,
        "work_pool": wanted.work_pool,
        "version": wanted.version,
        "tags": sorted(wanted.tags),
        "description": wanted.description,
        "enforce_parameter_schema": True,
        "form": wanted.parameter_schema,
        **flat("parameters", wanted.parameters),
        **flat("job_variables", wanted.job_variables),
        **{
            f"schedules.{role}": f"{timed.slug} = {rule_of(timed.schedule)}" for role, timed in wanted.schedules.items()
        },
    }


def facts_of_deployed(deployed: Deployed) -> dict[str, Any]:
    """The same of what is on the server; what we never set shows when somebody else did."""
    found = deployed.found
    limit = found.global_concurrency_limit
    facts = {
        "entrypoint": found.entrypoint,
        "work_pool": found.work_pool_name,
        "version": found.version,
        "tags": sorted(found.tags),
        "description": found.description,
        "enforce_parameter_schema": found.enforce_parameter_schema,
        "form": found.parameter_openapi_schema,
        "pull_steps": found.pull_steps or _NONE,
        "path": found.path or _NONE,
        "storage": str(found.storage_document_id) if found.storage_document_id else _NONE,
        "concurrency_limit": limit.limit if limit else _NONE,
        **flat("parameters", found.parameters),
        **flat("job_variables", found.job_variables),
    }
    for role, schedule in deployed.schedules.items():
        rule = f"{schedule.slug or 'unnamed'} = {rule_of(schedule.schedule)}"
        if schedule.parameters:
            rule += f" with parameters {json.dumps(schedule.parameters, sort_keys=True)}"
        facts[f"schedules.{role}"] = rule
    return facts


def rule_of(schedule: Schedule | NoSchedule) -> str:
    """A schedule in one line: the same text means the same starts."""
    if isinstance(schedule, NoSchedule):
        return "never"
    plain = schedule.model_dump(mode="json")
    if "rrule" in plain:
        rule = plain["rrule"].replace("\n", " ")
    elif "cron" in plain:
        rule = f"cron {plain['cron']}" + ("" if plain["day_or"] else " (day and weekday)")
    else:
        anchor = plain["anchor_date"].replace("+00:00", "Z")
        rule = f"every {plain['interval']:g} s from {anchor}"
    return f"{rule} {plain['timezone']}"


def flat(prefix: str, value: Any) -> dict[str, Any]:
    """Nested data as `a.b[0].c: value`, so that a change is named where it is."""
    if isinstance(value, Mapping) and value:
        return {name: leaf for key, item in value.items() for name, leaf in flat(f"{prefix}.{key}", item).items()}
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return {name: leaf for at, item in enumerate(value) for name, leaf in flat(f"{prefix}[{at}]", item).items()}
    if prefix in ("parameters", "job_variables"):  # nothing in it
        return {}
    return {prefix: value}


def _brakes(deployed: Deployed) -> tuple[str, ...]:
    notes = [
        f"schedule {role} is paused in Prefect, and stays so"
        for role, schedule in deployed.schedules.items()
        if not schedule.active
    ]
    if deployed.found.paused:
        notes.insert(0, "paused in Prefect, and stays so: no schedule starts it")
    return tuple(notes)


def _reading_order(name: str) -> tuple[int, str]:
    first = ("entrypoint", "work_pool", "schedules", "tags", "parameters", "job_variables", "version", "description")
    head = name.split(".")[0].split("[")[0]
    return (first.index(head) if head in first else len(first), name)
