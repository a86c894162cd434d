"""What a message tells to type: the command that goes on with a rotation, or turns it, names its kind."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, get_args

import pytest

from capstan.cli.entry_points import _ROTATE, What, kind_of, require_rotation, roll_back_flow, rotation_flow
from capstan.cluster.record import Kind
from capstan.config import System
from capstan.rotation.naming import rotate_command

if TYPE_CHECKING:
    from collections.abc import Iterator


def kinds_of(system: System) -> Iterator[Kind]:
    return (kind for kind in get_args(Kind) if any(s is system and kind_of(what) == kind for s, what in _ROTATE))


@pytest.mark.parametrize("system", System, ids=lambda system: system.value)
def test_the_command_that_goes_on_is_one_that_the_command_line_takes_for_that_kind(system: System) -> None:
    kinds = list(kinds_of(system))
    assert "anchor" in kinds
    assert "issuer" in kinds
    for kind in kinds:
        _, rotate, *option = rotate_command(system, kind).split()
        assert rotate == "rotate"
        what = What(option[1]) if option else What.ROOT
        require_rotation(system, what)
        assert kind_of(what) == kind


def test_the_systems_own_word_for_the_issuer_is_used() -> None:
    assert rotate_command(System.LINKERD, "issuer") == "capstan rotate --what issuer"
    assert rotate_command(System.ISTIO, "issuer") == "capstan rotate --what intermediate"


@pytest.fixture(scope="module")
def prefect() -> None:
    """Imported once: that takes longer than all that is asked here."""
    importlib.import_module("flows.linkerd")


@pytest.mark.usefixtures("prefect")
@pytest.mark.parametrize(("system", "what"), _ROTATE, ids=lambda each: each.value)
def test_every_rotation_can_be_taken_over_and_turned_forward_again(system: System, what: What) -> None:
    parameters = inspect.signature(rotation_flow(system, what)).parameters
    assert list(parameters) == ["domain", "rotation", "take_over", "forward"]
    assert list(inspect.signature(roll_back_flow(system)).parameters) == ["domain", "rotation", "take_over"]


@pytest.mark.usefixtures("prefect")
def test_a_roll_back_ends_the_waiting_run_of_every_kind_of_rotation() -> None:
    from flows.claims import ROTATION_FLOWS

    assert {getattr(rotation_flow(*each), "name", "") for each in _ROTATE} == ROTATION_FLOWS
