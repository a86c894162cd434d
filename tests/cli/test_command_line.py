"""The command line by itself: exit codes, where errors go, formats of answers, and what it starts without."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

import capstan.cli
from capstan import errors
from capstan.cli import output
from capstan.cli.output import Exit, exit_code
from capstan.evidence import Evidence
from capstan.evidence.signer import Signer, mint_signing_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """Runs `capstan ARGUMENTS` in this process: (exit code, stdout, stderr)."""
    for name in ("KUBECONFIG", "CAPSTAN_VAULT", "CAPSTAN_DOMAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAPSTAN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["capstan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            capstan.cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished account."""
    path = tmp_path_factory.mktemp("account") / "r-1.jsonl"
    evidence = Evidence.open(path, Signer(mint_signing_key()), "r-1")
    evidence.append("minted", {"root": "ab" * 32})
    evidence.finish("completed", {})
    return path


# --- exit codes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ApprovalRequired("x"), 4),
        (errors.GateRefused("x"), 3),
        (errors.GateTimedOut("x"), 3),
        (errors.NotYet("x"), 3),
        (errors.VerificationFailed("x"), 3),
        (errors.VerifiersDisagree("x"), 3),
        (errors.LockHeld("x"), 1),
        (errors.Unreachable("x"), 1),
        (errors.InvalidInput("x"), 1),
        (errors.ApprovalRejected("x"), 1),
        (errors.OwnedElsewhere("x"), 1),
        (errors.EvidenceTampered("x"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_exit_code_tells_what_kind_of_error_it_was(error: errors.CapstanError, code: int) -> None:
    assert exit_code(error) == code


def test_no_error_exits_with_the_code_that_means_changes_are_pending_or_all_is_well() -> None:
    def tree(kind: type[errors.CapstanError]) -> list[type[errors.CapstanError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in tree(child))]

    codes = {exit_code(kind("x")) for kind in tree(errors.CapstanError)}
    assert codes == {Exit.FAILURE, Exit.GATE_REFUSED, Exit.WAITING_FOR_APPROVAL}


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "--bogus"),
        ("rotate", "--approve", "maybe"),
        ("check", "-o", "xml"),
        ("frobnicate",),
        ("evidence", "verify"),
        ("lab", "up", "--leaf-seconds", "soon"),
    ],
    ids=" ".join,
)
def test_a_command_line_that_cannot_be_understood_is_a_failure_not_a_pending_change(
    run: Callable[..., Any], arguments: tuple[str, ...]
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    command = (
        " ".join(("capstan", *arguments[:2])) if arguments[0] in ("evidence", "lab") else f"capstan {arguments[0]}"
    )
    assert err.startswith("error: ")
    assert err.endswith(f"next     {'capstan' if arguments[0] == 'frobnicate' else command} --help\n")


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["check", "plan", "status", "rotate"])
def test_errors_go_to_stderr_alone_and_say_what_was_expected_and_what_to_do(
    run: Callable[..., Any], command: str, tmp_path: Path
) -> None:
    code, out, err = run(command, "--kubeconfig", tmp_path / "absent")
    assert (code, out) == (1, "")
    assert err.startswith("error: the kubeconfig file does not exist")
    assert "expected" in err
    assert "next" in err
    assert "Traceback" not in err


def test_a_domain_name_that_cannot_be_an_objects_name_is_refused_with_the_rule(run: Callable[..., Any]) -> None:
    code, out, err = run("plan", "--domain", "Prod_EU")
    assert (code, out) == (1, "")
    assert "'Prod_EU' is no DNS label" in err
    assert "Value error" not in err


