"""A fault that may pass (an API server that is being upgraded, a vault that throttles): leave, and come back later.

Each step has tried for about a minute by then. Rotations last days: a run that failed for good each time a cluster was
away for five minutes would page somebody for nothing. How often a run has come back for a fault is read from its own
states, since the record may be what cannot be reached; any other wait in between begins the count anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException

from capstan.errors import Retryable
from flows.durable import WAITING, deployed, flow_run_id, leave_until

_SECONDS: Final = (15, 60, 120, 300, 600, 900, 900, 900, 900, 900)
DELAYS: Final = tuple(timedelta(seconds=seconds) for seconds in _SECONDS)  # together 1 h 33 min
_AGAIN: Final = "comes back after a fault"


def come_back_later(error: Retryable) -> None:
    """Leave the process and come back, in a deployment; returns where that is of no use (any more).

    Raises:
        Pause: The process is left; the run goes on later.
    """
    number = _tried()
    if number < len(DELAYS):
        why = f"{_AGAIN}, {number + 1} of {len(DELAYS)}: {error.what} ({error.where}): {error.observed}"
        leave_until(datetime.now(UTC) + DELAYS[number], why)


def has_tries_left() -> bool:
    """Whether `come_back_later` would leave the process; not where Prefect cannot be asked."""
    try:
        return _tried() < len(DELAYS)
    except (PrefectException, httpx.HTTPError):
        return False


def _tried() -> int:
    """How often the run around the call has come back for a fault; all tries where nobody would bring it back."""
    if not deployed():
        return len(DELAYS)
    with get_client(sync_client=True) as client:
        return times(client.read_flow_run_states(flow_run_id()))


def times(states: Iterable[State[object]]) -> int:
    """How often the run has come back for a fault since it last left its process for any other reason."""
    count = 0
    for state in sorted(states, key=lambda state: state.timestamp, reverse=True):
        if state.name == WAITING and (state.message or "").startswith(_AGAIN):
            count += 1
        elif state.name in (WAITING, "Suspended"):
            break
    return count
