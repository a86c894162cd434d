"""Rotations are spread over the year: inside their windows, never two in one week, and nobody moves for a newcomer."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.window import MaintenanceWindow
from deployments.spread import Spreadable, distance, spread
from deployments.timetable import timetable, upcoming, weeks_that_fit
from tests.deployments.inventories import domains, inventory

NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True), unique=True, min_size=1, max_size=47)
FITS = tuple(range(3, 50))


def weeks_of(names: list[str]) -> dict[str, int]:
    return spread([Spreadable(name, FITS) for name in names], {})


@given(names=NAMES)
def test_no_two_domains_share_a_week_while_there_are_weeks_left(names: list[str]) -> None:
    weeks = weeks_of(names)
    assert len(set(weeks.values())) == len(names)
    assert set(weeks.values()) <= set(FITS)


@given(names=NAMES, new=st.integers(1, 5))
def test_a_domain_added_at_the_end_moves_nobody(names: list[str], new: int) -> None:
    before = weeks_of(names[:-new] or names[:1])
    assert {name: week for name, week in weeks_of(names).items() if name in before} == before


@given(names=st.lists(st.from_regex(r"[a-z]{8}", fullmatch=True), unique=True, min_size=2, max_size=20))
def test_a_domain_that_leaves_moves_only_those_that_had_made_way(names: list[str]) -> None:
    before, after = weeks_of(names), weeks_of(names[1:])
    moved = [name for name in after if after[name] != before[name]]
    assert all(distance(after[name], before[name]) > 0 for name in moved)
    assert len(moved) <= len(names) // 2


@given(count=st.integers(48, 150))
@settings(max_examples=20)
def test_with_more_domains_than_weeks_every_week_gets_its_even_share(count: int) -> None:
    weeks = list(weeks_of([f"domain-{number}" for number in range(count)]).values())
    crowds = [weeks.count(week) for week in FITS]
    assert max(crowds) - min(crowds) <= 1


def test_domains_on_one_cluster_are_kept_four_weeks_apart() -> None:
    shared = frozenset({"cluster-1"})
    weeks = spread([Spreadable(f"mesh-{number}", FITS, shared) for number in range(8)], {})
    ordered = sorted(weeks.values())
    assert min(later - earlier for earlier, later in pairwise(ordered)) >= 4


def test_a_week_that_a_domain_names_is_left_to_it() -> None:
    free = timetable(inventory(domains("prod-eu")))["prod-eu"].week
    text = domains("prod-eu") + f"  - {{name: z, clusters: [{{context: z}}], schedule: {{week: {free}}}}}\n"
    starts = timetable(inventory(text))
    assert starts["z"].week == free
    assert starts["prod-eu"].week != free


def test_a_disabled_domain_has_no_start() -> None:
    assert timetable(inventory(domains("a", more=", enabled: false"))) == {}


ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo"]


@pytest.mark.parametrize("zone", ZONES)
def test_prefects_own_scheduler_starts_every_domain_inside_its_window_for_ten_years(zone: str) -> None:
    head = (
        f"schemaVersion: 1\ndefaults:\n  time_zone: {zone}\n"
        '  maintenance_window: {days: [sunday], start: "02:00", end: "03:30"}\n'
    )
    fleet = inventory(domains(*(f"domain-{number}" for number in range(40))), head)
    for entry in fleet.domains:
        start = timetable(fleet)[entry.name]
        moments = upcoming(start, datetime(2026, 11, 22, tzinfo=UTC), 10)
        assert len(moments) == 10
        for moment in moments:
            local = moment.astimezone(ZoneInfo(zone))
            assert (local.hour, local.minute, local.isoweekday()) == (2, 0, 7), moment
            assert local.isocalendar().week == start.week
            assert fleet.window(entry).contains(moment, zone)


def test_weeks_whose_start_the_clocks_skip_are_not_used() -> None:
    window = MaintenanceWindow(days=("sunday",), start="02:00", end="05:00")
    # Last Sunday of March: ISO week 12 or 13 of every year.
    assert set(range(3, 50)) - set(weeks_that_fit(3, 49, window, "Europe/Berlin")) == {12, 13}
    assert set(weeks_that_fit(3, 49, window, "UTC")) == set(range(3, 50))


def test_a_fixed_date_begins_as_the_window_opens_on_it() -> None:
    head = 'schemaVersion: 1\ndefaults:\n  maintenance_window: {start: "21:30", end: "23:00"}\n'
    start = timetable(inventory(domains("a", more=', schedule: {date: "03-15"}'), head))["a"]
    assert [moment.isoformat() for moment in upcoming(start, datetime(2026, 11, 22, tzinfo=UTC), 2)] == [
        "2027-03-15T21:30:00+00:00", "2028-03-15T21:30:00+00:00",
    ]  # fmt: skip