@pytest.mark.parametrize("missing", ["grpc", "uvicorn", "starlette"])
@pytest.mark.parametrize("command", [("lab", "up"), ("lab", "vault"), ("demo", "linkerd")], ids=" ".join)
def test_a_lab_that_is_not_installed_is_said_with_the_command_that_installs_it(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # as if it could not be found
    code, out, err = run(*command)
    assert (code, out) == (1, "")
    assert f"missing: {missing}" in err
    assert "pip install 'capstan[lab]'" in err


@pytest.mark.parametrize("file", ["absent.pem", "."])
def test_a_public_key_that_cannot_be_read_is_one_clear_error(run: Callable[..., Any], account: Path, file: str) -> None:
    code, out, err = run("evidence", "verify", account, "--public-key", file)
    assert (code, out) == (1, "")
    assert err.startswith("error: the public key cannot be read")
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["check", "plan", "status", "rotate", "rollback"])
def test_a_vault_that_cannot_be_one_is_refused_before_a_cluster_is_asked(run: Callable[..., Any], command: str) -> None:
    code, out, err = run(command, "--vault", "vault.example")
    assert (code, out) == (1, "")
    assert err.startswith("error: no such kind of vault")
    assert "--vault URL" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--system", "istio", "--viz"), "no meaning for that system"),
        (("--system", "aks-istio", "--issuer-seconds", "60"), "no meaning for that system"),
        (("--envoys", "2"), "no meaning for that system"),
        (("--nodes", "0"), "--nodes"),
        (("--leaf-seconds", "0"), "--leaf-seconds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_lab_that_cannot_be_is_refused_before_it_is_started(
    run: Callable[..., Any], arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = run("lab", "up", *arguments)
    assert (code, out) == (1, "")
    assert said in err
    assert "capstan lab up --help" in err


def test_the_lab_is_told_what_only_linkerd_has(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr("os.execv", lambda _program, line: started.extend(line))
    assert run("lab", "up", "--viz", "--issuer-seconds", "300", "--linkerd-version", "2.14.10")[0] == 0
    assert started[-5:] == ["--linkerd-version", "2.14.10", "--viz", "--issuer-seconds", "300"]


# --- answers --------------------------------------------------------------------------------------------------------


def test_json_and_yaml_carry_the_same_answer(run: Callable[..., Any], account: Path) -> None:
    _, as_json, _ = run("evidence", "verify", account, "-o", "json")
    code, as_yaml, err = run("evidence", "verify", account, "-o", "yaml")
    assert (code, err) == (0, "")
    assert json.loads(as_json) == YAML(typ="safe").load(as_yaml)
    assert json.loads(as_json)["outcome"] == "completed"


def test_a_table_has_upper_case_titles_no_borders_and_fits_100_columns(run: Callable[..., Any], account: Path) -> None:
    code, out, err = run("evidence", "show", account)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["N", "TIME", "KIND", "FACTS"]
    assert [line.split()[0] for line in lines[1:] if not line.startswith(" ")] == ["1", "2", "3"]
    assert max(map(len, lines)) <= 100
    assert not set("│┃─━|") & set(out)
    assert "\x1b" not in out


def test_an_account_that_was_changed_fails_and_prints_no_answer(
    run: Callable[..., Any], account: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed.jsonl"
    changed.write_bytes(account.read_bytes().replace(b"abab", b"abac", 1))
    code, out, err = run("evidence", "verify", changed, "-o", "json")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")


def test_text_that_was_read_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.stdout().print("root:x:0 [bold] :smile:")
    assert capsys.readouterr().out == "root:x:0 [bold] :smile:\n"


def test_help_and_version_are_answers(run: Callable[..., Any]) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert all(command in out for command in ("check", "plan", "rotate", "status", "evidence", "lab", "demo"))
    assert run("--version")[0] == 0


@pytest.mark.parametrize("command", ["check", "plan", "rotate", "rollback", "status"])
def test_the_help_of_a_command_has_its_own_options_first_and_the_exit_codes_last(
    run: Callable[..., Any], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.index("--output") < out.index("--kubeconfig") < out.index("--cluster-id") < out.index("Exit codes: 0")
    assert max(map(len, out.splitlines())) <= 100
    assert not any(f"[default: {nothing}]" in " ".join(out.split()) for nothing in ("None", '""', "()", "False"))


def test_the_help_of_a_command_says_what_its_exit_codes_mean_there(run: Callable[..., Any]) -> None:
    assert "exit 1 if a check fails" in " ".join(run("check", "--help")[1].split())
    assert "exit 2 because changes are pending" in " ".join(run("plan", "--help")[1].split())


# --- what it starts without -----------------------------------------------------------------------------------------


def test_the_commands_that_only_read_start_without_prefect(tmp_path: Path) -> None:
    program = """
import sys
import capstan.cli, capstan.systems.linkerd.adapter
for command in ("check", "plan", "status"):
    sys.argv = ["capstan", command, "--kubeconfig", "absent"]
    try:
        capstan.cli.main()
    except SystemExit as end:
        assert end.code == 1, end.code
    assert f"capstan.cli.{command}" in sys.modules
print([name for name in sys.modules if name.split(".")[0] in ("prefect", "flows", "tasks", "infra")])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout.strip() == "[]"
