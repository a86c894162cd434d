"""A flow that asks as a rotation does, with the product's own form and page, and needs no cluster."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect import flow

from capstan.approvals import Request
from flows.suspending import ask_by_suspending

PAGE = "\n".join(
    (
        "## prod-eu: begin phase trust of rotation 2026-11-22?", "", "### What changes", "",
        *(f"{n}. **step-{n}**: what this step changes, and where (eu-1)" for n in range(1, 15)),
        "", "### What if", "", "- **Way back:** the last line of the page", "",
        "### For signing and scripts", "", "```capstan-request", '{"only": "programs read this"}', "```", "",
    )
)  # fmt: skip


@flow(persist_result=False)
def asks(diary: str) -> None:
    """Asks one question, and writes down the answer."""
    until = datetime.now(UTC) + timedelta(hours=1)
    request = Request("prod-eu", "2026-11-22", "trust", "0" * 64, "request-1", until, "Begin?", PAGE)
    given = ask_by_suspending(request)
    Path(diary).write_text(f"{given.choice} by {given.by}, {given.ticket}: {given.comment}")
