"""What `capstan istio enable` refuses before anything is started, and what it says in the end."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

import capstan.cli
from capstan.cli.istio_enable import print_enabled
from capstan.cli.output import Output
from capstan.rotation.enabling import Enabled

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Runs `capstan istio enable ARGUMENTS` in this process: (exit code, stderr); Prefect must not be started by it."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("{}")
    monkeypatch.setenv("CAPSTAN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["capstan", "istio", "enable", *arguments])
        with pytest.raises(SystemExit) as ended:
            capstan.cli.main()
        assert not (tmp_path / "home").exists()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def test_a_cluster_without_its_arm_id_is_refused_with_the_command_that_tells_it(run: Callable[..., Any]) -> None:
    code, err = run()
    assert code == 1
    assert "only in a cluster whose ARM id is known" in err
    assert "az aks show" in err


def test_another_system_than_the_add_on_is_refused(run: Callable[..., Any]) -> None:
    code, err = run("--system", "istio")
    assert code == 1
    assert "expected aks-istio" in err


def test_a_signed_chain_that_is_not_there_is_refused(run: Callable[..., Any]) -> None:
    cluster = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ContainerService/managedClusters/east"
    code, err = run("--cluster-id", cluster, "--signed-chain", "absent.pem")
    assert code == 1
    assert "the signed chain is not there (absent.pem)" in err


def test_the_end_names_root_issuer_revisions_and_access_of_each_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    enabled = Enabled("r" * 64, {"east": "i" * 64}, {"east": ("asm-1-30",)}, {"east": "has the role"})
    print_enabled(enabled, Output.JSON)
    east = {"issuer": "i" * 64, "revisions": ["asm-1-30"], "access": "has the role"}
    assert json.loads(capsys.readouterr().out) == {"schemaVersion": 1, "root": "r" * 64, "clusters": {"east": east}}
    print_enabled(enabled, Output.TABLE)
    table = capsys.readouterr().out
    assert all(word in table for word in ("east", "i" * 16, "r" * 16, "asm-1-30", "has the role"))
