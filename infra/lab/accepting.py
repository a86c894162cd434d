"""A listening socket that hands each connection over as it is: raw, non-blocking, before any byte of it is read.

asyncio's own server fixes its TLS context when it starts, and answers a refused handshake in its own way. A proxy
changes its leaf while it listens, and how it refuses is what its peers see.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

BACKLOG = 256


class Acceptor:
    """One listening socket.

    Args:
        serve: Serves one connection, and closes it; runs as a task of its own, which `stop` cancels.
    """

    def __init__(self, host: str, port: int, serve: Callable[[socket.socket], Coroutine[None, None, None]]) -> None:
        self.address = (host, port)
        self._serve = serve
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Bind and accept in the background.

        Raises:
            OSError: If the address is taken.
        """
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setblocking(False)
        try:
            listening.bind(self.address)
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
        self._socket = listening
        self._spawn(self._accept(listening))

    async def stop(self) -> None:
        """Stop listening and drop what is open."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listening)  # non-blocking, as asyncio makes it
            self._spawn(self._serve(connection))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
