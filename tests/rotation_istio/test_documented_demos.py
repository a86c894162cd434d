"""The published procedures, to the letter, on the same labs: each drops handshakes where ours drops none."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.rotation_istio.conftest import mesh

if TYPE_CHECKING:
    from pathlib import Path

# (the add-on's two steps are among the slow tests in tests/lab/aks)
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

PLUGIN = ("--system", "istio", "--ca", "plugin", "--multiroot")
SELF_SIGNED = ("--system", "istio", "--ca", "self-signed")
AKS = ("--system", "aks-istio", "--ca-delivery", "csi")


@pytest.mark.parametrize(
    ("module", "lab"),
    [
        ("aks_two_step", AKS),
        ("in_place_new_key", SELF_SIGNED),
        ("delete_create", PLUGIN),
        ("same_dn_roots", (*PLUGIN, "--no-ski")),
    ],
)
def test_the_documented_order_drops_handshakes(
    module: str, lab: tuple[str, ...], tmp_path: Path, prefect: dict[str, str]
) -> None:
    with mesh(tmp_path, prefect, *lab) as (running, _):
        vault = running.directory / "keyvault" / "vault.json"
        command = [
            *(sys.executable, "-m", f"infra.lab.procedures.{module}"),
            *("--kubeconfig", str(running.kubeconfig), "--control", str(running.facts["control"])),
            *("--watch-seconds", "30", *(["--vault", str(vault)] if vault.exists() else [])),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        told = json.loads(done.stdout)["handshakes"]
        assert told["attempted"] > 100
        assert told["failed"] > 0
