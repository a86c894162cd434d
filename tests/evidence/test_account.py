"""Claims about the account of a rotation: what it survives and what it refuses."""

from __future__ import annotations

import base64
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from capstan.errors import EvidenceTampered, InvalidInput, NotFound
from capstan.evidence import Evidence, load_public_key, read, rows, signer_from_vault, verify
from capstan.evidence.chain import written
from capstan.evidence.signer import Signer, mint_signing_key
from capstan.vaults.local import LocalVault

if TYPE_CHECKING:
    from pathlib import Path

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """Gives the next second at each call."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer(mint_signing_key())


@pytest.fixture
def account(tmp_path: Path, signer: Signer) -> Path:
    """A finished account of six lines."""
    path = tmp_path / "r-1.jsonl"
    evidence = Evidence.open(path, signer, "r-1", clock=Clock())
    evidence.append("planned", {"digest": "ab" * 32, "clusters": ["east", "west"]})
    evidence.append("phase", {"phase": "trust", "proxies": {"trusting": 40, "of": 40}})
    evidence.append("phase", {"phase": "issue", "bound": None, "seconds": 1.25})
    evidence.append("phase", {"phase": "distrust", "refused": True})
    evidence.finish("done", {"roots": ["cd" * 32]})
    return path


def test_a_finished_account_verifies_without_any_key_given(account: Path) -> None:
    report = verify(account)
    assert (report.rotation, report.entries, report.finished, report.outcome) == ("r-1", 6, True, "done")
    assert (report.started, report.ended) == (START + timedelta(seconds=1), START + timedelta(seconds=6))
    assert not report.key_confirmed


def test_a_given_key_is_confirmed(account: Path, signer: Signer) -> None:
    assert verify(account, signer.public_key).key_confirmed


def test_the_declared_key_is_a_pem_that_loads_again(account: Path, signer: Signer) -> None:
    key = load_public_key(read(account)[0].body["public_key"], "the account")
    assert key.public_bytes(Encoding.Raw, PublicFormat.Raw) == signer.public_key.public_bytes(
        Encoding.Raw, PublicFormat.Raw
    )


def test_an_account_rewritten_with_another_key_verifies_alone_but_not_against_the_real_key(
    account: Path, signer: Signer
) -> None:
    forged = account.with_name("forged.jsonl")
    evidence = Evidence.open(forged, Signer(mint_signing_key()), "r-1", clock=Clock())
    for entry in read(account)[1:-1]:
        evidence.append(entry.kind, entry.body)
    evidence.finish("done")
    assert verify(forged).finished
    with pytest.raises(EvidenceTampered) as caught:
        verify(forged, signer.public_key)
    assert caught.value.where == f"{forged}:1"


@pytest.mark.parametrize("stride", [47, pytest.param(1, marks=pytest.mark.slow)])
def test_a_single_flipped_bit_is_noticed_and_named_by_line(account: Path, stride: int) -> None:
    original = account.read_bytes()
    starts = [0] + [i + 1 for i, byte in enumerate(original) if byte == 0x0A]
    bits = itertools.product(range(len(original)), range(8))
    for position, bit in itertools.islice(bits, 0, None, stride):
        changed = bytearray(original)
        changed[position] ^= 1 << bit
        account.write_bytes(changed)
        line = sum(start <= position for start in starts)
        with pytest.raises(EvidenceTampered) as caught:
            verify(account)
        reported = int(caught.value.where.rsplit(":", 1)[1])
        # A newline changed, or made, joins or splits lines: then it is this line or the next that fails.
        assert reported in (line, line + 1), (position, bit, caught.value)


@pytest.mark.parametrize("line", range(1, 7))
def test_a_deleted_line_is_noticed(account: Path, line: int) -> None:
    lines = account.read_bytes().splitlines(keepends=True)
    account.write_bytes(b"".join(lines[: line - 1] + lines[line:]))
    if line == 6:
        # Nothing in the file itself says that a last line is missing; the report and a head noted elsewhere do.
        assert not verify(account).finished
        return
    with pytest.raises(EvidenceTampered) as caught:
        verify(account)
    assert caught.value.where == f"{account}:{line}"


@pytest.mark.parametrize("kept", range(1, 6))
def test_lines_cut_off_the_end_are_noticed_by_a_head_noted_elsewhere(account: Path, kept: int) -> None:
    head = verify(account).head
    account.write_bytes(b"".join(account.read_bytes().splitlines(keepends=True)[:kept]))
    with pytest.raises(EvidenceTampered, match="does not verify") as caught:
        verify(account, head=head)
    assert caught.value.where == f"{account}:{kept}"


def test_an_older_head_is_found_in_a_longer_account(account: Path) -> None:
    assert verify(account, head=read(account)[2].digest).entries == 6


@pytest.mark.parametrize(("first", "second"), [(2, 3), (3, 4), (4, 5), (5, 6)])
def test_exchanged_lines_are_noticed(account: Path, first: int, second: int) -> None:
    lines = account.read_bytes().splitlines(keepends=True)
    lines[first - 1], lines[second - 1] = lines[second - 1], lines[first - 1]
    account.write_bytes(b"".join(lines))
    with pytest.raises(EvidenceTampered) as caught:
        verify(account)
    assert caught.value.where == f"{account}:{first}"


def test_a_repeated_line_is_noticed(account: Path) -> None:
    lines = account.read_bytes().splitlines(keepends=True)
    account.write_bytes(b"".join([*lines[:3], lines[2], *lines[3:]]))
    with pytest.raises(EvidenceTampered) as caught:
        verify(account)
    assert caught.value.where == f"{account}:4"


@pytest.mark.parametrize("cut", [1, 2, 50, 300])
def test_a_last_line_cut_short_is_noticed(account: Path, cut: int) -> None:
    account.write_bytes(account.read_bytes()[:-cut])
    with pytest.raises(EvidenceTampered) as caught:
        verify(account)
    assert caught.value.where == f"{account}:6"


def test_an_entry_appended_by_another_key_is_noticed(tmp_path: Path, signer: Signer) -> None:
    path = tmp_path / "a.jsonl"
    evidence = Evidence.open(path, signer, "r-1", clock=Clock())
    other = Evidence.open(tmp_path / "b.jsonl", Signer(mint_signing_key()), "r-1", clock=Clock())
    entry = other.append("phase", {"phase": "trust"})
    fields = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[entry.n - 1])
    with path.open("ab") as file:
        file.write(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    with pytest.raises(EvidenceTampered, match="another key") as caught:
        verify(path)
    assert caught.value.where == f"{path}:2"
    with pytest.raises(EvidenceTampered, match="another key"):
        evidence.append("phase", {"phase": "issue"})


def test_lines_of_another_rotation_of_the_same_key_do_not_fit(account: Path, tmp_path: Path, signer: Signer) -> None:
    other = tmp_path / "r-2.jsonl"
    evidence = Evidence.open(other, signer, "r-2", clock=Clock())
    evidence.append("planned", {})
    lines = account.read_bytes().splitlines(keepends=True)
    lines[1] = other.read_bytes().splitlines(keepends=True)[1]
    account.write_bytes(b"".join(lines))
    with pytest.raises(EvidenceTampered) as caught:
        verify(account)
    assert caught.value.where == f"{account}:2"


def test_the_same_json_in_another_spelling_is_noticed(account: Path) -> None:
    lines = account.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]), sort_keys=True)
    account.write_text("\n".join(lines) + "\n")
    with pytest.raises(EvidenceTampered) as caught:
        verify(account)
    assert caught.value.where == f"{account}:3"


def test_an_empty_file_is_no_account_and_a_missing_one_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(EvidenceTampered):
        verify(tmp_path / "empty")
    with pytest.raises(NotFound):
        verify(tmp_path / "missing")


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


def test_a_line_after_the_final_one_is_noticed_even_if_the_right_key_wrote_it(account: Path, signer: Signer) -> None:
    last = read(account)[-1]
    fields = {"n": 7, "time": last.time.isoformat(timespec="microseconds"), "rotation": "r-1", "kind": "phase"}
    with account.open("ab") as file:
        file.write(written({**fields, "body": {}, "prev": last.digest}, signer) + b"\n")
    with pytest.raises(EvidenceTampered, match="after the final one") as caught:
        verify(account)
    assert caught.value.where == f"{account}:7"


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


def test_openssl_can_verify_an_entry_with_the_documented_recipe(account: Path, tmp_path: Path) -> None:
    """A stranger needs only this: the public key from line 1, and the object without its signature."""
    lines = [json.loads(line) for line in account.read_text().splitlines()]
    (tmp_path / "key.pem").write_text(lines[0]["body"]["public_key"])
    entry = lines[3]
    (tmp_path / "signature").write_bytes(base64.b64decode(entry.pop("signature")))
    signed = "capstan-evidence/1\n" + json.dumps(entry, sort_keys=True, separators=(",", ":"))
    (tmp_path / "signed").write_text(signed)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "signed"]
    done = subprocess.run(
        [*command, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_rows_are_short_and_flat(account: Path) -> None:
    table = rows(read(account))
    assert [row.n for row in table] == [1, 2, 3, 4, 5, 6]
    assert table[1].facts == "clusters=east west, digest=abababababab"
    assert table[2].facts == "phase=trust, proxies.of=40, proxies.trusting=40"
    assert "(PEM)" in table[0].facts
