"""Leaves renewed by rolling restarts, by choice: a rotation that need not wait for anybody's leaf."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.rotation_istio.conftest import mesh
from tests.rotation_istio.meshes import Turned

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

# Renewing by itself, a leaf would take half of this in each of three phases.
LEAF_SECONDS = 3600
LAB = ("--system", "istio", "--ca", "plugin", "--istio-version", "1.30.1", "--multiroot", "--envoys", "1")


def test_a_root_is_turned_by_restarts_long_before_any_leaf_would_have_been_renewed(
    tmp_path: Path, prefect: dict[str, str]
) -> None:
    with mesh(tmp_path, prefect, *LAB, "--leaf-seconds", str(LEAF_SECONDS)) as (running, runner):
        case = Turned(running, runner, tmp_path / "home", "case-1", system="istio", more=("--leaf-renewal", "restart"))
        case.begin()
        before = {pod["uid"] for pod in running.pods()}
        case.require_finished(case.run())
        # Nobody waited for a leaf: every proxy is another process than at the start.
        assert not before & {pod["uid"] for pod in running.pods() if not pod["stopping"]}
