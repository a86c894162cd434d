"""Maintenance windows: when something may begin, in the local time of the people who watch it."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Day = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
DAYS: tuple[Day, ...] = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def _known_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError) as error:  # unknown; not a relative path; a directory ("Europe")
        msg = f"{value!r} is no time zone of the IANA database, such as Europe/Berlin or UTC"
        raise ValueError(msg) from error
    return value


def _local_time(value: str) -> str:
    try:
        clock = time.fromisoformat(value)
    except ValueError:
        clock = None
    if clock is None or value != f"{clock:%H:%M}":
        msg = f"{value!r} is no time of day as HH:MM, such as 02:00"
        raise ValueError(msg)
    return value


TimeZone = Annotated[str, AfterValidator(_known_zone)]
LocalTime = Annotated[str, AfterValidator(_local_time)]


class MaintenanceWindow(BaseModel):
    """Days of the week, and from when until when on each of them, local time.

    A window whose end is not after its start ends on the next day; with both alike it lasts a whole day.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: tuple[Day, ...] = Field(default=DAYS, min_length=1, description="Days of the week on which it opens")
    start: LocalTime = Field(default="00:00", description="When it opens, HH:MM local time")
    end: LocalTime = Field(default="00:00", description="When it closes, HH:MM local time; next day if not after start")

    @property
    def opens(self) -> time:
        """When it opens, local."""
        return time.fromisoformat(self.start)

    @property
    def length(self) -> timedelta:
        """How long it is open on an ordinary day (a change of the clocks may shorten or stretch it by an hour)."""
        start, end = time.fromisoformat(self.start), time.fromisoformat(self.end)
        minutes = (end.hour - start.hour) * 60 + end.minute - start.minute
        return timedelta(minutes=minutes if minutes > 0 else minutes + 24 * 60)

    def contains(self, now: datetime, time_zone: str) -> bool:
        """Whether it is open at `now` (aware)."""
        local = now.astimezone(ZoneInfo(time_zone))
        return any(
            opening <= now < closing
            for opening, closing in (self._on(local.date() - timedelta(days=ago), time_zone) for ago in (0, 1))
            if DAYS[opening.astimezone(ZoneInfo(time_zone)).weekday()] in self.days
        )

    def next_opening(self, now: datetime, time_zone: str) -> datetime:
        """`now` while it is open, else when it opens next, aware UTC."""
        if self.contains(now, time_zone):
            return now
        today = now.astimezone(ZoneInfo(time_zone)).date()
        for ahead in range(9):
            day = today + timedelta(days=ahead)
            opening, _ = self._on(day, time_zone)
            if opening > now and DAYS[day.weekday()] in self.days:
                return opening
        raise AssertionError("a window has at least one day a week")

    def _on(self, day: date, time_zone: str) -> tuple[datetime, datetime]:
        zone = ZoneInfo(time_zone)
        opening = datetime.combine(day, self.opens, zone)
        closing = datetime.combine(day, self.opens) + self.length
        return opening.astimezone(UTC), closing.replace(tzinfo=zone).astimezone(UTC)

    def __str__(self) -> str:
        days = "every day" if len(self.days) == len(DAYS) else ", ".join(day[:3].capitalize() for day in self.days)
        return f"{days} {self.start}-{self.end}"


def exists(day: date, at: time, time_zone: str) -> bool:
    """Whether the clocks of a zone show `at` on `day` (not so in the hour that is skipped in spring; PEP 495)."""
    local = datetime.combine(day, at, ZoneInfo(time_zone))
    return local.astimezone(UTC).astimezone(ZoneInfo(time_zone)).replace(tzinfo=None) == local.replace(tzinfo=None)
