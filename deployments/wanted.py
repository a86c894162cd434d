"""Inventory -> the deployments Prefect should have: each domain's rotations, its way back and radar; one sweep for all.

No deployment has a concurrency limit. Prefect counts a limit in slots that a suspended run gives up and that a server
keeps in memory: a slot lost with a killed server would stop the sweep for ever, and a resumed rotation could be
cancelled for its own. That one domain is rotated once at a time is the business of the Lease and the record in the
cluster, which hold across servers.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel

from capstan.config import TrustDomain
from capstan.errors import InvalidInput
from deployments import describing
from deployments.entrypoints import FLOWS, RADAR, SWEEP
from deployments.inventory import DomainEntry, Inventory
from deployments.timetable import Start, intermediates, timetable

Schedule = CronSchedule | IntervalSchedule | RRuleSchedule

# What a schedule with an interval counts from, so that it is the same schedule every time it is deployed.
_ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Timed:
    """A schedule, and in words what it does: Prefect's pages show a schedule's slug, and no recurrence rule."""

    role: str
    words: str
    schedule: Schedule

    @property
    def slug(self) -> str:
        """`yearly: week 9, Sat 03:00 Europe/Berlin`; the part before the colon identifies it."""
        return f"{self.role}: {self.words}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One deployment as it should be.

    Attributes:
        flow: Name of the flow in Prefect.
        name: Name of the deployment.
        entrypoint: Module path of the flow.
        parameters: Defaults of its runs, as JSON.
        parameter_schema: What the run form shows and the server enforces.
        tags: Sorted.
        description: Markdown.
        schedules: By role: yearly, daily, sweep.
        work_pool: Name.
        job_variables: Overrides of the pool's job template.
        version: Capstan's.
    """

    flow: str
    name: str
    entrypoint: str
    parameters: Mapping[str, Any]
    parameter_schema: Mapping[str, Any]
    tags: tuple[str, ...]
    description: str
    schedules: Mapping[str, Timed]
    work_pool: str
    job_variables: Mapping[str, Any] = field(default_factory=dict)
    version: str = version("capstan")

    @property
    def key(self) -> str:
        """FLOW/NAME, as Prefect writes it."""
        return f"{self.flow}/{self.name}"


def inventory_tag(name: str) -> str:
    """The tag that says which inventory a deployment belongs to."""
    return f"inventory:{name}"


def wanted(inventory: Inventory) -> list[Wanted]:
    """Every deployment of an inventory, in its order.

    Raises:
        InvalidInput: A flow is not installed here.
    """
    starts = timetable(inventory)
    halves = intermediates(inventory, starts)
    result: list[Wanted] = []
    for entry in inventory.domains:
        result += _of_domain(inventory, entry, starts.get(entry.name), halves.get(entry.name))
    if inventory.sweep.enabled:
        result.append(_sweep(inventory))
    return result


def schedule_of(start: Start) -> Schedule:
    """A start as Prefect's schedule."""
    if start.kind == "rrule":
        return RRuleSchedule(rrule=start.rule, timezone=start.time_zone)
    return CronSchedule(cron=start.rule, timezone=start.time_zone)


def _of_domain(inventory: Inventory, entry: DomainEntry, start: Start | None, half: Start | None) -> list[Wanted]:
    domain = inventory.trust_domain(entry)
    tags = tuple(sorted({
        "capstan", f"domain:{entry.name}", f"system:{entry.system.value}", inventory_tag(inventory.name),
        *inventory.defaults.tags, *entry.tags,
    }))  # fmt: skip
    parameters = {"domain": as_json(domain)}
    common: dict[str, Any] = {
        "name": entry.name,
        "tags": tags,
        "work_pool": inventory.pool(entry),
        "job_variables": inventory.defaults.job_variables | entry.job_variables,
    }
    about = describing.About(entry.description, domain, inventory.window(entry), inventory.zone(entry), start)
    flows = FLOWS[domain.system]
    by_schedule = (
        (flows.root, describing.rotate(about), start),
        (flows.intermediate, describing.intermediate(replace(about, start=half)), half),
    )
    result = [
        _deployment(entrypoint, parameters=parameters, description=described, schedules=_yearly(begins), **common)
        for entrypoint, described, begins in by_schedule
    ]
    by_hand = (
        (flows.roll_back, describing.roll_back), (flows.redate, describing.redate), (flows.enable, describing.enable),
        (flows.expired, describing.expired), (flows.webhooks, describing.webhooks),
    )  # fmt: skip
    result += [
        _deployment(entrypoint, parameters=parameters, description=describe(about), schedules={}, **common)
        for entrypoint, describe in by_hand
        if entrypoint
    ]
    if inventory.radar.enabled:
        zone, minute = inventory.zone(entry), _minute(entry.name)
        cron = inventory.radar.cron or f"{minute} 6 * * *"
        words = f"{f'cron {cron}' if inventory.radar.cron else f'06:{minute:02}'} {zone}"
        daily = Timed("daily", words, CronSchedule(cron=cron, timezone=zone))
        result.append(
            _deployment(
                RADAR,
                parameters=parameters | {"warn_before": as_json(inventory.radar.warn_before)},
                description=describing.radar(about),
                schedules=_by_role(daily) if entry.enabled else {},
                **common | {"job_variables": common["job_variables"] | inventory.radar.job_variables},
            )
        )
    return result


