"""A rotation of the add-on's root, killed where it changes the vault's secrets and the add-on, and run again: it ends.

Everything else that it does, it does as a rotation of a plug-in root, which is killed at every point (test_istio_kill).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rotation.points import chains, listed
from tests.rotation_istio.meshes import require_listed_points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.rotation_istio.meshes import Turned

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200), pytest.mark.xdist_group("aks-istio-kill")]

LAB = ("--system", "aks-istio", "--ca-delivery", "csi")
ROTATIONS = 6
# Phases as they begin and end, and the record between them: one rotation dies at all of these.
AROUND = [
    "prepare > mint > end",
    "trust > widen-bundle/cluster > begin",
    "trust > widen-bundle/cluster > account bundle-widened, half-written",
    "issue > back-up-issuer/cluster > end",
    "issue > switch-issuer/cluster > account issuer-switched, half-written",
    "distrust > narrow-bundle/cluster > begin",
    "distrust > narrow-bundle/cluster > end",
    "finish > begin",
]


def own(points: Sequence[str]) -> list[str]:
    """The points that a rotation of a plug-in root does not have.

    A request to the vault is met at the step around it: what the vault's own killing and losing of answers does is
    tried with the vault (tests/vaults).
    """
    elsewhere = set(listed(Path(__file__).with_name("points.txt")))
    return [
        point
        for point in points
        if point.replace("aks-istio", "istio") not in elsewhere and "PUT /secrets/" not in point
    ]


def zones(points: Sequence[str]) -> Iterator[str]:
    """Once the last secret of a phase is written everything follows by itself, and a phase that is done is passed over:
    so a rotation can die only once from there to the end of the phase."""
    stretch = ""
    for point in points:
        phase = point.partition(" > ")[0]
        last = "vault.store/ca-key" if phase == "issue" else "vault.store/root-cert"
        if f"{last} > end" in point:
            stretch = phase
        elif phase != stretch:
            stretch = ""
        yield stretch


POINTS = listed(Path(__file__).with_name("points-aks.txt"))
CHAINS = [AROUND, *chains(own(POINTS), ROTATIONS, zones)]


def test_the_list_of_points_is_what_a_clean_run_passes(turned: Callable[..., Turned]) -> None:
    case = turned("aks-istio")
    ran = case.run()
    case.require_finished(ran)
    require_listed_points(ran, "points-aks.txt")


@pytest.mark.parametrize("points", CHAINS, ids=lambda points: f"{len(points)}-points")
def test_killed_around_every_change_of_the_vault_and_run_again_it_finishes_with_one_new_root(
    turned: Callable[..., Turned], points: list[str]
) -> None:
    case = turned("aks-istio")
    for point in points:
        ran = case.run(die_at=point)
        assert ran.killed, f"not killed at {point}: exit code {ran.code}, {ran.stderr[-2000:]}"
        assert point in ran.passed
        case.require_one_new_root_at_most()
    case.require_finished(case.run())
