"""Cron schedules: five fields (minute, hour, day of month, month, day of week), @hourly and its kin. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, start=1)}
_DAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_LONGEST_SEARCH = timedelta(days=5 * 366)


@dataclass(frozen=True)
class Schedule:
    """Which minutes match."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool
    any_weekday: bool

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Raises ValueError for anything that is no schedule."""
        fields = _NAMED.get(text.strip(), text).split()
        if len(fields) != 5:
            raise ValueError(f"expected exactly 5 fields, found {len(fields)}: [{text}]")
        weekdays = _field(fields[4], 0, 7, _DAYS)
        return cls(
            _field(fields[0], 0, 59, {}),
            _field(fields[1], 0, 23, {}),
            _field(fields[2], 1, 31, {}),
            _field(fields[3], 1, 12, _MONTHS),
            frozenset(day % 7 for day in weekdays),
            fields[2].startswith(("*", "?")),
            fields[4].startswith(("*", "?")),
        )

    def next(self, after: datetime) -> datetime | None:
        """The first matching minute after `after` (in its own time zone); None when there is none within five years."""
        moment = after.replace(second=0, microsecond=0) + timedelta(minutes=1)
        end = moment + _LONGEST_SEARCH
        while moment < end:
            if moment.month not in self.months or not self._day_fits(moment):
                moment = moment.replace(hour=0, minute=0) + timedelta(days=1)
            elif moment.hour not in self.hours:
                moment = moment.replace(minute=0) + timedelta(hours=1)
            elif moment.minute not in self.minutes:
                moment += timedelta(minutes=1)
            else:
                return moment
        return None

    def _day_fits(self, moment: datetime) -> bool:
        """Day of month and day of week are alternatives when both are restricted (crontab(5))."""
        day, weekday = moment.day in self.days, (moment.weekday() + 1) % 7 in self.weekdays
        return day and weekday if self.any_day or self.any_weekday else day or weekday


def _field(text: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        if span in ("*", "?"):
            start, stop = low, high
        else:
            start = _value(first, names)
            stop = _value(last, names) if last else (high if step else start)
        if not low <= start <= stop <= high or (step and (not step.isdigit() or int(step) == 0)):
            raise ValueError(f"{part!r} is not within {low}-{high}")
        found |= set(range(start, stop + 1, int(step) if step else 1))
    return frozenset(found)


def _value(text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    if not text.isdigit():
        raise ValueError(f"{text!r} is no number")
    return int(text)
