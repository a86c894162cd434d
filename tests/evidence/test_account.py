"""Claims about the account of a rotation: what it survives and what it refuses."""

from __future__ import annotations

import base64
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from capstan.errors import EvidenceTampered, InvalidInput
from capstan.evidence import Evidence, read, signer_from_vault, verify
from capstan.evidence.signer import Signer, mint_signing_key
from capstan.vaults.local import LocalVault

if TYPE_CHECKING:
    from pathlib import Path

from tests.evidence.ticking import START, Clock


def test_an_account_goes_on_after_its_process_is_gone(tmp_path: Path, signer: Signer) -> None:
    path = tmp_path / "r.jsonl"
    Evidence.open(path, signer, "r", clock=Clock()).append("planned", {})
    second = Evidence.open(path, signer, "r", clock=Clock())
    second.append("phase", {"phase": "trust"})
    assert [entry.kind for entry in read(path)] == ["opened", "planned", "phase"]


def test_going_on_with_another_key_is_refused(tmp_path: Path, signer: Signer) -> None:
    Evidence.open(tmp_path / "r.jsonl", signer, "r")
    with pytest.raises(EvidenceTampered):
        Evidence.open(tmp_path / "r.jsonl", Signer(mint_signing_key()), "r")


def test_going_on_as_another_rotation_is_refused(tmp_path: Path, signer: Signer) -> None:
    Evidence.open(tmp_path / "r.jsonl", signer, "r")
    with pytest.raises(InvalidInput, match="another rotation"):
        Evidence.open(tmp_path / "r.jsonl", signer, "s")


def test_going_on_with_a_tampered_account_is_refused(account: Path, signer: Signer) -> None:
    account.write_bytes(account.read_bytes().replace(b"trust", b"TRUST"))
    with pytest.raises(EvidenceTampered):
        Evidence.open(account, signer, "r-1")


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_torn_last_line_is_set_aside_and_noted(tmp_path: Path, signer: Signer, kept: int) -> None:
    path = tmp_path / "r.jsonl"
    evidence = Evidence.open(path, signer, "r", clock=Clock())
    evidence.append("planned", {})
    evidence.append("phase", {"phase": "trust"})
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[-1][:kept]
    path.write_bytes(b"".join(lines[:-1]) + torn)
    after = Evidence.open(path, signer, "r", clock=Clock())
    after.append("phase", {"phase": "trust"})
    kinds = [entry.kind for entry in read(path)]
    if not torn:
        assert kinds == ["opened", "planned", "phase"]
        return
    assert kinds == ["opened", "planned", "recovered", "phase"]
    note = read(path)[2].body
    assert note["bytes"] == len(torn)
    assert (tmp_path / note["set_aside"]).read_bytes() == torn


