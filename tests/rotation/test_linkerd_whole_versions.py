"""A whole rotation on a Linkerd of each generation: two replicas, no dropped handshake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.rotation.rotations import Rotations
from tests.support.labs import start_lab

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rotation.runner import Runner

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

WHAT = "a whole rotation with two replicas: every proxy holds the new root, no handshake is dropped"


@pytest.mark.parametrize(
    "version",
    [
        pytest.param("stable-2.12.4", id="2.12", marks=pytest.mark.proves("versions", "2.12", WHAT)),
        pytest.param("edge-24.2.4", id="2.15", marks=pytest.mark.proves("versions", "2.15", WHAT)),
        pytest.param("edge-26.8.3", id="2.20", marks=pytest.mark.proves("versions", "2.20", WHAT)),
    ],
)
def test_a_rotation_is_whole_at_this_version(tmp_path: Path, runner: Runner, version: str) -> None:
    options = ["--size", "small", "--leaf-seconds", "60", "--probes-per-second", "25", "--control-plane-replicas", "2"]
    lab = start_lab(tmp_path / "lab", *options, "--linkerd-version", version, program=("infra.lab",))
    case = Rotations(lab, runner, tmp_path / "home", "versions")
    try:
        case.forget_earlier()
        case.require_finished(case.run())
        listed = lab.call("GET", "/api/v1/pods?labelSelector=linkerd.io%2Fcontrol-plane-ns%3Dlinkerd")["items"]
        assert {pod["metadata"]["annotations"]["linkerd.io/proxy-version"] for pod in listed} == {version}
    finally:
        lab.stop()
