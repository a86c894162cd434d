"""Verify an account with nothing but the file (and, better, the key and a head obtained elsewhere)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from capstan.errors import InvalidInput, NotFound
from capstan.evidence.chain import Chain, Continues, Entry, public_key_fingerprint, tampered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Report:
    """What a verified account says about itself.

    Attributes:
        rotation: Rotation id.
        entries: How many.
        started: Time of the first entry, aware UTC.
        ended: Time of the last.
        finished: Whether the account is complete; if not, the rotation goes on, broke off, or lines were cut off.
        outcome: The final entry's `outcome`, if there is one.
        public_key_fingerprint: SHA-256 (hex) of the signing key's SubjectPublicKeyInfo.
        key_confirmed: Whether the caller gave the key; else the account only vouches for itself.
        head: SHA-256 (hex) of the last line.
        continues: The account before this one, verified as well; None if this is the rotation's first.
        path: The file.
    """

    rotation: str
    entries: int
    started: datetime
    ended: datetime
    finished: bool
    outcome: str | None
    public_key_fingerprint: str
    key_confirmed: bool
    head: str
    continues: Report | None = None
    path: str = ""


def verify(path: Path, public_key: Ed25519PublicKey | None = None, *, head: str | None = None) -> Report:
    """Check every line of the account at `path`, and of those it goes on from.

    Args:
        path: The account.
        public_key: The key that must have written it; None: the one it declares.
        head: A line's SHA-256 (hex) that was noted elsewhere; the account must reach at least to that line.

    Raises:
        EvidenceTampered: A line was edited, deleted, moved, cut off or written by another key; names the line.
        NotFound: There is no such file, or the account it goes on from is not beside it.
    """
    return _verify(path, public_key, head, frozenset({path.name}))


def _verify(path: Path, public_key: Ed25519PublicKey | None, head: str | None, met: frozenset[str]) -> Report:
    chain = _chain(path, public_key)
    if head is not None and head not in {entry.digest for entry in chain.entries}:
        raise tampered(
            str(path),
            len(chain.entries),
            f"the account ends here, with head {chain.head}",
            f"a line with hash {head}, which was noted elsewhere",
        )
    assert chain.public_key is not None  # noqa: S101 - an account without entries is refused in _chain
    last = chain.entries[-1]
    outcome = last.body.get("outcome") if chain.finished else None
    return Report(
        rotation=last.rotation,
        entries=len(chain.entries),
        started=chain.entries[0].time,
        ended=last.time,
        finished=chain.finished,
        outcome=str(outcome) if outcome is not None else None,
        public_key_fingerprint=public_key_fingerprint(chain.public_key),
        key_confirmed=public_key is not None,
        head=chain.head,
        continues=_before(path, chain, met, public_key),
        path=str(path),
    )


def _before(path: Path, chain: Chain, met: frozenset[str], given: Ed25519PublicKey | None) -> Report | None:
    """The account that this one goes on from: by the same key, of the same rotation, complete, with the head named.

    One that broke off on another machine may have lines after the head named: that was noted at its last phase.
    """
    named = Continues.of(chain.entries[0], str(path))
    if named is None:
        return None
    if named.account in met:  # only a made-up account does, but it must not keep us for ever
        raise tampered(str(path), 1, f"it goes on from {named.account}, which goes on from it", "an earlier account")
    try:
        head = None if named.complete else named.head
        before = _verify(path.with_name(named.account), chain.public_key, head, met | {named.account})
        before = replace(before, key_confirmed=given is not None)
    except NotFound as error:
        raise NotFound(
            "the account that this one goes on from is not beside it",
            where=str(path),
            observed=f"no file {named.account}",
            expected=f"the account with head {named.head}",
            next_command="put both into one directory, and verify again",
        ) from error
    expected = (named.head, True) if named.complete else (before.head, False)
    if (before.head, before.finished, before.rotation) != (*expected, chain.entries[0].rotation):
        raise tampered(
            str(path),
            1,
            f"it goes on from {named.account}, which is of rotation {before.rotation} and has head {before.head}",
            f"{'a complete' if named.complete else 'an unfinished'} account of rotation {chain.entries[0].rotation} "
            f"with head {named.head}",
        )
    return before


def read(path: Path, public_key: Ed25519PublicKey | None = None) -> Sequence[Entry]:
    """The entries of a verified account.

    Raises:
        As `verify`.
    """
    return _chain(path, public_key).entries


def load_public_key(pem: str, where: str) -> Ed25519PublicKey:
    """An Ed25519 public key from PEM.

    Raises:
        InvalidInput: It is something else.
    """
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidInput("this is no key of an account", where=where, expected="an Ed25519 public key as PEM")
    return key


def _chain(path: Path, public_key: Ed25519PublicKey | None) -> Chain:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound("there is no such account", where=str(path), next_command="capstan status") from error
    except OSError as error:
        raise InvalidInput("the account cannot be read", where=str(path), observed=str(error)) from error
    chain = Chain(str(path), public_key)
    lines = data.split(b"\n")
    rest = lines.pop()
    for line in lines:
        chain.take(line)
    if rest or not chain.entries:
        raise tampered(
            str(path),
            len(chain.entries) + 1,
            "a line that is cut off: the writer died, or the file was truncated" if rest else "an empty account",
            "complete lines (running the rotation again sets such a line aside and notes it)",
        )
    return chain
