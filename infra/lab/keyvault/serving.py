"""An ASGI application over TLS on loopback, in the caller's event loop."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import uvicorn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signals to whoever owns the process."""
        yield


class TlsServer:
    """Serves one application from `start` to `stop`.

    Args:
        application: ASGI, without lifespan.
        host: Loopback address.
    """

    def __init__(self, application: Any, host: str) -> None:
        self._application = application
        self._host = host
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, port: int, certificate: Path, key: Path) -> int:
        """Serve; returns the port (a free one for 0) once it is open.

        Raises:
            RuntimeError: It could not be opened.
        """
        config = uvicorn.Config(
            self._application,
            host=self._host,
            port=port,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
            log_level="warning",
            access_log=False,
            lifespan="off",
            proxy_headers=False,
            date_header=False,  # the services have clocks of their own
            ws="none",
        )
        self._server = _Server(config)
        self._task = asyncio.get_running_loop().create_task(self._server.serve())
        while not self._server.started:
            if self._task.done():
                await self._task
                raise RuntimeError(f"nothing could be served on {self._host}:{port}")
            await asyncio.sleep(0.01)
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop serving; connections that clients keep open are cut, as when the process ends."""
        if self._server and self._task:
            self._server.should_exit = True
            for connection in list(self._server.server_state.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            await self._task
