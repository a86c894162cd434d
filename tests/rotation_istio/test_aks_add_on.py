"""The AKS add-on, its CA in a Key Vault: the intermediate is turned, then the root; the documented two steps drop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.rotation_istio.meshes import Turned

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("aks-istio")]

LAB = ("--system", "aks-istio", "--ca-delivery", "csi", "--revisions", "asm-1-29,asm-1-30")


def test_a_root_then_an_intermediate_are_turned_under_two_revisions(turned: Callable[..., Turned]) -> None:
    first = turned("aks-istio")
    first.require_finished(first.run())
    second = turned("aks-istio", home=first.home)  # the root's key is in that home's vault
    second.require_same_roots_and_another_issuer(second.run("--what", "intermediate"))
