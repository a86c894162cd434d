"""An AKS cluster without the add-on is given it with a CA of its own, through Resource Manager and Key Vault."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from capstan.pki.bundle import Bundle
from tests.rotation.rotations import wait_for
from tests.rotation_istio.conftest import mesh

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rotation.runner import Ran, Runner
    from tests.support.labs import RunningLab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("aks-istio")]

LAB = ("--system", "aks-istio", "--not-enabled", "--envoys", "0")


def enable(lab: RunningLab, runner: Runner, home: Path, *more: str, die_at: str = "") -> Ran:
    arm = json.loads((lab.directory / "keyvault" / "arm.json").read_text())
    named = ("--cluster-id", arm["cluster_id"], "--key-vault-id", arm["key_vault_id"], "--revision", "asm-1-30")
    return runner.run(
        "istio", "enable", *named, "-o", "json", *more,
        home=home, kubeconfig=lab.kubeconfig, die_at=die_at,
    )  # fmt: skip


OWN_NAMES = tuple(
    word
    for what in ("root-cert", "ca-cert", "ca-key", "cert-chain")
    for word in (f"--{what}-object-name", f"own-{what}")
)


def sign(directory: Path, *arguments: str) -> None:
    """`capstan sign`, on the machine without a network."""
    command = [sys.executable, "-m", "capstan.cli", "sign", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory, check=False)
    assert done.returncode == 0, done.stderr


def versions(lab: RunningLab) -> dict[str, int]:
    """How many versions the lab's Key Vault holds of each secret."""
    held = json.loads((lab.directory / "keyvault" / "state.json").read_text())
    return {secret["name"]: len(secret["versions"]) for secret in held["secrets"]}


def live(lab: RunningLab) -> set[tuple[str, tuple[str, ...]]]:
    """By whom the leaves are signed and which roots are trusted, by the lab's own word."""
    return {(pod["leaf"]["issuer"], tuple(pod["roots"])) for pod in lab.pods() if pod["leaf"]}


def test_an_add_on_gets_a_ca_whose_root_stays_offline_killed_on_the_way_and_run_again(
    tmp_path: Path, prefect: dict[str, str]
) -> None:
    home, ceremony = tmp_path / "home", tmp_path / "ceremony"
    ceremony.mkdir()
    sign(ceremony, "--new-root", "--common-name", "Mesh Root", "--out-dir", "root", "--no-passphrase", "--yes")
    (root,) = Bundle.parse((ceremony / "root" / "root-cert.pem").read_text(), "root-cert.pem").certificates
    with mesh(tmp_path, prefect, *LAB) as (lab, runner):
        offline = ("--offline-root", *OWN_NAMES)
        # 0. The cluster's Key Vault holds a CA that somebody has prepared: it is not written over.
        before = versions(lab)
        refused = enable(lab, runner, tmp_path / "other-home")
        assert refused.code == 3, refused.stderr[-3000:]
        assert "another CA under these names" in refused.stderr
        assert "--adopt" in refused.stderr
        assert versions(lab) == before
        # 1. It asks for a signature, and dies. Nothing was written to the vault.
        assert enable(lab, runner, home, *offline, die_at="enable/request-signing > end").killed
        assert versions(lab) == before
        # 2. The root signs what was asked for; the next run goes on from there, to the add-on that signs by it.
        (request,) = home.glob("requests/*/*.csr.pem")
        by = ("--root-cert", "root/root-cert.pem", "--root-key", "root/root-key.pem", "--yes")
        sign(ceremony, "--request", str(request), *by, "--out", "chain.pem")
        ran = enable(lab, runner, home, *offline, "--signed-chain", str(ceremony / "chain.pem"))
        assert ran.code == 0, ran.stderr[-3000:]
        assert "PRIVATE KEY" not in ran.stdout + ran.stderr
        (enabled,) = ran.data["clusters"].values()
        assert ran.data["root"] == root.fingerprint
        assert enabled["revisions"] == ["asm-1-30"]
        wait_for(lambda: bool(live(lab)), "a proxy of the add-on to get its leaf")
        assert live(lab) == {(enabled["issuer"], (root.fingerprint,))}
        made = dict.fromkeys(OWN_NAMES[1::2], 1)
        assert versions(lab) == before | made
        # 3. Once more finds everything done, and says the same.
        again = enable(lab, runner, home, *offline)
        assert again.code == 0, again.stderr[-3000:]
        assert again.data == ran.data
        assert versions(lab) == before | made


@pytest.mark.long
def test_an_add_on_is_enabled_with_the_ca_that_is_in_the_vault_already(tmp_path: Path, prefect: dict[str, str]) -> None:
    with mesh(tmp_path, prefect, *LAB) as (lab, runner):
        before = versions(lab)
        ran = enable(lab, runner, tmp_path / "home", "--adopt")
        assert ran.code == 0, ran.stderr[-3000:]
        (enabled,) = ran.data["clusters"].values()
        wait_for(lambda: bool(live(lab)), "a proxy of the add-on to get its leaf")
        assert live(lab) == {(enabled["issuer"], (ran.data["root"],))}
        assert versions(lab) == before
