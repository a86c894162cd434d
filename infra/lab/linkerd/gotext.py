"""How Go programs print: times, quoted strings, and the log lines of the library Linkerd uses."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

_PROCESS_START = time.monotonic_ns()


def rfc3339(moment: datetime) -> str:
    """`2026-11-21T20:26:58Z`; the fraction is cut off, not rounded."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def go_time(moment: datetime) -> str:
    """A time as Go's `String` prints it: `2026-11-21 20:26:58.123456 +0000 UTC`, trailing zeros dropped."""
    moment = moment.astimezone(UTC)
    text = moment.strftime("%Y-%m-%d %H:%M:%S")
    if moment.microsecond:
        text += f".{moment.microsecond:06d}".rstrip("0")
    return f"{text} +0000 UTC"


def go_now(moment: datetime) -> str:
    """A time just taken from the clock: as `go_time`, with the monotonic reading Go appends to such times."""
    seconds = (time.monotonic_ns() - _PROCESS_START) / 1e9
    return f"{go_time(moment)} m=+{seconds:.9f}"


def quote(text: str) -> str:
    """A Go double-quoted string (`%q`), for the characters that occur in names and messages."""
    return json.dumps(text, ensure_ascii=False)


def log_line(moment: datetime, level: str, message: str, **fields: str) -> str:
    """`time="…" level=info msg="…"`, extra fields after it."""
    parts = [f'time="{rfc3339(moment)}"', f"level={level}", f"msg={quote(message)}"]
    parts += [f"{name}={quote(value)}" for name, value in fields.items()]
    return " ".join(parts)
