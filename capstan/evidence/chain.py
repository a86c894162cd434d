"""One entry, its bytes, and the rules that tie it to the one before."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from capstan.errors import EvidenceTampered, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstan.evidence.signer import Signer

FORMAT = "capstan-evidence/1"
OPENED = "opened"
RECOVERED = "recovered"
FINISHED = "finished"
NO_PREVIOUS = "0" * 64
KIND = re.compile(r"[a-z][a-z0-9-]{0,63}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FIELDS = {"n", "time", "rotation", "kind", "body", "prev", "signature"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One verified line.

    Attributes:
        n: Sequence number, from 1; also the line number.
        time: When it was written, aware UTC; never before the previous entry's.
        rotation: Rotation id; the same in the whole account.
        kind: What happened.
        body: The facts, JSON values.
        prev: SHA-256 (hex) of the previous line.
        digest: SHA-256 (hex) of this line; the next entry's `prev`.
    """

    n: int
    time: datetime
    rotation: str
    kind: str
    body: Mapping[str, Any]
    prev: str
    digest: str


@dataclass(frozen=True, slots=True)
class Continues:
    """Which account a further one goes on from.

    Attributes:
        account: Name of its file, in the same directory.
        head: SHA-256 (hex) of its last line; of one that is not complete, of the last line known of it.
        complete: Whether it had ended. One that had not is on another machine, where its run died.
    """

    account: str
    head: str
    complete: bool = True

    @classmethod
    def of(cls, first: Entry, where: str) -> Continues | None:
        """What an account's first entry says; None if it is the first account of its rotation.

        Raises:
            EvidenceTampered: It says something that no Capstan wrote.
        """
        value = first.body.get("continues")
        if value is None:
            return None
        account, head = (value.get("account"), value.get("head")) if isinstance(value, dict) else (None, None)
        if not (isinstance(account, str) and _FILE.fullmatch(account) and isinstance(head, str)):
            raise tampered(where, 1, "an earlier account that is not named properly", "a file name and a head")
        return cls(account, head, value.get("complete", True) is not False)

    def body(self) -> dict[str, Any]:
        """As the first entry of the further account says it."""
        said: dict[str, Any] = {"account": self.account, "head": self.head}
        return said if self.complete else {**said, "complete": False}


def canonical(value: object) -> bytes:
    """The one byte string of a JSON value.

    Raises:
        InvalidInput: It has no JSON form (or NaN or infinity inside).
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput("evidence holds JSON values only", observed=str(error)) from error
    return text.encode("ascii")


def public_key_pem(key: Ed25519PublicKey) -> str:
    """SubjectPublicKeyInfo (RFC 5280) as PEM, as `openssl pkey -pubin` reads it."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def public_key_fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 (hex) of the SubjectPublicKeyInfo's DER."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def written(entry: Mapping[str, Any], signer: Signer) -> bytes:
    """The line, without newline, for an entry's fields without signature."""
    signature = base64.b64encode(signer.sign(_signed_bytes(entry))).decode("ascii")
    return canonical(dict(entry) | {"signature": signature})


def _signed_bytes(entry: Mapping[str, Any]) -> bytes:
    return FORMAT.encode("ascii") + b"\n" + canonical(entry)


