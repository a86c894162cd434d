"""What a step's run is called in Prefect's pages: the step, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from capstan.trust.phase import Phase
from tasks import steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.tasks import Task


@pytest.mark.parametrize(
    ("step", "parameters", "name"),
    [
        (steps.mint, {}, "mint root and issuers into the vault"),
        (steps.widen_bundle, {"cluster": "eu-1"}, "bundle := old + new: eu-1"),
        (steps.restart_data_plane, {"cluster": "eu-1", "phase": Phase.TRUST}, "restart workloads: eu-1, trust"),
        (steps.watch_gate, {"phase": Phase.ISSUE, "patience": None}, "watch gate: issue"),
    ],
)
def test_a_steps_run_says_its_cluster_and_phase(step: Task[..., Any], parameters: dict[str, Any], name: str) -> None:
    given = {"rotation": object(), **parameters}
    assert cast("Callable[..., str]", step.task_run_name)(parameters=given) == name
