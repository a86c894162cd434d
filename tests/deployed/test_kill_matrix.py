"""The deployment's parts are killed, each at several points of a rotation: every rotation ends, and nobody noticed.

Rows are what is killed, columns where. A chain is one rotation with several kills, one after the other; at each the
test asserts the state it kills in. A sweep looks after dead runs as in production, with thresholds of seconds.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.deployed.chains import (
    API_SERVER,
    FLOW,
    KEY_VAULT,
    MACHINE,
    SERVER,
    SERVER_AND_WORKER,
    STATES,
    STEPS,
    WORKER,
    WORKER_AND_FLOW,
    Cell,
    Chain,
)
from tests.deployed.halts import Halts
from tests.deployed.meshes import Mesh
from tests.support.key_vaults import KeyVaultProcess
from tests.support.postgres import binaries, postgres
from tests.support.prefect_deployment import JOB_VARIABLES, Deployed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.labs import RunningLab

CHAINS: dict[str, list[tuple[str, str]]] = {
    "flow": [
        (FLOW, "preparing"),
        (FLOW, "minting"),
        (FLOW, "resumed: trust"),
        (FLOW, "trust restart"),
        (FLOW, "backing up"),
        (FLOW, "woken"),
        (FLOW, "distrust restart"),
        (FLOW, "finishing"),
    ],
    "worker": [
        (WORKER, "preparing"),
        (WORKER_AND_FLOW, "minting"),
        (WORKER, "asked: trust"),
        (WORKER, "approved: trust"),
        (WORKER_AND_FLOW, "trust restart"),
        (WORKER, "issue"),
        (WORKER, "waiting"),
        (WORKER, "distrust"),
        (WORKER_AND_FLOW, "finishing"),
    ],
    "server": [
        (SERVER_AND_WORKER, "launched"),
        (SERVER, "minting"),
        (SERVER, "asked: trust"),
        (SERVER, "approved: trust"),
        (SERVER, "trust restart"),
        (SERVER_AND_WORKER, "waking: issue"),
        (SERVER, "waiting"),
        (SERVER, "distrust"),
        (SERVER, "finishing"),
    ],
    "cluster and vault": [
        (KEY_VAULT, "preparing"),
        (API_SERVER, "minting"),
        (API_SERVER, "asked: trust"),
        (API_SERVER, "resumed: trust"),
        (API_SERVER, "trust restart"),
        (KEY_VAULT, "backing up"),
        (KEY_VAULT, "waiting"),
        (KEY_VAULT, "woken"),
        (API_SERVER, "distrust restart"),
        (KEY_VAULT, "finishing"),
    ],
    "PostgreSQL": [
        (KEY_VAULT, "preparing"),
        (WORKER, "asked: trust"),
        (SERVER, "approved: trust"),
        (WORKER_AND_FLOW, "trust restart"),
        (API_SERVER, "issue"),
        (SERVER_AND_WORKER, "waking: distrust"),
        (FLOW, "distrust restart"),
        (SERVER, "finishing"),
    ],
}
KINDS = [FLOW, WORKER, WORKER_AND_FLOW, SERVER, SERVER_AND_WORKER, API_SERVER, KEY_VAULT]


def cells(chain: str) -> list[Cell]:
    return [Cell(kind, point) for kind, point in CHAINS[chain]]


def test_the_matrix_has_every_kind_of_kill_at_several_points_and_every_kind_on_postgresql() -> None:
    for kind in KINDS:
        points = {cell.point for chain in CHAINS for cell in cells(chain) if cell.kind == kind}
        assert len(points) >= 3, (kind, points)
        assert kind in {cell.kind for cell in cells("PostgreSQL")}


def test_every_point_of_the_matrix_is_met_by_some_kill() -> None:
    met = {cell.point.partition(":")[0] for chain in CHAINS for cell in cells(chain)}
    assert met == STEPS.keys() | STATES.keys()


@pytest.mark.slow
@pytest.mark.timeout(2100)
@pytest.mark.parametrize("chain", [pytest.param(n, marks=[] if n == "worker" else [pytest.mark.long]) for n in CHAINS])
def test_killed_at_each_of_these_points_the_rotation_ends_whole_and_nobody_is_asked_twice(
    lab: RunningLab, tmp_path: Path, chain: str
) -> None:
    kills = cells(chain)
    with ExitStack() as stack:
        mesh, database = Mesh(lab, tmp_path / "capstan"), ""
        vault = None
        if any(cell.kind == KEY_VAULT for cell in kills):
            vault = stack.enter_context(KeyVaultProcess(tmp_path / "vault"))
            mesh.vault, mesh.vault_environment = vault.url, vault.environment
        if chain == "PostgreSQL":
            if binaries() is None:
                pytest.skip("PostgreSQL is not installed: no initdb in /usr/lib/postgresql or PATH")
            database = stack.enter_context(postgres())
        mesh.forget_earlier()
        halts = Halts(tmp_path / "halts")
        environment = {**halts.environment, **mesh.vault_environment}
        deployed = stack.enter_context(Deployed(tmp_path / "prefect", environment=environment, database_url=database))
        inventory = mesh.inventory(tmp_path / "inventory.yaml", defaults={"job_variables": JOB_VARIABLES})
        deployed.deploy_inventory(inventory)

        rotation = Chain(deployed, mesh, halts, kills, vault)
        rotation.rotate()
        assert {cell for cell, _ in rotation.done} == set(kills)
        rotation.require_nothing_lost()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_rotation_goes_on_on_another_machine_and_the_accounts_of_all_verify_side_by_side(
    lab: RunningLab, tmp_path: Path
) -> None:
    kills = [Cell(MACHINE, "trust restart"), Cell(MACHINE, "waiting")]
    with KeyVaultProcess(tmp_path / "vault") as vault:
        machines = [tmp_path / f"machine-{number}" for number in (1, 2, 3)]
        mesh = Mesh(
            lab, tmp_path / "collected", vault=vault.url, vault_environment=vault.environment, machines=machines
        )
        mesh.forget_earlier()
        halts = Halts(tmp_path / "halts")
        environment = {**halts.environment, **vault.environment, "CAPSTAN_HOME": str(machines[0])}
        with Deployed(tmp_path / "prefect", environment=environment) as deployed:
            inventory = mesh.inventory(tmp_path / "inventory.yaml", defaults={"job_variables": JOB_VARIABLES})
            deployed.deploy_inventory(inventory)
            rotation = Chain(deployed, mesh, halts, kills, vault)
            rotation.rotate()
            rotation.require_nothing_lost()
