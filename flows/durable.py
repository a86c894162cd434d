"""Waits that outlive the process: the flow leaves, and any worker of its pool goes on with the same run.

`Scheduled(when, name="Waiting")`, proposed by a run for itself and followed by Prefect's `Pause` signal, ends the
process without ending the run: no slot is held, the UI shows until when it waits, and a worker picks it up when it is
due, even if worker and server were down in between. The flow then starts at the top; every step finds what is done
already.

`propose_state_sync` is what Prefect's own `suspend_flow_run` calls, but it is not documented:
`tests/deployed/test_durable_wait.py` pins what we rest on.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import Pause
from prefect.states import Scheduled
from prefect.utilities.engine import propose_state_sync

from capstan.errors import InvalidInput, ServerFault

WAITING = "Waiting"

# A worker takes up to this long to notice a run that is due; asking for less only looks late.
_LEAST = timedelta(seconds=1)


def deployed() -> bool:
    """Whether this is a run of a deployment: only then does a worker resume it after it has left its process."""
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None


def flow_run_id() -> UUID:
    """Id of the flow run this is called in.

    Raises:
        InvalidInput: Called outside a flow run, or inside a task: only the flow itself can leave its process.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or TaskRunContext.get() is not None:
        raise InvalidInput(
            "only a flow can wait by leaving its process",
            where="flows/durable.py",
            observed="no flow run" if context is None else "a task run",
            expected="a call from the top flow of a deployment",
        )
    return context.flow_run.id


def leave_until(when: datetime, why: str) -> NoReturn:
    """End this process; the run waits in state `Waiting` and a worker goes on with it.

    Args:
        when: When to go on, aware UTC; a time that has passed means at once.
        why: What is waited for, shown as the state's message.

    Raises:
        Pause: Always; Prefect's signal to its engine to leave the run as it is.
        InvalidInput: Not in a deployed flow run, where nobody would resume it.
    """
    if not deployed():
        raise InvalidInput(
            "a wait cannot leave this process: no worker would resume it",
            where=why,
            observed="a flow run without a deployment",
            expected="a run of a deployment",
            next_command="capstan deploy INVENTORY, and launch the deployment",
        )
    propose(Scheduled(scheduled_time=max(when, datetime.now(UTC) + _LEAST), name=WAITING, message=why))


def propose(state: State[Any]) -> NoReturn:
    """Put this run into a state that needs no process, and leave.

    Raises:
        Pause: The server accepted.
        Refused: The server kept the run running (the state was entered before, under the same key).
        ServerFault: The server answered with a state nobody asked for.
    """
    with get_client(sync_client=True) as client:
        accepted = propose_state_sync(client, state, flow_run_id=flow_run_id())
    if accepted.is_running():
        raise Refused
    if accepted.type is not state.type:
        raise ServerFault(
            f"this run could not be put into state {state.name}",
            where="Prefect",
            observed=f"state {accepted.name}: {accepted.message}",
            expected=f"state {state.name}",
            next_command="look at the run's states in the Prefect UI; run it again, it goes on from what it observes",
        )
    raise Pause(state=accepted)


class Refused(Exception):
    """The server did not accept a state because the run had been in it before, under the same key."""
