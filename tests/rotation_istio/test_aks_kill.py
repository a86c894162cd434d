"""A rotation of the add-on's root, killed at the boundaries of its changes and run again: it ends, once, whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.rotation_istio.meshes import Turned

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200), pytest.mark.xdist_group("aks-istio-kill")]

LAB = ("--system", "aks-istio", "--ca-delivery", "csi")
POINTS = [
    "prepare > mint > end",
    "trust > widen-bundle/cluster > begin",
    "trust > widen-bundle/cluster > account bundle-widened, half-written",
    "issue > back-up-issuer/cluster > end",
    "issue > switch-issuer/cluster > vault.store/cert-chain > end",
    "issue > switch-issuer/cluster > vault.store/ca-cert > end",
    "issue > switch-issuer/cluster > account issuer-switched, half-written",
    "distrust > narrow-bundle/cluster > begin",
    "distrust > narrow-bundle/cluster > end",
    "finish > begin",
]


def test_killed_around_every_change_of_the_vault_and_run_again_it_finishes_with_one_new_root(
    turned: Callable[..., Turned],
) -> None:
    case = turned("aks-istio")
    for point in POINTS:
        ran = case.run(die_at=point)
        assert ran.killed, f"not killed at {point}: exit code {ran.code}, {ran.stderr[-2000:]}"
        case.require_one_new_root_at_most()
    case.require_finished(case.run())
