"""What `capstan rotate` refuses before anything is started, and what it says of each kind of rotation in the end."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

import capstan.cli
from capstan.cli.output import Output
from capstan.cli.rotate import print_outcome
from capstan.rotation import Outcome, PhaseTime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Runs `capstan rotate ARGUMENTS` in this process: (exit code, stderr); Prefect must not be started by it."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("{}")
    monkeypatch.setenv("CAPSTAN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["capstan", "rotate", *arguments])
        with pytest.raises(SystemExit) as ended:
            capstan.cli.main()
        assert not (tmp_path / "home").exists()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def test_a_rotation_that_a_system_does_not_have_is_refused_with_those_it_has(run: Callable[..., Any]) -> None:
    code, err = run("--system", "linkerd", "--what", "intermediate")
    assert code == 1
    assert "no such rotation" in err
    assert "expected root, anchor, issuer" in err
    assert "no such rotation" in run("--system", "istio", "--what", "issuer")[1]


def test_a_signed_chain_that_is_not_there_is_refused_with_the_command_that_makes_one(run: Callable[..., Any]) -> None:
    code, err = run("--system", "istio", "--offline-root", "--signed-chain", "absent.pem")
    assert code == 1
    assert "the signed chain is not there (absent.pem)" in err
    assert "capstan sign" in err


def test_an_id_that_no_rotation_can_have_is_refused_before_a_cluster_is_asked(run: Callable[..., Any]) -> None:
    code, err = run("--rotation", "prod-eu/2027")
    assert code == 1
    assert "cannot be a rotation's id" in err


def test_a_key_that_is_not_there_is_refused_before_prefect_is_started(run: Callable[..., Any]) -> None:
    code, err = run("--system", "linkerd", "--key", "absent")
    assert code == 1
    assert "the key to sign approvals with is not there (absent)" in err


def outcome(kind: Any, before: str = "a", after: str = "b", refused: bool | None = None) -> Outcome:
    phases = (PhaseTime("prepare", 1.0),)
    return Outcome("My-Id", True, False, phases, (before,), (after,), 3, refused, 9, "e.jsonl", "forward", kind, ("i",))


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (outcome("anchor", refused=True), "refused by every one"),
        (outcome("issuer", "a", "a"), "whoever trusts the root trusts it until it ends"),
        (outcome("re-date"), "each of the two dates verifies what the other has signed"),
    ],
    ids=["root", "intermediate", "re-date"],
)
def test_nothing_is_called_refused_that_no_probe_could_show(
    capsys: pytest.CaptureFixture[str], ended: Outcome, said: str
) -> None:
    print_outcome(ended, Output.TABLE)
    table = " ".join(capsys.readouterr().out.split())
    assert said in table
    assert ("refused" in table) is (ended.kind == "anchor")
    assert "My-Id" in table
    print_outcome(ended, Output.JSON)
    assert json.loads(capsys.readouterr().out)["kind"] == ended.kind
