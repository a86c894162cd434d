"""Directories, locks and writes that survive a crash at any point. POSIX only: flock, rename and directory fsync."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from capstan.errors import Conflict, Denied

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEMPORARY_PREFIX = ".incomplete-"
"""Files a crash left half-written; ignored by readers, removed by the next holder of the lock."""


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


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path` so that a reader, or a crash, sees all of it or nothing, and it survives power loss.

    The caller holds the directory's lock.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames and removals in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_incomplete(directory: Path) -> None:
    """Remove what a crash left half-written. The caller holds the directory's lock."""
    for leftover in directory.rglob(f"{TEMPORARY_PREFIX}*"):
        leftover.unlink(missing_ok=True)


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