def _sweep(inventory: Inventory) -> Wanted:
    pool = inventory.sweep.work_pool or inventory.defaults.work_pool
    every = IntervalSchedule(interval=inventory.sweep.interval, anchor_date=_ANCHOR, timezone="UTC")
    minutes = inventory.sweep.interval.total_seconds() / 60
    return _deployment(
        SWEEP,
        name=inventory.name,
        parameters={
            "thresholds": as_json(inventory.sweep.thresholds),
            "tags": ["capstan", inventory_tag(inventory.name)],
        },
        description=describing.sweep(inventory.sweep.interval),
        tags=tuple(sorted({"capstan", inventory_tag(inventory.name), *inventory.defaults.tags})),
        schedules=_by_role(Timed("sweep", f"every {minutes:g} minutes", every)),
        work_pool=pool,
        job_variables=dict(inventory.defaults.job_variables),
    )


def _deployment(entrypoint: str, **fields: Any) -> Wanted:
    found = resolve(entrypoint)
    return Wanted(flow=found.name, entrypoint=entrypoint, parameter_schema=form_of(found), **fields)


def resolve(entrypoint: str) -> Flow[..., Any]:
    """The flow at a module path.

    Raises:
        InvalidInput: It is not installed here.
    """
    module, _, name = entrypoint.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(
            "a flow of Capstan is not installed",
            where=entrypoint,
            observed=str(error),
            expected="the whole package, of one version with the workers",
            next_command="capstan --version; pip install --force-reinstall capstan",
        ) from error
    assert isinstance(found, Flow)  # noqa: S101  # our own modules; a decorator that went missing is a bug
    return found


def form_of(found: Flow[..., Any]) -> dict[str, Any]:
    """A flow's parameters as JSON Schema, the same text every time.

    A set's default comes out in an order that differs from process to process; it is sorted.
    """
    schema: dict[str, Any] = json.loads(json.dumps(parameter_schema(found).model_dump(mode="json")))
    return {key: _with_sorted_defaults(value) for key, value in schema.items()}


def as_json(model: BaseModel) -> dict[str, Any]:
    """A model as plain JSON, the same text every time."""
    plain: dict[str, Any] = json.loads(model.model_dump_json())
    if isinstance(model, TrustDomain):
        plain["policy"]["approvals"] = sorted(plain["policy"]["approvals"])
    return plain


def _with_sorted_defaults(value: Any, *, inside: bool = False) -> Any:
    if isinstance(value, dict):
        return {key: _with_sorted_defaults(item, inside=inside or key == "default") for key, item in value.items()}
    if isinstance(value, list):
        items = [_with_sorted_defaults(item, inside=inside) for item in value]
        return sorted(items) if inside and all(isinstance(item, str) for item in items) else items
    return value


def _yearly(start: Start | None) -> dict[str, Timed]:
    return _by_role(Timed("yearly", start.words, schedule_of(start))) if start else {}


def _by_role(*timed: Timed) -> dict[str, Timed]:
    return {item.role: item for item in timed}


def _minute(name: str) -> int:
    """A minute of the hour of its own for each domain, so that they do not all start at once."""
    return hashlib.sha256(name.encode()).digest()[0] % 60
