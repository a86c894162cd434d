"""A plug-in mesh whose root is kept offline, rotated by a Prefect deployment: asked for by form, answered over REST."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from capstan.pki.inspect import Certificate
from tests.deployed.meshes import Mesh
from tests.rotation_istio.meshes import SMALL
from tests.support.labs import start_lab
from tests.support.prefect_deployment import JOB_VARIABLES, Deployed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200), pytest.mark.xdist_group("istio-offline")]

DEPLOYMENT = "istio-root/mesh"
BROKEN = ("Failed", "Crashed", "Completed")


class OfflineMesh(Mesh):
    """Its root's key is on a machine that the deployment cannot see."""

    def parameter(self) -> dict[str, Any]:
        plain = super().parameter()
        policy = {**plain["policy"], "offline_root": True}
        return {**plain, "system": "istio", "control_plane_namespace": "istio-system", "policy": policy}


def sign(directory: Path, *arguments: object) -> None:
    """`capstan sign`, on the machine without a network."""
    command = [sys.executable, "-m", "capstan.cli", "sign", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory, check=False)
    assert done.returncode == 0, done.stderr


def shown(deployed: Deployed, run: str) -> str:
    """What the form of a suspended run tells whoever has to answer it."""
    keys = deployed.run(run)["state"]["state_details"]["run_input_keyset"]
    return str(deployed.ask("GET", f"flow_runs/{run}/input/{keys['description']}"))


def test_the_form_gives_the_request_refuses_a_chain_of_another_key_and_takes_the_one_that_was_asked_for(
    tmp_path: Path,
) -> None:
    lab = start_lab(
        tmp_path / "lab", *SMALL, "--system", "istio", "--ca", "plugin", "--multiroot", program=("infra.lab",)
    )
    try:
        mesh, ceremony = OfflineMesh(lab, tmp_path / "capstan"), tmp_path / "ceremony"
        ceremony.mkdir()
        mesh.forget_earlier()
        sign(ceremony, "--new-root", "--common-name", "Offline root", "--out-dir", "root", "--no-passphrase", "--yes")
        by = ("--root-cert", "root/root-cert.pem", "--root-key", "root/root-key.pem", "--yes")
        with Deployed(tmp_path / "prefect") as deployed:
            deployed.deploy_inventory(
                mesh.inventory(tmp_path / "inventory.yaml", defaults={"job_variables": JOB_VARIABLES})
            )
            run = deployed.launch(DEPLOYMENT)
            deployed.wait_for_state(run, "Suspended", seconds=180, fatal=BROKEN)

            # 1. Asked for a signature, before anything in the mesh is touched: the request is what the person signs.
            told = shown(deployed, run)
            head, middle, rest = told.partition("-----BEGIN CERTIFICATE REQUEST-----")
            end = "-----END CERTIFICATE REQUEST-----"
            request = (middle + rest.partition(end)[0] + end).replace("\\n", "\n")
            assert "capstan sign" in head
            (ceremony / "wanted.pem").write_text(request + "\n")
            assert {root for pod in lab.pods() for root in pod["roots"]} == mesh.old

            # 2. A chain that is well signed, of a key that nobody asked about: refused, shown why, and asked for again.
            sign(ceremony, "--new-root", "--common-name", "Foreign root", "--out-dir", "other", "--no-passphrase", "-y")
            foreign = (ceremony / "other" / "root-cert.pem").read_text()
            assert deployed.resume(run, {"chain": foreign})["status"] == "ACCEPT"
            deployed.wait_for_state(run, "Suspended", seconds=120, fatal=BROKEN)
            told = shown(deployed, run)
            assert "The last answer could not be used" in told
            assert "the request of cluster cluster is not answered" in told
            assert middle in told

            # 3. The right one goes on, through the three approvals, to the end.
            sign(ceremony, "--request", "wanted.pem", *by, "--out", "chain.pem")
            chain = (ceremony / "chain.pem").read_text()
            assert deployed.resume(run, {"chain": chain})["status"] == "ACCEPT"
            given: list[str] = []
            while deployed.wait_for_state(run, "Suspended", "Completed", seconds=300, fatal=BROKEN[:2]) != "Completed":
                gate = deployed.run(run)["state"]["message"].rpartition(" ")[2]
                assert gate not in given
                deployed.approve(run)
                given.append(gate)
            assert given == ["trust", "issue", "distrust"]

        root = Certificate.from_pem((ceremony / "root" / "root-cert.pem").read_text()).fingerprint
        held = {tuple(pod["roots"]) for pod in lab.pods() if not pod["stopping"]}
        assert held == {(root,)}
        record = mesh.record()
        assert (record["outcome"], record["new"]) == ("completed", root)
        assert mesh.minted_roots() == [], "a root was minted, though it is kept offline"
        counts = lab.prober()
        assert counts["attempted"] > 100
        assert counts["failed"] == 0, counts["failures"][:3]
    finally:
        lab.stop()
