"""Each fault of the API in each phase of a rotation: one clear error, nothing lost, and the same command goes on.

A chain is one rotation that meets one fault after the other. `make test-long` runs all of them, continuous integration
the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.rotation.faulty import FAULTS, PHASES, Faulty, lab_whose_leaves_outlive_a_fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rotation.rotations import Rotations
    from tests.support.labs import RunningLab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# One rotation with another fault in each phase: what every change is tested by.
SAMPLE = [
    ("prepare", "503"),
    ("trust", "403"),
    ("issue", "lost answers"),
    ("wait", "refused connections"),
    ("distrust", "429"),
]
CHAINS = 3


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    running = lab_whose_leaves_outlive_a_fault(tmp_path_factory.mktemp("lab"))
    yield running
    running.stop()


def chains() -> Iterator[list[tuple[str, str]]]:
    """All cells, shared out; in a phase the faults whose write is carried out come last, each chain having one."""
    ordered = sorted(FAULTS, key=lambda name: FAULTS[name].last)
    for number in range(CHAINS):
        yield [(phase, name) for phase in PHASES for name in ordered[number::CHAINS]]


def cells(names: list[tuple[str, str]], marks: list[pytest.MarkDecorator]) -> object:
    rows = [
        pytest.mark.proves("faults", name, f"{phase}: one error with the next command, nothing lost, going on works")
        for phase, name in names
    ]
    return pytest.param(names, marks=[*marks, *rows], id=f"{len(names)}-faults-{names[0][1].replace(' ', '-')}")


@pytest.mark.parametrize(
    "met", [cells(SAMPLE, []), *(cells(names, [pytest.mark.long]) for names in chains())]
)  # fmt: skip
def test_stopped_by_each_of_these_faults_and_run_again_it_finishes_with_one_new_root_and_drops_nothing(
    rotations: Rotations, met: list[tuple[str, str]]
) -> None:
    faulty = Faulty(rotations)
    for phase, name in met:
        faulty.meet(phase, name)
    rotations.require_finished(rotations.run())


BACK = {
    "prepare": "500",
    "trust": "lost answers",
    "issue": "timeouts",
    "wait": "403",
    "distrust": "dropped connections",
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("phase", "name"),
    [
        pytest.param(
            phase, name,
            marks=pytest.mark.proves("faults", name, f"{phase}: going back works after it, and drops nothing"),
            id=phase,
        )
        for phase, name in BACK.items()
    ],
)  # fmt: skip
def test_stopped_by_a_fault_in_this_phase_it_goes_back(rotations: Rotations, phase: str, name: str) -> None:
    Faulty(rotations).meet(phase, name)
    rotations.require_rolled_back(rotations.roll_back(), refused=phase != "prepare")
