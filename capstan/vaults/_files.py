"""Directories, locks and writes that survive a crash at any point. POSIX only: flock, rename and directory fsync."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from capstan.errors import Conflict, Denied, Retryable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MARK = ".incomplete-"  # in names of files being written; a crash leaves them, readers ignore them


def private_directory(path: Path) -> None:
    """Create `path` with mode 0700, or check that an existing one is closed to others.

    Raises:
        Denied: It exists and others can enter it, or it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        if stat.S_IMODE(status.st_mode) & 0o077 and status.st_uid == os.geteuid() and not any(path.iterdir()):
            path.chmod(0o700)  # just an empty directory made under a common umask: nothing has leaked yet
            status = path.stat()
    except OSError as error:
        raise Denied(
            "the directory cannot be used", where=str(path), observed=str(error), expected="a writable directory"
        ) from error
    refuse_if_open_to_others(path, status, 0o700)


def refuse_if_open_to_others(path: Path, status: os.stat_result, wanted: int) -> None:
    """Raise unless only the owner, who must be us or root, has any access.

    Raises:
        Denied: Group or others have access, or somebody else owns it.
    """
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise Denied(
            "others can read what only the owner may",
            where=str(path),
            observed=f"mode {mode:04o}",
            expected=f"mode {wanted:04o}",
            next_command=f"chmod {wanted:o} {path}",
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise Denied(
            "it belongs to somebody else",
            where=str(path),
            observed=f"owner uid {status.st_uid}",
            expected=f"uid {os.geteuid()}",
        )


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`, mode 0600, so that a reader, or a crash, sees all of it or nothing; survives power loss.

    The caller holds the directory's lock.
    """
    temporary = _written_beside(path, data)
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def create_atomically(path: Path, data: bytes) -> None:
    """As `write_atomically`, but what is already at `path` stays; needs no lock."""
    temporary = _written_beside(path, data)
    try:
        with suppress(FileExistsError, FileNotFoundError):  # the latter: whoever was faster has tidied up already
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def _written_beside(path: Path, data: bytes) -> Path:
    temporary = path.with_name(f".{path.name}{_MARK}{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def sync_directory(path: Path) -> None:
    """Make renames and removals in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_incomplete(directory: Path, name: str = "") -> None:
    """Remove what a crash left half-written: of the file `name` in `directory`, or of any file in the whole tree.

    The caller holds the lock under which such files are written.
    """
    if name:
        leftovers = [path for path in directory.iterdir() if path.name.startswith(f".{name}{_MARK}")]
    else:
        leftovers = [path for path in directory.rglob(".*") if _MARK in path.name]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)


@contextmanager
def file_errors(where: str) -> Iterator[None]:
    """Errors of the operating system in the enclosed calls become ours.

    Raises:
        Denied: Access, or a read-only file system.
        Retryable: No space, too many open files, an I/O error: the next try may succeed.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Denied(
                "the file system refuses access", where=where, observed=str(error), expected="a directory of our own"
            ) from error
        raise Retryable(
            "the file system failed", where=where, observed=str(error), expected="space and a sound disk", delay=10.0
        ) from error


@contextmanager
def locked(path: Path, patience: float = 60.0) -> Iterator[None]:
    """Hold the lock file `path` against other processes and threads; the kernel frees it when the holder dies.

    Args:
        path: The lock file; made if absent, never removed.
        patience: Seconds to wait for another holder.

    Raises:
        Conflict: Another holder kept it for longer.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Conflict(
                        "another process is writing",
                        where=str(path),
                        observed=f"locked for more than {patience:g} s",
                        expected="a free lock",
                        next_command=f"fuser {path}",
                        delay=5.0,
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)
