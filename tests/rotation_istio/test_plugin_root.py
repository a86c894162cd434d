"""An upstream Istio with a plug-in CA: root and intermediate turned under real Envoys, killed half-way, taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.rotation_istio.meshes import require_listed_points

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.rotation_istio.meshes import Turned

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("istio-plugin")]

LAB = ("--system", "istio", "--ca", "plugin", "--istio-version", "1.30.1", "--multiroot", "--envoys", "2")


def test_a_root_is_turned_and_every_proxy_real_envoys_among_them_holds_exactly_the_new_one(
    turned: Callable[..., Turned],
) -> None:
    case = turned()
    kinds = {pod["kind"] for pod in case.lab.pods()}
    assert {"envoy", "light"} <= kinds
    ran = case.run()
    case.require_finished(ran)
    assert ran.data["old_root_refused"] is True
    require_listed_points(ran, "points.txt")
    # Run again, it finds nothing to do and writes nothing.
    version = case.secret("cacerts")["metadata"]["resourceVersion"]
    again = case.run()
    assert (again.code, again.data["completed"], again.data["resumed"]) == (0, True, True), again.stderr[-2000:]
    assert case.secret("cacerts")["metadata"]["resourceVersion"] == version


@pytest.mark.long
def test_an_intermediate_is_turned_under_the_root_that_capstan_minted(turned: Callable[..., Turned]) -> None:
    first = turned()
    first.require_finished(first.run())
    second = turned(home=first.home)  # the root's key is in that home's vault
    ran = second.run("--what", "intermediate")
    assert ran.code == 0, ran.stderr[-3000:]
    assert second.live_roots() == second.old
    assert not second.live_issuers() & second.issuers
    second.require_no_failure()


@pytest.mark.long
def test_a_rotation_is_taken_back_from_between_its_phases(turned: Callable[..., Turned]) -> None:
    case = turned()
    ran = case.run(die_at="issue > switch-issuer/cluster > account issuer-switched, half-written")
    assert ran.killed, (ran.code, ran.passed[-5:])
    case.require_rolled_back(case.roll_back())
    assert case.live_issuers() == case.issuers
