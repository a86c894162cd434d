"""How long each workload was without a valid identity, as a table of at most 100 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.cli.output import print_table, stdout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from capstan.rotation.outcome import Outage


def print_outages(outages: Sequence[Outage]) -> None:
    """The longest first; nothing where nobody was without."""
    if not outages:
        return
    stdout().print()
    print_table(
        ("without identity", "since (UTC)", "until (UTC)", "for"),
        [(each.workload, _time(each.since), _time(each.until), span(each.seconds)) for each in outages],
    )


def span(seconds: float) -> str:
    """`48 s`, `21 min`, `5 h 03 min`, `2 d 4 h`."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _time(at: datetime) -> str:
    return f"{at:%m-%d %H:%M:%S}"
