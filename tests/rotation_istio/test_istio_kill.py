"""A rotation of Istio's root, killed at every step boundary and inside every write, and run again: it ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rotation.points import chains, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.rotation_istio.meshes import Turned

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("istio-kill")]

LAB = ("--system", "istio", "--ca", "plugin", "--istio-version", "1.30.1", "--multiroot", "--envoys", "2")
POINTS = listed(Path(__file__).with_name("points.txt"))
ROTATIONS = 30


def zones(points: Sequence[str]) -> Iterator[str]:
    """Leaves renew by themselves from the moment a Secret is written, and a phase that is done is passed over: so a
    rotation can die only once between that write and the end of the phase, or the refusal probe."""
    stretch = ""
    for point in points:
        phase = point.partition(" > ")[0]
        if point.endswith("secrets/cacerts, after its commit"):
            stretch = phase
        elif phase != stretch or "prove-refusal" in point:
            stretch = ""
        yield stretch


CHAINS = chains(POINTS, ROTATIONS, zones)


# One of them for every change, the others by `make test-long`.
@pytest.mark.parametrize(
    "points",
    [pytest.param(points, marks=[pytest.mark.long] if n else []) for n, points in enumerate(CHAINS)],
    ids=lambda points: f"{len(points)}-points",
)
def test_killed_at_each_of_these_points_and_run_again_it_finishes_with_one_new_root_and_drops_nothing(
    turned: Callable[..., Turned], points: list[str]
) -> None:
    case = turned()
    for point in points:
        ran = case.run(die_at=point)
        assert ran.killed, f"not killed at {point}: exit code {ran.code}, {ran.stderr[-2000:]}"
        assert point in ran.passed
        case.require_one_new_root_at_most()
    case.require_finished(case.run())
