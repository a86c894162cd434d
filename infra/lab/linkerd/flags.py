"""Command-line flags and durations in Go's notation."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

from infra.lab.linkerd.gotext import quote

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"([0-9]*\.?[0-9]*)([^0-9.]*)")


def parse_flags(args: Sequence[str]) -> dict[str, str]:
    """`-name=value` (or `--name=value`) pairs; a bare `-name` is "true"; the rest is ignored."""
    flags = {}
    for arg in args:
        if arg.startswith("-"):
            name, given, value = arg.lstrip("-").partition("=")
            flags[name] = value if given else "true"
    return flags


def parse_duration(text: str) -> timedelta:
    """A Go duration such as `24h0m0s`, `-20s`, `1.5s` or `0`.

    Raises:
        ValueError: If it is none, in Go's words (time.ParseDuration).
    """
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return timedelta()
    if not rest:
        raise ValueError(f"time: invalid duration {quote(text)}")
    seconds = 0.0
    while rest:
        found = _PART.match(rest)
        if found is None or found[1] in ("", "."):
            raise ValueError(f"time: invalid duration {quote(text)}")
        if not found[2]:
            raise ValueError(f"time: missing unit in duration {quote(text)}")
        if found[2] not in _UNITS:
            raise ValueError(f"time: unknown unit {quote(found[2])} in duration {quote(text)}")
        seconds += float(found[1]) * _UNITS[found[2]]
        rest = rest[found.end() :]
    return timedelta(seconds=-seconds if text.startswith("-") else seconds)


def format_duration(seconds: float) -> str:
    """Seconds as Go prints a duration of whole seconds: `24h0m0s`, `1m0s`, `24s`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    text = f"{hours}h" if hours else ""
    text += f"{minutes}m" if hours or minutes else ""
    return f"{text}{whole % 60}s"
