"""The sweep: starts runs of ours again that died, within a budget, and nothing else.

Prefect notices a killed process (the run is `Crashed`), but brings nothing back; and where worker and flow die
together, or worker and server while a run is being submitted, it notices nothing: the run stays `Running` or `Pending`
for ever. This flow runs every few minutes, looks for such runs and schedules them again *under the same run id*: the
flow starts at the top, and every step finds what is done.

It touches a run only when all of this holds: it carries our tag and belongs to a deployment; it has been dead for as
long as `SweepThresholds` says; nobody renews the Lease of its trust domain; the rotation record says that the rotation
is its own and has a restart left (`capstan.rotation.reviving`); and its state is still the one it was found dead in. A
run that is scheduled, waiting, suspended, paused, cancelling or ended otherwise is none of its business.

Two sweeps at once, or one killed anywhere, do no harm: the budget is spent, once per death, before the run starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import uuid4

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterParentTaskRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter, EventOccurredFilter
from prefect.logging import get_run_logger
from prefect.states import Crashed, Scheduled, to_state_create
from pydantic import ValidationError

from capstan.config import TrustDomain
from capstan.errors import CapstanError
from capstan.rotation.reviving import Death, Judgement, Ruling, SweepThresholds, judge
from capstan.systems.opening import connect
from flows.errors import prefect_errors
from flows.events import EventName, raise_event

TAG = "capstan"
RECOVERING = "Recovering"
HEARTBEAT = "prefect.flow-run.heartbeat"

# Read-only flows or flows that are run again in minutes anyway: nothing is lost when one of them dies.
_EXPENDABLE = ["sweep", "radar"]
_PAGE = 200  # Prefect's own limit of one answer
# Between the clocks of server and workers; only events of minutes ago could mislead.
_SKEW = timedelta(seconds=30)
_MORTAL = [StateType.RUNNING, StateType.PENDING, StateType.CRASHED]


Done = Literal["started again", "left dead", "nothing"]


@dataclass(frozen=True, slots=True)
class Swept:
    """What was done about one dead run.

    Attributes:
        run: Id of the flow run.
        was: In which way it was dead.
        why: Why that was done, or why nothing was.
    """

    run: str
    name: str
    domain: str
    was: str
    did: Done
    why: str


@flow(name="sweep", flow_run_name="sweep", retries=0, persist_result=False, log_prints=False)
def sweep(
    thresholds: SweepThresholds = SweepThresholds(),  # noqa: B008  # frozen
    tags: tuple[str, ...] = (TAG,),
) -> tuple[Swept, ...]:
    """Start again what died: rotations whose process, worker or server was killed.

    Args:
        thresholds: From when on a run counts as dead.
        tags: Only runs that carry all of these are looked at; `inventory:NAME` keeps two inventories apart.

    Returns:
        Every dead run and what was done about it.
    """
    log = get_run_logger()
    found: list[Swept] = []
    with prefect_errors("look for runs that died"), get_client(sync_client=True) as client:
        for run in _mortal_runs(client, tags):
            try:
                swept = _treat(client, run, thresholds)
            except CapstanError as error:
                swept = _swept(run, "", "nothing", str(error))
            if swept is None:
                continue
            say = log.info if swept.did == "nothing" else log.warning
            say("%s (%s) %s: %s; %s", swept.name, swept.run, swept.was, swept.did, swept.why)
            found.append(swept)
        if any(swept.did != "nothing" for swept in found):
            create_table_artifact(
                table=[asdict(swept) for swept in found],
                key="capstan-sweep",
                description="Runs that died, and what the sweep did about them.",
            )
    return tuple(found)


def why_dead(run: FlowRun, heartbeat: datetime | None, thresholds: SweepThresholds, now: datetime) -> str | None:
    """In which way a run is dead; None if it is not, or not for long enough.

    Args:
        heartbeat: When it last gave a sign of life, if it did since it entered its state.
        now: Aware UTC.
    """
    state = run.state
    if state is None:
        return None
    since = (now - state.timestamp).total_seconds()
    if (
        state.type is StateType.CRASHED
        and thresholds.crashed_seconds <= since <= thresholds.crashed_at_most_days * 86400
    ):
        return f"crashed {since:.0f} s ago"
    if state.type is StateType.PENDING and since >= thresholds.pending_seconds:
        return f"pending for {since:.0f} s"
    if state.type is StateType.RUNNING:
        silent = (now - max(state.timestamp, heartbeat or state.timestamp)).total_seconds()
        if silent >= thresholds.silent_seconds:
            return f"running, and silent for {silent:.0f} s"
    return None


def _mortal_runs(client: SyncPrefectClient, tags: tuple[str, ...]) -> Iterator[FlowRun]:
    """Our runs in a state in which a run can be dead, those aside that nobody misses."""
    with prefect_errors("look for runs that died"):
        expendable = {
            flow.id for flow in client.read_flows(flow_filter=FlowFilter(name=FlowFilterName(any_=_EXPENDABLE)))
        }
        wanted = FlowRunFilter(
            tags=FlowRunFilterTags(all_=sorted({TAG, *tags})),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_MORTAL)),
            # Nobody picks up a run without a deployment; a child run is brought back by its parent.
            deployment_id=FlowRunFilterDeploymentId(is_null_=False),
            parent_task_run_id=FlowRunFilterParentTaskRunId(is_null_=True),
        )
        runs: list[FlowRun] = []
        while page := client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE, offset=len(runs)):
            runs.extend(page)
    yield from (run for run in runs if run.flow_id not in expendable)


def _treat(client: SyncPrefectClient, run: FlowRun, thresholds: SweepThresholds) -> Swept | None:
    """Do what is to be done about one run; None if it lives."""
    with prefect_errors(f"look after flow run {run.name!r}"):
        was = why_dead(run, _last_heartbeat(client, run, thresholds), thresholds, datetime.now(UTC))
        if was is None or run.state is None:
            return None
        try:
            domain = TrustDomain.model_validate(run.parameters.get("domain"))
        except ValidationError as error:
            return _swept(run, was, "nothing", f"its parameter `domain` is no trust domain: {error.errors()[0]['msg']}")
        judgement = _judged(domain, run, run.state)
        match judgement.ruling:
            case Ruling.NOT_NOW | Ruling.NOT_ITS_OWN:
                return _swept(run, was, "nothing", judgement.why)
            case Ruling.EXHAUSTED:
                return _give_up(client, run, domain, was, judgement)
            case Ruling.REVIVE_UNRECORDED if _restarts(client, run) >= thresholds.tries_without_record:
                return _give_up(client, run, domain, was, judgement)
            case Ruling.REVIVE | Ruling.REVIVE_UNRECORDED:
                message = f"The sweep found it {was}; {judgement.why}"
                state: State[Any] = Scheduled(scheduled_time=datetime.now(UTC), name=RECOVERING, message=message)
                refused = _move(client, run, state)
                return _swept(run, was, "nothing" if refused else "started again", refused or judgement.why)


def _judged(domain: TrustDomain, run: FlowRun, state: State[Any]) -> Judgement:
    began = run.start_time or run.expected_start_time or run.created or state.timestamp
    death = Death(str(run.id), run.name, str(state.id), state.name or state.type.value, began)
    clusters = {}
    try:
        for reference in domain.clusters:
            clusters[reference.name] = connect(reference)
        return judge(domain.name, clusters, death)
    finally:
        for cluster in clusters.values():
            cluster.close()


def _last_heartbeat(client: SyncPrefectClient, run: FlowRun, thresholds: SweepThresholds) -> datetime | None:
    """The last sign of life since the run entered its state; asked only where it decides something."""
    if run.state is None or run.state.type is not StateType.RUNNING or why_dead(
        run, None, thresholds, datetime.now(UTC)
    ) is None:  # fmt: skip
        return None
    events = client.read_events(_about(run, HEARTBEAT, run.state.timestamp - _SKEW), limit=1).events
    return events[0].occurred if events else None


def _about(run: FlowRun, event: str, since: datetime) -> EventFilter:
    """The newest events of one name about a run."""
    return EventFilter(
        occurred=EventOccurredFilter(since=since, until=datetime.now(UTC) + _SKEW),
        event=EventNameFilter(name=[event]),
        any_resource=EventAnyResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
    )


def _restarts(client: SyncPrefectClient, run: FlowRun) -> int:
    """How often a sweep has started this run again: where no record counts, its own history does."""
    return sum(state.name == RECOVERING for state in client.read_flow_run_states(run.id))


def _give_up(client: SyncPrefectClient, run: FlowRun, domain: TrustDomain, was: str, judgement: Judgement) -> Swept:
    """Leave a run dead, and say so once for each death."""
    if run.state is not None and run.state.type is not StateType.CRASHED:
        # Whoever looks, and whoever launches next, must see that this run has ended.
        refused = _move(client, run, Crashed(message=f"The sweep found it {was}; no restart is left"))
        if refused:
            return _swept(run, was, "nothing", refused)
    told = (
        run.state is not None
        and client.read_events(_about(run, EventName.BUDGET_EXHAUSTED, run.state.timestamp - _SKEW), limit=1).events
    )
    if told:
        return _swept(run, was, "nothing", "no restart is left, and that was told")
    next_command = f"prefect flow-run logs {run.id}; when the cause is gone: prefect flow-run retry {run.id}"
    raise_event(
        EventName.BUDGET_EXHAUSTED, domain, judgement.rotation,
        {
            "message": f"{domain.name}: flow run {run.name!r} died again and again and is left dead ({judgement.why})",
            "state": was,
            "next_command": next_command,
        },
        run=(run.id, run.name),
    )  # fmt: skip
    return _swept(run, was, "left dead", f"{judgement.why}; next: {next_command}")


def _move(client: SyncPrefectClient, run: FlowRun, state: State[Any]) -> str:
    """Put a run into a state unless it has left the one it was found in; why not, or an empty string.

    The check is made twice: on the state's id, and by the server, in the request that writes, on its type. What slips
    between (another sweep) was told apart by the record already.
    """
    found = run.state
    now = client.read_flow_run(run.id).state
    if found is None or now is None or now.id != found.id:
        return f"its state has changed to {now.name if now else 'none'} meanwhile"
    create = to_state_create(state)
    create.state_details.flow_run_id = run.id
    create.state_details.transition_id = uuid4()
    wanted = FlowRunFilter(
        id=FlowRunFilterId(any_=[run.id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[found.type])),
    )
    answer = client.request(
        "POST",
        "/flow_runs/bulk_set_state",  # type: ignore[arg-type]  # a route of the server that the client does not list
        json={
            "flow_runs": wanted.model_dump(mode="json", exclude_unset=True),
            "state": create.model_dump(mode="json", serialize_as_any=True),
            "force": False,
            "limit": 1,
        },
    )
    results = answer.raise_for_status().json()["results"]
    if not results:
        return "its state has changed meanwhile"
    result = results[0]
    return (
        ""
        if result["status"] == "ACCEPT"
        else f"Prefect refused: {result['details'].get('reason') or result['status']}"
    )


def _swept(run: FlowRun, was: str, did: Done, why: str) -> Swept:
    parameter = run.parameters.get("domain")
    domain = str(parameter.get("name", "")) if isinstance(parameter, dict) else ""
    return Swept(str(run.id), run.name, domain, was, did, why)
