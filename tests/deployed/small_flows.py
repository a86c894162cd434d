"""Flows of a few lines that leave their process the way a rotation does, for a worker to run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect import flow

from capstan.approvals import Request
from capstan.errors import Unreachable
from flows.durable import leave_until
from flows.faults import come_back_later
from flows.suspending import ask_by_suspending


@flow(persist_result=False)
def waits(diary: str, seconds: float) -> str:
    """Leaves until a deadline that it keeps itself, as a rotation keeps it in the cluster."""
    path = Path(diary)
    if not path.exists():
        path.write_text((datetime.now(UTC) + timedelta(seconds=seconds)).isoformat())
    deadline = datetime.fromisoformat(path.read_text().splitlines()[0])
    with path.open("a") as file:
        file.write("\nlooked")
    if datetime.now(UTC) < deadline:
        leave_until(deadline, "waits for the deadline")
    return "done"


@flow(persist_result=False)
def meets_a_fault() -> None:
    """Its cluster does not answer."""
    error = Unreachable("no answer", where="https://prod.invalid", observed="connection refused")
    come_back_later(error)
    raise error


@flow(persist_result=False)
def asks(diary: str, approvers: tuple[str, ...] = ()) -> None:
    """Asks one question, and writes down the answer."""
    request = Request(
        "prod", "2026-11-22", "trust", "0" * 64, "request-1", datetime.now(UTC) + timedelta(hours=1),
        "Begin?", "# Begin?", approvers=approvers,
    )  # fmt: skip
    decision = ask_by_suspending(request)
    Path(diary).write_text(f"{decision.choice} by {decision.by}, {decision.ticket}, answer {decision.answered}")