class Chain:
    """Reads lines one after another and refuses the first that does not follow from the one before.

    Args:
        where: The file, for messages.
        public_key: The key that must have signed; None takes the one the first entry declares.
    """

    def __init__(self, where: str, public_key: Ed25519PublicKey | None = None) -> None:
        self.where = where
        self.public_key = public_key
        self.entries: list[Entry] = []

    @property
    def head(self) -> str:
        """SHA-256 (hex) of the last line; zeros if there is none."""
        return self.entries[-1].digest if self.entries else NO_PREVIOUS

    @property
    def finished(self) -> bool:
        """Whether the final entry is there."""
        return bool(self.entries) and self.entries[-1].kind == FINISHED

    def take(self, line: bytes) -> Entry:
        """Check one line, without its newline, and add its entry.

        Raises:
            EvidenceTampered: It breaks a rule; names the line.
        """
        number = len(self.entries) + 1
        # (1) It is JSON in the one canonical form: no byte of the line can differ without notice.
        fields = self._parsed(line, number)
        # (2) Its signature is that of the account's key; the first entry declares the key, nobody else can.
        if number == 1:
            self._take_key(fields)
        self._check_signature(fields, number)
        # (3) It stands where it was written: number, hash of the line before, rotation, time.
        if fields["n"] != number:
            raise self._broken(number, f"entry number {fields['n']}", f"entry number {number}: none left out or moved")
        if fields["prev"] != self.head:
            raise self._broken(number, f"prev {fields['prev']}", f"prev {self.head}, the hash of the line before")
        if self.entries and fields["rotation"] != self.entries[0].rotation:
            raise self._broken(number, f"rotation {fields['rotation']}", f"rotation {self.entries[0].rotation}")
        time = datetime.fromisoformat(fields["time"])
        if self.entries and time < self.entries[-1].time:
            raise self._broken(number, f"time {fields['time']}", "a time not before the previous entry's")
        # (4) Nothing follows the end.
        if self.finished:
            raise self._broken(number, "an entry after the final one", f"nothing after `{FINISHED}`")
        digest = hashlib.sha256(line).hexdigest()
        entry = Entry(number, time, fields["rotation"], fields["kind"], fields["body"], fields["prev"], digest)
        self.entries.append(entry)
        return entry

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            fields = json.loads(line)
            ok = (
                canonical(fields) == line
                and set(fields) == _FIELDS
                and type(fields["n"]) is int
                and all(isinstance(fields[name], str) for name in ("time", "rotation", "kind", "prev", "signature"))
                and isinstance(fields["body"], dict)
                and datetime.fromisoformat(fields["time"]).utcoffset() == UTC.utcoffset(None)
            )
        except (ValueError, TypeError, RecursionError, InvalidInput):
            ok = False
        if not ok:
            raise self._broken(number, "a line that no Capstan wrote", "one canonical JSON object of an entry's fields")
        return dict(fields)

    def _take_key(self, fields: Mapping[str, Any]) -> None:
        try:
            declared = load_pem_public_key(fields["body"]["public_key"].encode("ascii"))
        except (KeyError, ValueError, AttributeError, UnsupportedAlgorithm):
            declared = None
        if fields["kind"] != OPENED or not isinstance(declared, Ed25519PublicKey):
            raise self._broken(1, f"kind {fields['kind']}", f"`{OPENED}` with the Ed25519 public key")
        if self.public_key is None:
            self.public_key = declared
        if public_key_fingerprint(self.public_key) != public_key_fingerprint(declared):
            raise self._broken(
                1,
                f"declared key {public_key_fingerprint(declared)}",
                f"the given key {public_key_fingerprint(self.public_key)}",
            )

    def _check_signature(self, fields: Mapping[str, Any], number: int) -> None:
        assert self.public_key is not None  # noqa: S101 - set by the first entry, for the type checker
        unsigned = {name: value for name, value in fields.items() if name != "signature"}
        try:
            signature = base64.b64decode(fields["signature"], validate=True)
            self.public_key.verify(signature, _signed_bytes(unsigned))
            # Base64 has spare bits at its end; they may not carry a difference that nobody notices.
            ok = base64.b64encode(signature).decode("ascii") == fields["signature"]
        except (InvalidSignature, binascii.Error, ValueError):
            ok = False
        if not ok:
            raise self._broken(
                number,
                "a signature that does not verify: the line was edited, or another key wrote it",
                f"a signature by key {public_key_fingerprint(self.public_key)}",
            )

    def _broken(self, number: int, observed: str, expected: str) -> EvidenceTampered:
        return tampered(self.where, number, observed, expected)


def tampered(where: str, line: int, observed: str, expected: str) -> EvidenceTampered:
    """The one error of a broken account; `where` is `path:line`."""
    return EvidenceTampered(
        "the account of the rotation does not verify",
        where=f"{where}:{line}",
        observed=observed,
        expected=expected,
        next_command="keep this file as it is, and compare it with another copy",
    )
