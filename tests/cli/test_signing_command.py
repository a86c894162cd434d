"""`capstan sign` on a machine without network: what it shows, asks, writes and refuses."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import capstan.cli
from capstan.pki.bundle import Bundle
from capstan.pki.csr import make_request
from capstan.pki.inspect import Certificate
from capstan.pki.keys import PrivateKey
from capstan.pki.mint import RootPolicy, mint_root
from capstan.pki.verify import STRICT, verify_issuer
from tests.pki.ca import make

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PASSPHRASE = "correct horse battery"
NOW, DAY = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
KEY = PrivateKey.generate()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs `capstan sign ARGUMENTS` in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["capstan", "sign", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            capstan.cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "passphrase"
    file.write_text(f"{PASSPHRASE}\n")
    return file


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    file = tmp_path / "issuer.csr"
    file.write_text(make_request(KEY, "istiod.east").pem())
    return file


@pytest.fixture
def root(tmp_path: Path) -> tuple[Path, Path]:
    """An unsealed root: certificate and key files."""
    made = mint_root(RootPolicy(common_name="root.east"), 1, dt.datetime.now(dt.UTC))
    certificate, key = tmp_path / "root-cert.pem", tmp_path / "root-key.pem"
    certificate.write_text(made.certificate.pem() + "\n")
    key.write_bytes(made.key.pem())
    return certificate, key


def signing(request: Path, root: tuple[Path, Path], *more: object) -> list[object]:
    return ["--request", request, "--root-cert", root[0], "--root-key", root[1], *more]


def test_a_new_root_signs_a_request_and_the_chain_verifies(
    run: Callable[..., Any], tmp_path: Path, secret: Path, request_file: Path
) -> None:
    code, out, err = run(
        "--new-root", "--common-name", "root.east", "--out-dir", tmp_path / "root", "--passphrase-file", secret, "-o",
        "json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    made = json.loads(out)
    files = tmp_path / "root" / "root-cert.pem", tmp_path / "root" / "root-key.pem"
    assert made["subject"] == "CN=root.east G1"
    assert files[1].stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "root").stat().st_mode & 0o777 == 0o700
    assert files[1].read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    chain_file = tmp_path / "chain.pem"
    code, out, err = run(
        *signing(request_file, files, "--passphrase-file", secret, "--yes", "--validity", "90d", "--out", chain_file)
    )
    assert (code, out) == (0, "")
    issuer, root = Bundle.parse(chain_file.read_text(), "chain").certificates
    assert root.fingerprint == made["fingerprint"]
    now = dt.datetime.now(dt.UTC)
    assert verify_issuer(issuer, [root], now, relax=STRICT).anchor == root
    assert issuer.key_matches(KEY)
    assert dt.timedelta(days=89) < issuer.not_after - now < dt.timedelta(days=90)
    assert PASSPHRASE not in out + err


def test_what_is_signed_is_shown_and_the_chain_alone_goes_to_standard_output(
    run: Callable[..., Any], request_file: Path, root: tuple[Path, Path]
) -> None:
    code, out, err = run(*signing(request_file, root, "--yes"))
    assert code == 0
    assert len(Bundle.parse(out, "stdout")) == 2
    for shown in ("CN=istiod.east", KEY.spki_sha256, "CN=root.east G1", "path length 0"):
        assert shown in err
    assert "PRIVATE KEY" not in out + err


def test_without_a_terminal_and_without_yes_nothing_is_signed(
    run: Callable[..., Any], request_file: Path, root: tuple[Path, Path]
) -> None:
    code, out, err = run(*signing(request_file, root))
    assert (code, out) == (1, "")
    assert "nobody can be asked" in err


def test_a_wrong_passphrase_is_said_and_shown_nowhere(
    run: Callable[..., Any], tmp_path: Path, secret: Path, request_file: Path
) -> None:
    directory = tmp_path / "root"
    run("--new-root", "--common-name", "r", "--out-dir", directory, "--passphrase-file", secret)
    wrong = tmp_path / "wrong"
    wrong.write_text("not the right one")
    files = directory / "root-cert.pem", directory / "root-key.pem"
    code, out, err = run(*signing(request_file, files, "--passphrase-file", wrong, "--yes"))
    assert (code, out) == (1, "")
    assert "private key cannot be read" in err
    assert "not the right one" not in err


def test_a_root_is_of_the_generation_after_those_in_use(
    run: Callable[..., Any], tmp_path: Path, root: tuple[Path, Path]
) -> None:
    directory = tmp_path / "new"
    options = (
        "--new-root",
        "--common-name",
        "root.east",
        "--known",
        root[0],
        "--out-dir",
        directory,
        "--no-passphrase",
    )
    code, out, _ = run(*options)
    assert code == 0
    made = Certificate.from_pem((directory / "root-cert.pem").read_bytes())
    assert made.common_name == "root.east G2"
    assert "NOT encrypted" in out


def test_no_file_is_ever_replaced(
    run: Callable[..., Any], tmp_path: Path, request_file: Path, root: tuple[Path, Path]
) -> None:
    kept = root[1].read_bytes()
    code, _, err = run("--new-root", "--common-name", "x", "--out-dir", tmp_path, "--no-passphrase")
    assert code == 1
    assert "not replaced" in err
    assert root[1].read_bytes() == kept
    out = tmp_path / "chain.pem"
    out.write_text("mine")
    code, _, err = run(*signing(request_file, root, "--yes", "--out", out))
    assert (code, out.read_text()) == (1, "mine")


def test_nothing_is_signed_past_the_roots_end(
    run: Callable[..., Any], request_file: Path, root: tuple[Path, Path]
) -> None:
    code, out, err = run(*signing(request_file, root, "--yes", "--validity", "4000d"))
    assert (code, out) == (1, "")
    assert "may not outlive its issuer" in err


def test_a_root_as_openssl_makes_it_by_itself_signs(
    run: Callable[..., Any], request_file: Path, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "corporate.pem", tmp_path / "corporate.key"
    made = make("corporate root", key_usage=False, start=NOW - DAY, end=NOW + 3650 * DAY)
    certificate.write_text(made.certificate.pem() + "\n")
    key.write_bytes(PrivateKey(made.key).pem())
    code, out, err = run(*signing(request_file, (certificate, key), "--yes"))
    assert code == 0, err
    assert Bundle.parse(out, "stdout").certificates[-1] == made.certificate


def test_a_key_of_another_root_signs_nothing(
    run: Callable[..., Any], tmp_path: Path, request_file: Path, root: tuple[Path, Path]
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(PrivateKey.generate().pem())
    code, out, err = run(*signing(request_file, (root[0], other), "--yes"))
    assert (code, out) == (1, "")
    assert "does not belong to the certificate" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no --request"),
        (("--request", "absent.csr", "--root-cert", "a", "--root-key", "b"), "cannot be read"),
        (("--new-root", "--out-dir", "d"), "no --common-name"),
        (("--new-root", "--common-name", "x"), "no --out-dir"),
        (("--new-root", "--request", "x"), "one of the two"),
        (("--new-root", "--common-name", "x", "--out-dir", "d"), "--passphrase-file"),
        (("--new-root", "--common-name", "x" * 70, "--out-dir", "d", "--no-passphrase"), "common name"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_refused_with_the_option_that_is_missing(
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert said in err
    assert not list(tmp_path.iterdir())


def test_a_short_passphrase_makes_no_root(run: Callable[..., Any], tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("hunter2")
    code, _, err = run("--new-root", "--common-name", "x", "--out-dir", tmp_path / "d", "--passphrase-file", short)
    assert code == 1
    assert "too short" in err
    assert "hunter2" not in err
    assert not (tmp_path / "d").exists()


def test_names_in_a_request_cannot_steer_the_terminal(
    run: Callable[..., Any], tmp_path: Path, root: tuple[Path, Path]
) -> None:
    file = tmp_path / "evil.csr"
    file.write_text(make_request(KEY, "x\x1b[2Jy").pem())
    _, _, err = run(*signing(file, root, "--yes"))
    assert "\x1b" not in err
    assert "x?[2Jy" in err


def test_the_air_gapped_machine_needs_neither_kubernetes_nor_prefect_nor_azure(
    tmp_path: Path, request_file: Path, root: tuple[Path, Path]
) -> None:
    program = f"""
import sys
for name in ("kubernetes", "prefect", "azure", "httpx", "urllib3", "h2", "websocket"):
    sys.modules[name] = None  # as if it were not installed
import capstan.cli
sys.argv = ["capstan", "sign", *{list(map(str, signing(request_file, root, "--yes")))!r}]
capstan.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert len(Bundle.parse(done.stdout, "stdout")) == 2
