"""When each domain's rotation begins: one schedule a year, inside the maintenance window, in local time.

Weeks are ISO weeks, so that "never two domains in one week" holds whatever day their windows open on. The schedules
are Prefect's own classes, and `upcoming` asks Prefect's own scheduler: what is shown here is what the server will do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise

from capstan.window import DAYS, Day, MaintenanceWindow, exists
from deployments.inventory import DomainEntry, Inventory, Schedule
from deployments.spread import Spreadable, distance, spread

# Gregorian weekdays and leap years repeat after 28 years (until 2100), and so do ISO weeks and changes of the clocks.
CYCLE = range(2026, 2026 + 28)


@dataclass(frozen=True, slots=True)
class Start:
    """When a rotation begins, year after year.

    Attributes:
        rule: RFC 5545 recurrence rule (with `rrule` set) or cron expression.
        kind: rrule or cron.
        time_zone: IANA name.
        week: ISO week, where it is one and the same each year.
        how: week, date, cron or spread: who chose it.
        words: The rule for people, such as `week 9, Sat 03:00 Europe/Berlin`.
    """

    rule: str
    kind: str
    time_zone: str
    week: int | None
    how: str
    words: str


def timetable(inventory: Inventory) -> dict[str, Start]:
    """The start of every enabled domain; deterministic, and no later domain in the file moves an earlier one."""
    starts: dict[str, Start] = {}
    taken: dict[str, int] = {}
    shared: dict[str, frozenset[str]] = {}
    free: list[Spreadable] = []
    for entry in inventory.domains:
        if not entry.enabled:
            continue
        zone, window = inventory.zone(entry), inventory.window(entry)
        clusters = cluster_keys(inventory, entry)
        if entry.schedule.spread:
            fits = tuple(weeks_that_fit(inventory.defaults.weeks.first, inventory.defaults.weeks.last, window, zone))
            free.append(Spreadable(entry.name, fits, clusters))
            continue
        starts[entry.name] = explicit(entry.schedule, window, zone)
        shared[entry.name] = clusters
        taken |= {f"{entry.name}/{week}": week for week in _weeks_of(starts[entry.name], entry.schedule)}
        shared |= {f"{entry.name}/{week}": clusters for week in _weeks_of(starts[entry.name], entry.schedule)}
    weeks = spread(free, taken, shared)
    for entry in inventory.domains:
        if entry.name in weeks and entry.enabled:
            zone, window = inventory.zone(entry), inventory.window(entry)
            starts[entry.name] = weekly(weeks[entry.name], window, zone, "spread")
    return starts


def intermediates(inventory: Inventory, starts: Mapping[str, Start]) -> dict[str, Start]:
    """When the intermediate alone is rotated, of every domain that wants it: half a year after the root, if left open.

    Args:
        starts: Of the roots, as `timetable` has them.
    """
    found: dict[str, Start] = {}
    for entry in inventory.domains:
        schedule, start = entry.schedule_intermediate, starts.get(entry.name)
        if schedule is None or start is None:
            continue
        zone, window = inventory.zone(entry), inventory.window(entry)
        if not schedule.spread:
            found[entry.name] = explicit(schedule, window, zone)
        elif start.week is not None:
            week, weeks = start.week, inventory.defaults.weeks
            fits = weeks_that_fit(weeks.first, weeks.last, window, zone)
            # As far from the root's week as the year allows; of two equally far, the later in the year.
            farthest = max(fits, key=lambda other: (distance(week, other), other), default=None)
            if farthest is not None:
                found[entry.name] = weekly(farthest, window, zone, "spread")
    return found


def explicit(schedule: Schedule, window: MaintenanceWindow, zone: str) -> Start:
    """The start an inventory names."""
    if schedule.week is not None:
        return weekly(schedule.week, window, zone, "week")
    if schedule.date is not None:
        month, day = (int(part) for part in schedule.date.split("-"))
        cron = f"{window.opens.minute} {window.opens.hour} {day} {month} *"
        return Start(cron, "cron", zone, None, "date", f"{schedule.date} {window.start} {zone}")
    assert schedule.cron is not None  # noqa: S101  # for the type checker: a spread schedule has no explicit start
    return Start(schedule.cron, "cron", zone, None, "cron", f"cron {schedule.cron} {zone}")


def weekly(week: int, window: MaintenanceWindow, zone: str, how: str) -> Start:
    """Once a year, as the window first opens in an ISO week (RFC 5545 section 3.3.10, BYWEEKNO)."""
    day = first_day(window)
    rule = (
        f"DTSTART:20200101T000000\nRRULE:FREQ=YEARLY;BYWEEKNO={week};BYDAY={day[:2].upper()};"
        f"BYHOUR={window.opens.hour};BYMINUTE={window.opens.minute};BYSECOND=0"
    )
    return Start(rule, "rrule", zone, week, how, f"week {week}, {day[:3].capitalize()} {window.start} {zone}")


def first_day(window: MaintenanceWindow) -> Day:
    """The day of an ISO week (Monday first) on which a window first opens."""
    return min(window.days, key=DAYS.index)


def weeks_that_fit(first: int, last: int, window: MaintenanceWindow, zone: str) -> Iterator[int]:
    """The weeks in which the window's start is a time that exists, every year: clocks skip an hour in spring.

    Prefect's scheduler would begin an hour before the window there.
    """
    return (week for week in range(first, last + 1) if not skipped(week, window, zone))


@lru_cache(maxsize=4096)
def skipped(week: int, window: MaintenanceWindow, zone: str) -> date | None:
    """The first day on which the clocks skip the start of the window in an ISO week; None if they never do."""
    weekday = DAYS.index(first_day(window)) + 1
    days = (date.fromisocalendar(year, week, weekday) for year in CYCLE)
    return next((day for day in days if not exists(day, window.opens, zone)), None)


def upcoming(start: Start, now: datetime, count: int = 1) -> list[datetime]:
    """The next starts, aware, as Prefect's scheduler finds them.

    Raises:
        ValueError: A cron expression or rule that Prefect does not understand.
    """
    from prefect.server.schemas.schedules import CronSchedule, RRuleSchedule

    schedule = (
        RRuleSchedule(rrule=start.rule, timezone=start.time_zone)
        if start.kind == "rrule"
        else CronSchedule(cron=start.rule, timezone=start.time_zone)
    )
    return list(asyncio.run(schedule.get_dates(n=count, start=now)))


def cluster_keys(inventory: Inventory, entry: DomainEntry) -> frozenset[str]:
    """What tells a domain's clusters from others': how the workers of its pool reach them."""
    return frozenset(
        f"{inventory.pool(entry)}|{cluster.kubeconfig or ''}|{cluster.context or ''}" for cluster in entry.clusters
    )


def longest_gap(starts: list[datetime]) -> timedelta:
    """The longest time between two consecutive starts."""
    return max((later - earlier for earlier, later in pairwise(starts)), default=timedelta(0))


def _weeks_of(start: Start, schedule: Schedule) -> set[int]:
    """The ISO weeks an explicit start can fall in; a cron expression is not looked into."""
    if start.week is not None:
        return {start.week}
    if schedule.date is None:
        return set()
    month, day = (int(part) for part in schedule.date.split("-"))
    return {date(year, month, day).isocalendar().week for year in CYCLE}


def by_week(starts: Mapping[str, Start]) -> dict[int, list[str]]:
    """Names of the domains that begin in each week."""
    result: dict[int, list[str]] = {}
    for name, start in starts.items():
        if start.week is not None:
            result.setdefault(start.week, []).append(name)
    return result
