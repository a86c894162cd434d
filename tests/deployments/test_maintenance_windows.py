"""Maintenance windows are read in local time, over midnight and over changes of the clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from capstan.window import DAYS, MaintenanceWindow

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = BERLIN) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def test_a_window_is_open_from_its_start_until_before_its_end() -> None:
    window = MaintenanceWindow(days=("saturday",), start="03:00", end="07:00")
    moments = ["2027-01-16 02:59", "2027-01-16 03:00", "2027-01-16 06:59", "2027-01-16 07:00", "2027-01-17 04:00"]
    assert [window.contains(at(moment), BERLIN) for moment in moments] == [False, True, True, False, False]


def test_a_window_over_midnight_belongs_to_the_day_it_opens_on() -> None:
    window = MaintenanceWindow(days=("saturday",), start="22:00", end="04:00")
    assert window.length == timedelta(hours=6)
    assert window.contains(at("2027-01-17 03:00"), BERLIN)  # Sunday morning, opened on Saturday
    assert not window.contains(at("2027-01-16 03:00"), BERLIN)  # Saturday morning


def test_without_limits_it_is_always_open() -> None:
    window = MaintenanceWindow()
    assert window.length == timedelta(days=1)
    assert window.contains(at("2027-03-28 02:30"), BERLIN)
    assert str(window) == "every day 00:00-00:00"


def test_the_next_opening_keeps_local_time_over_a_change_of_the_clocks() -> None:
    window = MaintenanceWindow(days=("sunday",), start="04:00", end="06:00")
    assert window.next_opening(at("2027-03-27 12:00"), BERLIN) == at("2027-03-28 04:00")
    assert window.next_opening(at("2027-03-28 05:00"), BERLIN) == at("2027-03-28 05:00")  # it is open
    assert window.next_opening(at("2027-03-28 06:00"), BERLIN) == at("2027-04-04 04:00")


@given(
    now=st.datetimes(datetime(2026, 1, 1), datetime(2034, 1, 1)),  # noqa: DTZ001  # made aware below
    days=st.sets(st.sampled_from(DAYS), min_size=1),
    start=st.times(),
    end=st.times(),
    zone=st.sampled_from([BERLIN, "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "UTC"]),
)
def test_the_next_opening_is_in_the_window_and_never_more_than_a_week_away(
    now: datetime, days: set[str], start: object, end: object, zone: str
) -> None:
    window = MaintenanceWindow.model_validate({"days": sorted(days), "start": f"{start:%H:%M}", "end": f"{end:%H:%M}"})
    moment = now.replace(tzinfo=UTC)
    opening = window.next_opening(moment, zone)
    assert moment <= opening <= moment + timedelta(days=7, hours=2)
    assert opening == moment or window.contains(opening, zone) or window.length < timedelta(hours=1)


@pytest.mark.parametrize("text", ["2:00", "24:00", "02:00:00", "noon", "02:60", ""])
def test_a_time_that_is_not_hh_mm_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="no time of day as HH:MM"):
        MaintenanceWindow(start=text)
