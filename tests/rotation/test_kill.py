"""Killed at every step boundary and inside every write, and run again: every rotation ends, and nobody noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.rotation.points import AFTER, BEFORE, chains, listed

if TYPE_CHECKING:
    from tests.rotation.rotations import Rotations

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROTATIONS = 16
# What only a run that goes on does, and what only the clock decides; each can be met again and again.
LOCK = [f"{what}, {when}" for what in ("lock taken: PUT", "lock renewed") for when in (BEFORE, AFTER)]
CHAINS = [*chains(listed(), ROTATIONS), ["begin > begin", *LOCK]]


def test_the_list_of_points_is_what_a_clean_run_passes(rotations: Rotations) -> None:
    ran = rotations.run()
    rotations.require_finished(ran)
    # Renewals of the lock, repeated restarts of one workload, and looks come as often as the clock has them come.
    by_the_clock = ("lock renewed", "account look", "account handshakes")
    passed = [
        point
        for point in ran.passed
        if not any(word in point for word in by_the_clock) and not ("PATCH" in point and "#" in point)
    ]
    assert (set(listed()) - set(passed), set(passed) - set(listed())) == (set(), set()), "(not met, not listed)"
    assert len(passed) == len(listed())


# Most of them are `long`: run by `make test-long`, and not by every change.
@pytest.mark.parametrize(
    "points",
    [pytest.param(points, marks=[pytest.mark.long] if n % 9 else []) for n, points in enumerate(CHAINS)],
    ids=lambda points: f"{len(points)}-points",
)
def test_killed_at_each_of_these_points_and_run_again_it_finishes_with_one_new_root_and_drops_nothing(
    rotations: Rotations, points: list[str]
) -> None:
    for point in points:
        ran = rotations.run(die_at=point)
        assert ran.killed, f"not killed at {point}: exit code {ran.code}, {ran.stderr[-2000:]}"
        assert point in ran.passed
        rotations.require_one_new_root_at_most()
    rotations.require_finished(rotations.run())
