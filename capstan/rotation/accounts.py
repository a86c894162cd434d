"""Which file the account of a rotation is in: the first, or a further one.

There is a further one where a rotation was rolled back after its end, and where it goes on on another machine: an
account is a file of the machine that writes it. Put side by side they verify as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.evidence import Continues, Evidence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from pathlib import Path

    from capstan.cluster.record import RotationRecord
    from capstan.config import TrustDomain
    from capstan.evidence import Signer

# Names of notes in the rotation record.
EVIDENCE_HEAD: Final = "evidence-head"  # SHA-256 of the account's last line, as of the last phase left or its begin
_PART: Final = "evidence-part"  # number of the account that is being written; absent means 1
_BEFORE: Final = "evidence-before"  # head of the account before it
_BROKE_OFF: Final = "evidence-before-broke-off"  # present where that account is not complete


def account_path(domain: TrustDomain, rotation: str, part: int = 1) -> Path:
    """Where an account of a rotation is kept; `part` counts from 1."""
    number = "" if part == 1 else f".{part}"
    return domain.home_path() / "evidence" / f"{domain.name}-{rotation}{number}.jsonl"


def open_account(
    domain: TrustDomain, record: RotationRecord, signer: Signer, clock: Callable[[], datetime]
) -> Evidence:
    """The account that the record says is being written (or was, if it is complete).

    Raises:
        As `Evidence.open`.
    """
    part = _part(record)
    continues = None
    if part > 1:
        before = account_path(domain, record.rotation_id, part - 1)
        continues = Continues(before.name, record.notes[_BEFORE], complete=_BROKE_OFF not in record.notes)
    return Evidence.open(
        account_path(domain, record.rotation_id, part), signer, record.rotation_id, continues=continues, clock=clock
    )


def reopened(record: RotationRecord) -> dict[str, str]:
    """The notes of a finished record with which it goes on, in a further account."""
    return {k: v for k, v in _further(record).items() if k != _BROKE_OFF}


def begun(notes: Mapping[str, str], head: str) -> dict[str, str]:
    """The notes of a record whose further account was just begun: from now on that one is known of."""
    unknown = _BEFORE in notes and notes.get(EVIDENCE_HEAD) == notes[_BEFORE]
    return {**notes, EVIDENCE_HEAD: head} if unknown else dict(notes)


def moved(domain: TrustDomain, record: RotationRecord) -> dict[str, str] | None:
    """The notes of an unfinished record with which it goes on here; None where its account is here already.

    An account that the record does not know the head of is not known of: then there is none to go on from, and it is
    begun here.
    """
    here = account_path(domain, record.rotation_id, _part(record)).exists()
    head = record.notes.get(EVIDENCE_HEAD)
    if here or record.finished is not None or head is None or head == record.notes.get(_BEFORE):
        return None
    return {**_further(record), _BROKE_OFF: "yes"}


def _further(record: RotationRecord) -> dict[str, str]:
    return {**record.notes, _PART: str(_part(record) + 1), _BEFORE: record.notes[EVIDENCE_HEAD]}


def _part(record: RotationRecord) -> int:
    return int(record.notes.get(_PART, "1"))
