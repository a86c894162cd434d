"""Runs in Prefect that wait for an approval: found, read, answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import httpx
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from capstan.approvals.block import RequestBlock, read_block, without_block
from capstan.cli.prefect_server import ui_url
from capstan.errors import Conflict, InvalidInput, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prefect.client.orchestration import SyncPrefectClient

TAG: Final = "capstan"
_PAGE: Final = 200  # Prefect's default largest answer
_LIST: Final = "capstan approve  # lists the runs that wait"


@dataclass(frozen=True, slots=True)
class AskedRun:
    """A run that waits for an approval.

    Attributes:
        id: Flow run id.
        name: Flow run name.
        page: What is asked, as markdown.
        block: The ids an answer is bound to.
        url: Where a browser shows it; a path only where no address of the UI is configured.
    """

    id: UUID
    name: str
    page: str
    block: RequestBlock
    url: str


def waiting(client: SyncPrefectClient) -> list[AskedRun]:
    """Every run of ours that waits for an approval, the one that ends first at the top."""
    found = []
    for run in _paused(client):
        try:
            found.append(_asked(client, run))
        except InvalidInput:
            continue  # paused by an operator, or a flow that only shares the tag
    return sorted(found, key=lambda run: run.block.until)


def find(client: SyncPrefectClient, wanted: str) -> AskedRun:
    """The waiting run that is meant.

    Args:
        wanted: Flow run id, the beginning of one, or the name of a run.

    Raises:
        NotFound: No run is.
        InvalidInput: Several are, or the run does not wait for an approval.
    """
    try:
        return _asked(client, client.read_flow_run(UUID(wanted)))
    except ValueError:
        pass
    except ObjectNotFound as error:
        raise _not_found(wanted, "no run with this id") from error
    runs = list(_paused(client))
    matching = [run for run in runs if run.name == wanted] or [
        run for run in runs if str(run.id).startswith(wanted.lower())
    ]
    if not matching:
        raise _not_found(wanted, f"{len(runs)} paused run(s), none of this name or id")
    if len(matching) > 1:
        raise InvalidInput(
            "more than one waiting run is meant", where=wanted,
            observed=", ".join(f"{str(run.id)[:8]} ({run.name})" for run in matching), expected="one",
            next_command="capstan approve ID",
        )  # fmt: skip
    return _asked(client, matching[0])


def send(client: SyncPrefectClient, run: AskedRun, answer: Mapping[str, str]) -> None:
    """Resume the run with an answer.

    Raises:
        InvalidInput: The server checked the answer against the form and refused it.
        Conflict: The run does not wait any more: somebody answered first.
    """
    result = client.resume_flow_run(run.id, dict(answer))
    if result.status is SetStateStatus.ACCEPT:
        return
    # HTTP 200 all the same: what became of it is only in the body.
    reason = getattr(result.details, "reason", None) or result.status.value
    if result.status is SetStateStatus.REJECT:
        raise InvalidInput(
            "the server refused the answer; nothing was decided", where=f"flow run {run.id}", observed=reason,
            expected="an answer that fits the form", next_command=f"capstan approve {run.id}",
        )  # fmt: skip
    raise Conflict(
        "the run does not wait for this answer any more", where=f"flow run {run.id}", observed=reason,
        expected="a suspended run", next_command=_LIST,
    )  # fmt: skip


def _paused(client: SyncPrefectClient) -> Iterator[FlowRun]:
    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.PAUSED]}}, "tags": {"all_": [TAG]}})
    offset = 0
    while True:
        runs = client.read_flow_runs(
            flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=_PAGE, offset=offset
        )
        yield from runs
        if len(runs) < _PAGE:
            return
        offset += len(runs)


def _asked(client: SyncPrefectClient, run: FlowRun) -> AskedRun:
    state = run.state
    keys = (state.state_details.run_input_keyset or {}) if state is not None else {}
    if state is None or state.type is not StateType.PAUSED or "description" not in keys:
        raise InvalidInput(
            "this run does not wait for an approval", where=f"flow run {run.id} ({run.name})",
            observed=f"state {state.name}" if state else "no state", expected="state Suspended", next_command=_LIST,
        )  # fmt: skip
    page = str(_input(client, run, keys["description"]) or "")
    return AskedRun(run.id, run.name, without_block(page), read_block(page), ui_url(f"/runs/flow-run/{run.id}"))


def _input(client: SyncPrefectClient, run: FlowRun, key: str) -> Any:
    try:
        return json.loads(client.read_flow_run_input(run.id, key))
    except (PrefectHTTPStatusError, httpx.HTTPStatusError) as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            return None
        raise


def _not_found(wanted: str, observed: str) -> NotFound:
    return NotFound(
        "no such run waits for an approval", where=wanted, observed=observed,
        expected="id, beginning of the id, or name of a suspended run", next_command=_LIST,
    )  # fmt: skip