def test_a_torn_first_line_does_not_stop_an_account_from_beginning(tmp_path: Path, signer: Signer) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"body":{"for')
    Evidence.open(path, signer, "r")
    assert [entry.kind for entry in read(path)] == ["opened", "recovered"]


def test_a_crash_between_setting_aside_and_noting_is_made_up_for(tmp_path: Path, signer: Signer) -> None:
    path = tmp_path / "r.jsonl"
    Evidence.open(path, signer, "r")
    (tmp_path / "r.jsonl.torn-00").write_bytes(b"half")
    Evidence.open(path, signer, "r")
    Evidence.open(path, signer, "r")
    assert [entry.kind for entry in read(path)] == ["opened", "recovered"]


def test_lines_that_vanish_under_a_running_writer_are_noticed(tmp_path: Path, signer: Signer) -> None:
    path = tmp_path / "r.jsonl"
    evidence = Evidence.open(path, signer, "r", clock=Clock())
    evidence.append("planned", {})
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(EvidenceTampered) as caught:
        evidence.append("phase", {})
    assert caught.value.where == f"{path}:2"


def test_nothing_can_be_appended_to_a_finished_account(account: Path, signer: Signer) -> None:
    evidence = Evidence.open(account, signer, "r-1")
    assert evidence.finished
    with pytest.raises(InvalidInput, match="complete"):
        evidence.append("phase", {})


def test_finishing_twice_changes_nothing(account: Path, signer: Signer) -> None:
    before = account.read_bytes()
    assert Evidence.open(account, signer, "r-1").finish("done").n == 6
    assert account.read_bytes() == before


def test_a_clock_that_goes_back_never_makes_time_go_back(tmp_path: Path, signer: Signer) -> None:
    times = iter([START, START + timedelta(hours=1), START - timedelta(days=1)])
    evidence = Evidence.open(tmp_path / "r.jsonl", signer, "r", clock=lambda: next(times))
    evidence.append("a", {})
    assert evidence.append("b", {}).time == START + timedelta(hours=1)


@pytest.mark.parametrize("kind", ["", "Phase", "opened", "recovered", "finished", "a b", "x" * 65])
def test_a_kind_that_is_reserved_or_malformed_is_refused(tmp_path: Path, signer: Signer, kind: str) -> None:
    with pytest.raises(InvalidInput):
        Evidence.open(tmp_path / "r.jsonl", signer, "r").append(kind, {})


@pytest.mark.parametrize("body", [{"x": object()}, {"x": float("nan")}, {"x": b"bytes"}, {"x": {1, 2}}])
def test_a_body_without_a_json_form_is_refused_and_leaves_the_account_as_it_was(
    tmp_path: Path, signer: Signer, body: dict[str, object]
) -> None:
    evidence = Evidence.open(tmp_path / "r.jsonl", signer, "r")
    before = evidence.path.read_bytes()
    with pytest.raises(InvalidInput):
        evidence.append("phase", body)
    assert evidence.path.read_bytes() == before


def _keys() -> list[object]:
    return [
        ec.generate_private_key(ec.SECP256R1()),
        Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ]


@pytest.mark.parametrize("key", _keys(), ids=["P-256", "Ed25519", "RSA"])
def test_a_body_with_a_private_key_in_any_common_form_is_refused(tmp_path: Path, signer: Signer, key: object) -> None:
    evidence = Evidence.open(tmp_path / "r.jsonl", signer, "r")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    locked = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass"))
    forms = [pem.decode(), base64.encodebytes(der).decode(), base64.urlsafe_b64encode(der).decode().rstrip("=")]
    forms += [base64.b64encode(b"x" * offset + pem).decode() for offset in range(3)]
    forms += [base64.b64encode(locked).decode(), f"error: cannot parse {pem.decode()!r}"]
    for form in forms:
        for body in ({"note": form}, {"a": [{"b": form}]}, {form: 1}):
            with pytest.raises(InvalidInput, match="private key") as caught:
                evidence.append("phase", body)
            assert form not in str(caught.value)
    assert [entry.kind for entry in read(evidence.path)] == ["opened"]


def test_certificates_fingerprints_and_long_names_are_no_private_keys(tmp_path: Path, signer: Signer) -> None:
    evidence = Evidence.open(tmp_path / "r.jsonl", signer, "r")
    body = {
        "certificate": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "fp": "ab" * 64,
        "p": "a/" * 99,
    }
    assert evidence.append("phase", body).n == 2


def test_threads_of_one_process_share_one_account(tmp_path: Path, signer: Signer) -> None:
    evidence = Evidence.open(tmp_path / "r.jsonl", signer, "r")
    threads = [
        threading.Thread(target=lambda i=i: [evidence.append("pod", {"thread": i, "n": n}) for n in range(10)])
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify(evidence.path).entries == 41


def _append_ten(path: Path, material_pem: str, worker: int) -> None:
    from capstan.vaults.material import Material

    evidence = Evidence.open(path, Signer(Material(private_key_pem=material_pem)), "r")
    for n in range(10):
        evidence.append("pod", {"worker": worker, "n": n})


def test_processes_share_one_account(tmp_path: Path) -> None:
    material = mint_signing_key()
    path = tmp_path / "r.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_ten, args=(path, material.unsafe_private_key_pem(), i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    entries = read(path)
    assert len(entries) == 31
    assert {(e.body["worker"], e.body["n"]) for e in entries[1:]} == {(w, n) for w in range(3) for n in range(10)}


@pytest.mark.slow
def test_an_account_survives_sigkill_at_any_moment(tmp_path: Path) -> None:
    """A process appends as fast as it can and is killed again and again; every acknowledged entry is there."""
    vault = tmp_path / "vault"
    path = tmp_path / "r.jsonl"
    program = (
        "import sys; from pathlib import Path\n"
        "from capstan.evidence import Evidence, signer_from_vault; from capstan.vaults.local import LocalVault\n"
        f"evidence = Evidence.open(Path({str(path)!r}), signer_from_vault(LocalVault(Path({str(vault)!r}))), 'r')\n"
        "while True:\n    print(evidence.append('pod', {'text': 'x' * 5000}).digest, flush=True)\n"
    )
    acknowledged: list[str] = []
    for round_ in range(6):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        acknowledged.extend(process.stdout.readline().strip() for _ in range(5 + 7 * round_))
        os.kill(process.pid, signal.SIGKILL)
        acknowledged.extend(
            line.strip() for line in process.stdout.read().splitlines(keepends=True) if line[-1] == "\n"
        )
        process.wait()
    evidence = Evidence.open(path, signer_from_vault(LocalVault(vault)), "r")
    evidence.finish("done")
    digests = {entry.digest for entry in read(path)}
    assert set(acknowledged) <= digests
    assert verify(path).finished


def test_the_signing_key_is_minted_once_and_lives_in_the_vault(tmp_path: Path) -> None:
    vault = LocalVault(tmp_path / "vault")
    first, second = signer_from_vault(vault), signer_from_vault(vault)
    assert first.sign(b"x") == second.sign(b"x")
    assert [reference.name for reference in vault.list()] == ["capstan-evidence-signing-key"]


def test_a_key_that_is_not_ed25519_cannot_sign(tmp_path: Path) -> None:
    from capstan.vaults.material import Material

    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(InvalidInput, match="cannot be signed"):
        Signer(Material(private_key_pem=pem.decode()))
