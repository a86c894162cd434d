"""Istio labs as tests ask for them, one at a time, and the command line that turns them."""

from __future__ import annotations

import itertools
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.rotation.runner import Runner
from tests.rotation_istio.meshes import SMALL, Turned
from tests.support.labs import RunningLab, start_lab
from tests.support.prefect_server import prefect_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_numbers = itertools.count(1)


def environment_of(lab: RunningLab) -> dict[str, str]:
    """In which Azure's clients find the lab's Key Vault and Resource Manager; empty without them."""
    found: dict[str, str] = {}
    for name in ("vault.json", "arm.json"):
        file = lab.directory / "keyvault" / name
        if file.exists():
            found |= json.loads(file.read_text()).get("environment", {})
    return found


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as environment:
        yield environment


@contextmanager
def mesh(directory: Path, prefect: dict[str, str], *options: str) -> Iterator[tuple[RunningLab, Runner]]:
    """A lab, and a command line that reaches what belongs to it."""
    lab = start_lab(directory / "lab", *SMALL, *options, program=("infra.lab",))
    try:
        environment = {**prefect, **environment_of(lab), "CAPSTAN_HOME": str(directory / "home")}
        with Runner(directory, environment) as runner:
            yield lab, runner
    finally:
        lab.stop()


@pytest.fixture(scope="module")
def meshed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, prefect: dict[str, str]
) -> Iterator[tuple[RunningLab, Runner]]:
    """The lab that a module's LAB describes, for all its tests."""
    with mesh(tmp_path_factory.mktemp("mesh"), prefect, *request.module.LAB) as running:
        yield running


@pytest.fixture
def turned(meshed: tuple[RunningLab, Runner], tmp_path: Path) -> Callable[..., Turned]:
    """Makes a rotation of its own on the module's lab: own id, own home, nothing of an earlier one in the cluster."""
    lab, runner = meshed

    def make(system: str = "istio", *more: Any, home: Path | None = None) -> Turned:
        if system == "aks-istio":
            url = json.loads((lab.directory / "keyvault" / "vault.json").read_text())["url"]
            more = ("--key-vault", url, *more)
        case = Turned(lab, runner, home or tmp_path / "home", f"case-{next(_numbers)}", system=system, more=more)
        case.begin()
        return case

    return make
