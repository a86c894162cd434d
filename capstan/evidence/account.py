"""Write an account: an entry is on disk before `append` returns; a crash costs at most the entry being written."""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from capstan.errors import Denied, InvalidInput, Retryable
from capstan.evidence._secrets import holds_private_key
from capstan.evidence.chain import (
    FINISHED,
    FORMAT,
    KIND,
    OPENED,
    RECOVERED,
    Chain,
    Continues,
    Entry,
    canonical,
    public_key_fingerprint,
    public_key_pem,
    tampered,
    written,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from capstan.evidence.signer import Signer

_RESERVED_KINDS = {OPENED, RECOVERED, FINISHED}


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Evidence:
    """The account of one rotation. Get one with `Evidence.open`. Threads and processes may append at the same time."""

    def __init__(
        self,
        path: Path,
        signer: Signer,
        rotation: str,
        clock: Callable[[], datetime],
        continues: Continues | None = None,
    ) -> None:
        self.path = path
        self._continues = continues
        self._signer = signer
        self._rotation = rotation
        self._clock = clock
        self._chain = Chain(str(path), signer.public_key)
        self._read_to = 0

    @classmethod
    def open(
        cls,
        path: Path,
        signer: Signer,
        rotation: str,
        *,
        continues: Continues | None = None,
        clock: Callable[[], datetime] = _utc_now,
    ) -> Evidence:
        """Begin an account, or go on with the one at `path`.

        What a crash left half-written at its end is moved into a file beside it and noted in the account.

        Args:
            path: The file; its directory is made if absent.
            signer: Must be the one that began the account.
            rotation: Rotation id; must be the account's.
            continues: The account of this rotation that a new one goes on from.
            clock: The present, aware UTC. A time before the last entry's is recorded as the last entry's.

        Raises:
            EvidenceTampered: The existing account does not verify, or another key began it.
            InvalidInput: It is the account of another rotation, or goes on from another account.
            Denied: The file cannot be opened.
        """
        evidence = cls(path, signer, rotation, clock, continues)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Denied("no account can be kept here", where=str(path.parent), observed=str(error)) from error
        with evidence._opened() as descriptor:
            evidence._catch_up(descriptor)
            if evidence._chain.entries and evidence._chain.entries[0].rotation != rotation:
                raise InvalidInput(
                    "this is the account of another rotation",
                    where=str(path),
                    observed=evidence._chain.entries[0].rotation,
                    expected=rotation,
                )
            if evidence._chain.entries and Continues.of(evidence._chain.entries[0], str(path)) != continues:
                raise InvalidInput(
                    "this account does not go on from the one it should",
                    where=str(path),
                    observed=str(Continues.of(evidence._chain.entries[0], str(path))),
                    expected=str(continues),
                    next_command="capstan evidence verify, of this account and of the one before it",
                )
            evidence._begin_and_note(descriptor)
        return evidence

    @property
    def entries(self) -> Sequence[Entry]:
        """What this process has read and written so far."""
        return tuple(self._chain.entries)

    @property
    def head(self) -> str:
        """SHA-256 (hex) of the last line. Noted elsewhere, it makes cutting lines off visible."""
        return self._chain.head

    @property
    def finished(self) -> bool:
        """Whether the account is complete; then nothing can be appended."""
        return self._chain.finished

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Add an entry; when this returns it is on disk.

        Args:
            kind: What happened: lower-case letters, digits, hyphens.
            body: The facts, JSON values. Fingerprints, never keys.

        Raises:
            InvalidInput: The body holds private key text or no JSON, the kind is not free, or the account is complete.
            EvidenceTampered: What other processes appended meanwhile does not verify.
            Retryable: The disk refused; the account is as before.
        """
        if kind in _RESERVED_KINDS or not KIND.fullmatch(kind):
            raise InvalidInput(
                "not a kind of entry", where=str(self.path), observed=kind, expected=f"{KIND.pattern}, not reserved"
            )
        with self._opened() as descriptor:
            self._catch_up(descriptor)
            self._begin_and_note(descriptor)
            return self._write(descriptor, kind, body)

    def finish(self, outcome: str, body: Mapping[str, Any] | None = None) -> Entry:
        """Add the final entry; if it is already there, return it.

        Raises:
            As `append`.
        """
        with self._opened() as descriptor:
            self._catch_up(descriptor)
            if self.finished:
                return self._chain.entries[-1]
            self._begin_and_note(descriptor)
            return self._write(descriptor, FINISHED, dict(body or {}) | {"outcome": outcome})

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The file, locked. A new open file each time, so that the lock also holds between threads (flock(2))."""
        try:
            new = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Denied("the account cannot be opened", where=str(self.path), observed=str(error)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if new:
                self._sync_directory()
            yield descriptor
        finally:
            os.close(descriptor)

    def _catch_up(self, descriptor: int) -> None:
        """Read and check what was appended since we last looked; set a torn last line aside."""
        size = os.fstat(descriptor).st_size
        if size < self._read_to:
            kept = os.pread(descriptor, size, 0).count(b"\n")
            raise tampered(str(self.path), kept + 1, "the end of the file", "lines that were already on disk")
        data = os.pread(descriptor, size - self._read_to, self._read_to)
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._chain.take(line)
            self._read_to += len(line) + 1
        if rest:
            self._set_aside(descriptor, rest)

    def _set_aside(self, descriptor: int, rest: bytes) -> None:
        # First a durable copy, then the cut: a crash in between leaves both, and the next open does the same again.
        aside = self.path.with_name(f"{self.path.name}.torn-{hashlib.sha256(rest).hexdigest()[:16]}")
        with aside.open("wb") as file:
            file.write(rest)
            file.flush()
            os.fsync(file.fileno())
        self._sync_directory()
        os.ftruncate(descriptor, self._read_to)
        os.fsync(descriptor)

    def _begin_and_note(self, descriptor: int) -> None:
        """Write the first entry if there is none, and note every torn line that is not noted yet."""
        if not self._chain.entries:
            key = self._signer.public_key
            body: dict[str, Any] = {
                "format": FORMAT,
                "public_key": public_key_pem(key),
                "public_key_fingerprint": public_key_fingerprint(key),
            }
            if self._continues is not None:
                body["continues"] = self._continues.body()
            self._write(descriptor, OPENED, body)
        if self.finished:
            return
        noted = {entry.body.get("set_aside") for entry in self._chain.entries if entry.kind == RECOVERED}
        for aside in sorted(self.path.parent.iterdir()):
            if aside.name.startswith(f"{self.path.name}.torn-") and aside.name not in noted:
                rest = aside.read_bytes()
                note: dict[str, Any] = {
                    "set_aside": aside.name,
                    "bytes": len(rest),
                    "sha256": hashlib.sha256(rest).hexdigest(),
                    "reason": "the last line was cut off: its writer died while writing it",
                }
                self._write(descriptor, RECOVERED, note)

    def _write(self, descriptor: int, kind: str, body: Mapping[str, Any]) -> Entry:
        where = f"{self.path}: {kind}"
        if self.finished:
            raise InvalidInput(
                "this account is complete",
                where=str(self.path),
                observed=f"a further entry, {kind}",
                expected="nothing after the final entry",
                next_command="a new rotation has an account of its own",
            )
        canonical(dict(body))  # JSON first, so that the search below sees plain values only
        if holds_private_key(dict(body)):
            # The body is not quoted, for the reason it is refused.
            raise InvalidInput("evidence never holds a private key", where=where, expected="fingerprints and facts")
        now = self._clock().astimezone(UTC)
        if self._chain.entries:
            now = max(now, self._chain.entries[-1].time)
        line = written(
            {
                "n": len(self._chain.entries) + 1,
                "time": now.isoformat(timespec="microseconds"),
                "rotation": self._rotation,
                "kind": kind,
                "body": dict(body),
                "prev": self._chain.head,
            },
            self._signer,
        )
        try:
            remaining = memoryview(line + b"\n")
            while remaining:
                remaining = remaining[os.write(descriptor, remaining) :]
            os.fsync(descriptor)
        except OSError as error:
            with suppress(OSError):  # where even this fails, the next one to look sets the torn line aside
                os.ftruncate(descriptor, self._read_to)
            raise Retryable("the account cannot be written", where=where, observed=str(error), delay=10.0) from error
        self._read_to += len(line) + 1
        return self._chain.take(line)

    def _sync_directory(self) -> None:
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
