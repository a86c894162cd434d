"""What Prefect has: the deployments of our flows, as they are on the server now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowFilter,
    FlowFilterId,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import DeploymentSchedule, StateType
from prefect.client.schemas.responses import DeploymentResponse

_PAGE = 200  # Prefect's own limit of one answer

# A run in one of these may still go on; a scheduled one may have begun before, and wait.
_UNFINISHED = [
    StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING,
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Deployed:
    """One deployment on the server.

    Attributes:
        flow: Name of its flow.
        is_ours: Whether it carries the tag of the inventory that was asked for.
        found: As Prefect answered.
    """

    flow: str
    is_ours: bool
    found: DeploymentResponse

    @property
    def key(self) -> str:
        """FLOW/NAME, as Prefect writes it."""
        return f"{self.flow}/{self.found.name}"

    @property
    def id(self) -> UUID:
        """Prefect's id."""
        return self.found.id

    @property
    def schedules(self) -> Mapping[str, DeploymentSchedule]:
        """By role, which is the slug up to its colon; by slug or id where somebody added one more."""
        result: dict[str, DeploymentSchedule] = {}
        for schedule in self.found.schedules:
            role = (schedule.slug or "").partition(":")[0]
            result[role if role and role not in result else schedule.slug or str(schedule.id)] = schedule
        return result


def read_deployed(client: SyncPrefectClient, flows: Iterable[str], tag: str) -> dict[str, Deployed]:
    """Every deployment of the named flows, and every one that carries `tag`, by key."""
    named = FlowFilter(name=FlowFilterName(any_=sorted(set(flows))))
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[tag]))
    found = {item.id: item for item in _pages(client, flow_filter=named)}
    found |= {item.id: item for item in _pages(client, deployment_filter=tagged)}
    names = _flow_names(client, {item.flow_id for item in found.values()})
    deployed = (Deployed(names[item.flow_id], tag in item.tags, item) for item in found.values())
    return {item.key: item for item in deployed}


def live_runs(client: SyncPrefectClient, deployment: UUID) -> list[str]:
    """Names of the runs that have begun and not ended, or that a person has put on the schedule."""
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED)),
        ),
        limit=_PAGE,
    )
    return [
        f"{run.name} ({run.state_name})"
        for run in runs
        if run.run_count > 0 or not run.auto_scheduled or run.state_type is not StateType.SCHEDULED
    ]


def _pages(client: SyncPrefectClient, **filters: Any) -> Sequence[DeploymentResponse]:
    found: list[DeploymentResponse] = []
    while True:
        page = client.read_deployments(**filters, limit=_PAGE, offset=len(found))
        found += page
        if len(page) < _PAGE:
            return found


def _flow_names(client: SyncPrefectClient, ids: set[UUID]) -> dict[UUID, str]:
    names: dict[UUID, str] = {}
    ordered = sorted(ids)
    for at in range(0, len(ordered), _PAGE):
        some = FlowFilter(id=FlowFilterId(any_=ordered[at : at + _PAGE]))
        names |= {flow.id: flow.name for flow in client.read_flows(flow_filter=some, limit=_PAGE)}
    return names
