"""What a directory tells of the names that appear in it, one by one (inotify(7)).

Programs in Go watch mounts with fsnotify: each swap of `..data` is an event of its own, however fast they follow each
other, and what is written into a file is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

_IN_MOVED_TO, _IN_CREATE = 0x80, 0x100
_HEADER = struct.Struct("iIII")
_READ_BYTES = 65536


class Watch:
    """Watches a directory from when it is made.

    Raises:
        OSError: The directory cannot be watched.
    """

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._handle: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._handle < 0:
            raise _error(directory)
        if libc.inotify_add_watch(self._handle, os.fsencode(directory), _IN_MOVED_TO | _IN_CREATE) < 0:
            error = _error(directory)
            os.close(self._handle)
            raise error

    async def names(self) -> AsyncGenerator[str, None]:
        """The name of each entry that was created in the directory, or renamed into it; never ends by itself."""
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._handle, readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                with contextlib.suppress(BlockingIOError):
                    for name in _names(os.read(self._handle, _READ_BYTES)):
                        yield name
        finally:
            loop.remove_reader(self._handle)

    def close(self) -> None:
        """Watch no longer."""
        os.close(self._handle)


def _names(data: bytes) -> list[str]:
    found, position = [], 0
    while position < len(data):
        length = _HEADER.unpack_from(data, position)[3]
        position += _HEADER.size
        found.append(os.fsdecode(data[position : position + length].rstrip(b"\0")))
        position += length
    return found


def _error(directory: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), str(directory))
