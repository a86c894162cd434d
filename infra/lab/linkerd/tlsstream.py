"""A TLS server connection over an accepted socket that tells a refused client why.

asyncio's own TLS drops the connection when a handshake fails, before the alert record (RFC 8446 section 6) is sent; a
real proxy sends it, and whoever probes a proxy with a certificate it should not trust wants to see the alert, not a
broken connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    import socket

_CHUNK = 65536
_CLOSE_SECONDS = 1.0


class Writer(Protocol):
    """What servers here need of a writer; asyncio.StreamWriter fits too."""

    def write(self, data: bytes) -> None:
        """Queue bytes."""

    async def drain(self) -> None:
        """Send what is queued."""

    def can_write_eof(self) -> bool:
        """Whether one direction alone can be ended."""

    def write_eof(self) -> None:
        """End the sending direction."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object`, as asyncio names it."""


class TlsStream:
    """One connection after its handshake: `reader` to read from, the writer's methods to answer with."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self._socket = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()
        self._pump: asyncio.Task[None] | None = None
        self.reader = asyncio.StreamReader()

    async def handshake(self, seconds: float) -> Self:
        """Complete the handshake and begin to read.

        Raises:
            OSError: The handshake failed (ssl.SSLError; an alert has been sent) or the client went away.
            TimeoutError: It took longer than `seconds`.
        """
        async with asyncio.timeout(seconds):
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await self._flush()
                    await self._receive()
                except ssl.SSLError:
                    await self._flush()
                    raise
            await self._flush()
        self._pump = asyncio.create_task(self._read_forever())
        return self

    def write(self, data: bytes) -> None:
        """Encrypt and queue bytes; `drain` sends them."""
        self._tls.write(data)

    async def drain(self) -> None:
        """Send what is queued."""
        await self._flush()

    def can_write_eof(self) -> bool:
        """TLS connections end in both directions at once here."""
        return False

    def write_eof(self) -> None:
        """Not possible; see `can_write_eof`."""
        raise NotImplementedError("this TLS connection cannot be half-closed")

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object` and `peername`."""
        if name == "peername":
            return self._socket.getpeername()
        return self._tls if name == "ssl_object" else default

    async def aclose(self) -> None:
        """Send what is queued and the closing alert, then close the socket."""
        # The reading task must be gone before the descriptor is: it would otherwise take its registration off a
        # descriptor that by then belongs to another connection.
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        try:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    with contextlib.suppress(ssl.SSLError):
                        self._tls.unwrap()
                    await self._flush()
        finally:
            self._socket.close()

    async def _read_forever(self) -> None:
        try:
            while True:
                try:
                    if data := self._tls.read(_CHUNK):
                        self.reader.feed_data(data)
                        continue
                    break
                except ssl.SSLWantReadError:
                    await self._receive()
        except OSError as error:
            if not isinstance(error, ssl.SSLError | ConnectionError):
                self.reader.set_exception(error)
                return
        self.reader.feed_eof()

    async def _receive(self) -> None:
        data = await self._loop.sock_recv(self._socket, _CHUNK)
        if not data:
            raise ConnectionResetError("the client has closed the connection")
        self._incoming.write(data)

    async def _flush(self) -> None:
        async with self._sending:
            if self._outgoing.pending:
                await self._loop.sock_sendall(self._socket, self._outgoing.read())
