"""One rotation on each kind of istiod that takes new files in another way: by a restart, by itself, or pushed on.

Which version does what: the table of `capstan.systems.istio.versions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.rotation_istio.conftest import mesh
from tests.rotation_istio.meshes import Turned

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900), pytest.mark.xdist_group("istio-versions")]


@pytest.mark.parametrize(
    "lab",
    [
        # Before 1.18 nothing of `cacerts` is reloaded without AUTO_RELOAD_PLUGIN_CERTS: istiod is restarted.
        pytest.param(("--istio-version", "1.14.6"), id="1.14 restarts"),
        # Roots are not reloaded without ISTIO_MULTIROOT_MESH: restarted for them, but not for the intermediate.
        pytest.param(("--istio-version", "1.22.8"), id="1.22 without multiroot"),
        # Roots are reloaded, and pushed to agents that asked for them.
        pytest.param(("--istio-version", "1.28.3", "--multiroot", "--xds-agent"), id="1.28 pushes"),
    ],
)
def test_a_root_is_turned_whichever_way_its_istiod_takes_it(
    lab: tuple[str, ...], tmp_path: Path, prefect: dict[str, str]
) -> None:
    with mesh(tmp_path, prefect, "--system", "istio", "--ca", "plugin", *lab) as (running, runner):
        case = Turned(running, runner, tmp_path / "home", "case-1", system="istio")
        case.begin()
        case.require_finished(case.run())
