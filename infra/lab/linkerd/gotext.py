"""How Go programs print: times, quoted strings, and the log lines of the library Linkerd uses."""

from __future__ import annotations

import re
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


_ESCAPES = {"\a": "a", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", "\v": "v", '"': '"', "\\": "\\"}


def quote(text: str) -> str:
    """A Go double-quoted string (`%q`)."""
    return '"' + "".join(c if c.isprintable() and c not in _ESCAPES else _escape(c) for c in text) + '"'


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return f"\\{_ESCAPES[character]}"
    code = ord(character)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def log_line(moment: datetime, level: str, message: str, **fields: str) -> str:
    """`time="…" level=info msg="…"`, extra fields after it by name; a value is quoted only if it has to be (logrus)."""
    parts = [f'time="{rfc3339(moment)}"', f"level={level}", f"msg={_value(message)}"]
    parts += [f"{name}={_value(value)}" for name, value in sorted(fields.items())]
    return " ".join(parts)


def _value(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9\-._/@^+]*", text) else quote(text)
