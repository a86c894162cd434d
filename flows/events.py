"""Events of our own on Prefect's event stream: what automations notify of, and what an operator may filter by.

An event tells; it never decides. So raising one never fails and never blocks a rotation: without a flow run around it,
or with a server that does not answer, it is dropped. What must not be missed (a run that failed, a run that waits for
approval) is also told by Prefect's own state events, which the server itself writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event
from prefect.logging import get_logger

if TYPE_CHECKING:
    from uuid import UUID

    from capstan.config import TrustDomain

_log = get_logger("capstan")

MAX_TEXT = 4000  # characters of one payload value; a message of a chat system, and far below Prefect's 1.5 MB an event


class EventName(StrEnum):
    """Every event Capstan raises. That a run waits for approval is Prefect's own `prefect.flow-run.Suspended`."""

    FINISHED = "capstan.finished"
    """The old root is refused everywhere; payload: old_roots, new_root."""
    FAILED = "capstan.failed"
    """The run ended with an error; payload: error, what, where, observed, expected, next_command."""
    ROLLED_BACK = "capstan.rolled-back"
    """The domain is back on its old roots; payload: old_roots, new_root."""
    STRAGGLER = "capstan.straggler"
    """A wait passed its bound and somebody has not arrived; payload: waiting_for, next_command."""
    EXPIRY = "capstan.expiry"
    """A certificate ends soon, or a check failed; payload: level, findings."""
    BUDGET_EXHAUSTED = "capstan.budget-exhausted"
    """A run died more often than is normal and is left dead; payload: state, next_command."""


def resource_id(domain: str) -> str:
    """The resource a trust domain is on the event stream."""
    return f"capstan.domain.{domain}"


def raise_event(
    name: EventName,
    domain: TrustDomain,
    rotation: str | None = None,
    payload: Mapping[str, Any] | None = None,
    *,
    run: tuple[UUID, str] | None = None,
) -> None:
    """Tell the event stream; never raises, never waits.

    The run around the call, its deployment and its tags become related resources by themselves.

    Args:
        domain: The trust domain it is about.
        rotation: Rotation id, where there is one.
        payload: What a reader needs to act: values that JSON can say, no key material. A text `message` is what
            notifications show; long texts are cut.
        run: Id and name of the run it is about, where that is not the run that tells.
    """
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return  # Prefect would start a server of its own just for this
    try:
        related = [] if run is None else [_flow_run(*run)]
        emit_event(
            str(name),
            resource={
                "prefect.resource.id": resource_id(domain.name),
                "prefect.resource.name": domain.name,
                "capstan.system": domain.system.value,
                "capstan.rotation": rotation or "",
            },
            related=related,
            payload={"domain": domain.name, "rotation": rotation or "", **_sayable(payload or {})},
        )
    except Exception as error:  # noqa: BLE001  # an event that cannot be sent must not end a rotation
        _log.warning("could not raise %s for %s: %s", name, domain.name, error)


def _flow_run(run: UUID, name: str) -> dict[str, str]:
    return {
        "prefect.resource.id": f"prefect.flow-run.{run}",
        "prefect.resource.role": "flow-run",
        "prefect.resource.name": name,
    }


def _sayable(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload as plain JSON values, texts cut to a bound."""
    plain = json.loads(json.dumps(dict(payload), default=str))
    return {key: _cut(value) for key, value in plain.items()}


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else value[: MAX_TEXT - 1] + "…"
    if isinstance(value, list):
        return [_cut(item) for item in value]
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    return value
