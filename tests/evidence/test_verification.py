"""Claims about verifying an account: what is noticed, and what a stranger needs for it."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)

from capstan.errors import EvidenceTampered, NotFound
from capstan.evidence import Evidence, load_public_key, read, rows, verify
from capstan.evidence.chain import written
from capstan.evidence.signer import Signer, mint_signing_key

if TYPE_CHECKING:
    from pathlib import Path

from tests.evidence.ticking import START, Clock


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


@pytest.mark.parametrize("stride", [47, pytest.param(5, marks=pytest.mark.slow)])
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


def test_the_spare_bits_at_the_end_of_a_signature_may_not_differ(account: Path) -> None:
    """Sixteen spellings of the last character decode to the same signature; only one is the line that was written."""
    original = account.read_bytes()
    last = original.rindex(b'==","time"') - 1
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for character in alphabet:
        if character != original[last]:
            account.write_bytes(original[:last] + bytes([character]) + original[last + 1 :])
            with pytest.raises(EvidenceTampered, match="signature"):
                verify(account)


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


def test_a_line_after_the_final_one_is_noticed_even_if_the_right_key_wrote_it(account: Path, signer: Signer) -> None:
    last = read(account)[-1]
    fields = {"n": 7, "time": last.time.isoformat(timespec="microseconds"), "rotation": "r-1", "kind": "phase"}
    with account.open("ab") as file:
        file.write(written({**fields, "body": {}, "prev": last.digest}, signer) + b"\n")
    with pytest.raises(EvidenceTampered, match="after the final one") as caught:
        verify(account)
    assert caught.value.where == f"{account}:7"


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
