"""The AKS add-on as it was in earlier years: a root is turned whichever way its secrets come to istiod."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.rotation_istio.conftest import mesh
from tests.rotation_istio.meshes import Turned

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900), pytest.mark.xdist_group("aks-deliveries")]


@pytest.mark.parametrize("delivery", ["cacerts", "cronjob"])
def test_a_root_is_turned_whichever_way_the_secrets_come_to_istiod(
    delivery: str, tmp_path: Path, prefect: dict[str, str]
) -> None:
    with mesh(tmp_path, prefect, "--system", "aks-istio", "--ca-delivery", delivery) as (lab, runner):
        vault = json.loads((lab.directory / "keyvault" / "vault.json").read_text())["url"]
        case = Turned(
            lab, runner, tmp_path / "home", "case-1", system="aks-istio", more=("--key-vault", vault)
        )  # fmt: skip
        case.begin()
        case.require_finished(case.run())
