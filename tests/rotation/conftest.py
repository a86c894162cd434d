"""One lab, one Prefect server and one imported command line for all tests of a worker; each case is a rotation."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

from tests.rotation.rotations import Rotations
from tests.rotation.runner import Runner
from tests.support.labs import RunningLab, start_lab
from tests.support.prefect_server import prefect_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Leaves live long enough that an identity that is slow on a busy machine costs nobody its leaf.
LEAF_SECONDS = int(os.environ.get("CAPSTAN_TEST_LEAF_SECONDS", "20"))  # longer on a machine that others use, too


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    running = _started(tmp_path_factory)
    yield running
    running.stop()


def _started(directories: pytest.TempPathFactory) -> RunningLab:
    # Half the usual handshakes a second: thousands in all, and the processors are left to the rotations.
    options = ["--size", "small", "--leaf-seconds", str(LEAF_SECONDS), "--probes-per-second", "30"]
    return start_lab(directories.mktemp("lab"), *options, program=("infra.lab",))


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    directory = tmp_path_factory.mktemp("runner")
    with (
        prefect_server(directory / "prefect") as environment,
        Runner(directory, {**environment, "CAPSTAN_HOME": str(directory / "home")}) as running,
    ):
        yield running


_numbers = itertools.count(1)


@pytest.fixture
def rotations(
    lab: RunningLab, runner: Runner, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rotations]:
    """A rotation of its own on the shared lab: own id, own home, and nothing of an earlier one in the cluster.

    A case that failed leaves a lab in the middle of a rotation: the next one gets another, and is judged by itself.
    """
    case = Rotations(lab, runner, tmp_path / "home", f"case-{next(_numbers)}")
    try:
        case.forget_earlier()
    except AssertionError:
        lab.stop()
        another = _started(tmp_path_factory)
        lab.directory, lab.process = another.directory, another.process
        case.forget_earlier()
    yield case
    lab.clear_faults()
