"""Claims about an account that goes on from a complete one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from capstan.errors import EvidenceTampered, InvalidInput, NotFound
from capstan.evidence import Continues, Evidence, read, verify
from capstan.evidence.chain import NO_PREVIOUS, OPENED, public_key_pem, written
from capstan.evidence.signer import Signer, mint_signing_key
from tests.evidence.ticking import START, Clock

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def further(account: Path, signer: Signer) -> Path:
    """A complete account that goes on from the complete `account`."""
    path = account.with_name("r-1.2.jsonl")
    continues = Continues(account.name, verify(account).head)
    evidence = Evidence.open(path, signer, "r-1", continues=continues, clock=Clock())
    evidence.append("turned", {"direction": "back"})
    evidence.finish("rolled back")
    return path


def test_it_verifies_together_with_the_one_before(account: Path, further: Path) -> None:
    report = verify(further)
    assert (report.finished, report.outcome) == (True, "rolled back")
    assert report.continues is not None
    assert report.continues == verify(account)
    assert report.continues.continues is None


def test_opened_again_it_goes_on_and_is_no_third_account(account: Path, signer: Signer) -> None:
    path, continues = account.with_name("r-1.2.jsonl"), Continues(account.name, verify(account).head)
    for _ in range(2):
        Evidence.open(path, signer, "r-1", continues=continues, clock=Clock()).append("turned", {})
    assert [entry.kind for entry in read(path)] == ["opened", "turned", "turned"]


def test_it_does_not_verify_without_the_one_before(account: Path, further: Path) -> None:
    account.unlink()
    with pytest.raises(NotFound, match="is not beside it") as caught:
        verify(further)
    assert account.name in caught.value.observed


def test_it_does_not_verify_with_another_one_in_its_place(account: Path, further: Path, signer: Signer) -> None:
    account.unlink()
    Evidence.open(account, signer, "r-1", clock=Clock()).finish("done")
    with pytest.raises(EvidenceTampered) as caught:
        verify(further)
    assert caught.value.where == f"{further}:1"


def test_it_does_not_verify_with_one_of_another_key_in_its_place(account: Path, further: Path) -> None:
    account.unlink()
    Evidence.open(account, Signer(mint_signing_key()), "r-1", clock=Clock()).finish("done")
    with pytest.raises(EvidenceTampered):
        verify(further)


def test_a_changed_line_of_the_one_before_is_named_in_that_file(account: Path, further: Path) -> None:
    account.write_bytes(account.read_bytes().replace(b"east", b"west"))
    with pytest.raises(EvidenceTampered) as caught:
        verify(further)
    assert caught.value.where == f"{account}:2"


def test_it_is_not_opened_as_going_on_from_something_else(account: Path, further: Path, signer: Signer) -> None:
    for wrong in (None, Continues(account.name, "0" * 64)):
        with pytest.raises(InvalidInput, match="does not go on from"):
            Evidence.open(further, signer, "r-1", continues=wrong, clock=Clock())
    with pytest.raises(InvalidInput, match="does not go on from"):
        Evidence.open(account, signer, "r-1", continues=Continues("other.jsonl", "0" * 64), clock=Clock())


@pytest.mark.parametrize("name", ["../r-1.jsonl", "/etc/passwd", "", ".", 7])
def test_an_earlier_account_is_a_file_beside_it_and_nothing_else(tmp_path: Path, signer: Signer, name: object) -> None:
    path = made_up(tmp_path / "forged.jsonl", signer, {"account": name, "head": "0" * 64})
    with pytest.raises(EvidenceTampered, match="does not verify"):
        verify(path)


def test_made_up_accounts_that_go_on_from_each_other_are_refused(tmp_path: Path, signer: Signer) -> None:
    one = made_up(tmp_path / "one.jsonl", signer, {"account": "two.jsonl", "head": "0" * 64})
    made_up(tmp_path / "two.jsonl", signer, {"account": "one.jsonl", "head": "0" * 64})
    with pytest.raises(EvidenceTampered):
        verify(one)


def made_up(path: Path, signer: Signer, continues: dict[str, object]) -> Path:
    body = {"public_key": public_key_pem(signer.public_key), "continues": continues}
    entry = {
        "n": 1, "time": START.isoformat(timespec="microseconds"), "rotation": "r-1", "kind": OPENED,
        "body": body, "prev": NO_PREVIOUS,
    }  # fmt: skip
    path.write_bytes(written(entry, signer) + b"\n")
    return path
