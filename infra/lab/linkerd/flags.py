"""Command-line flags and durations in Go's notation."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def parse_flags(args: Sequence[str]) -> dict[str, str]:
    """`-name=value` (or `--name=value`) pairs; a bare `-name` is "true"; the rest is ignored."""
    flags = {}
    for arg in args:
        if arg.startswith("-"):
            name, _, value = arg.lstrip("-").partition("=")
            flags[name] = value or "true"
    return flags


def parse_duration(text: str) -> timedelta:
    """A Go duration such as `24h0m0s`, `20s` or `1.5s`.

    Raises:
        ValueError: If it is none.
    """
    if not re.fullmatch(r"(\d+(\.\d+)?(h|ms|us|ns|m|s))+", text):
        raise ValueError(f"time: invalid duration {text!r}")
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|us|ns|m|s)", text)
    return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))


def format_duration(seconds: float) -> str:
    """Seconds as Go prints a duration of whole seconds: `24h0m0s`, `1m0s`, `24s`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    text = f"{hours}h" if hours else ""
    text += f"{minutes}m" if hours or minutes else ""
    return f"{text}{whole % 60}s"
