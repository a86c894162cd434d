"""The inbound listener of a light proxy: mutual TLS only, then every byte is echoed.

A refused peer sees the alert (RFC 8446 section 6), as from Envoy; plain text is not answered. What is echoed tells a
client that its certificate was accepted: in TLS 1.3 its own handshake is done before the server has looked at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from typing import TYPE_CHECKING

from OpenSSL import SSL

from infra.lab.accepting import Acceptor

if TYPE_CHECKING:
    from collections.abc import Callable

HANDSHAKE_SECONDS = 10.0
CLOSE_SECONDS = 1.0
_CHUNK = 65536


class Inbound:
    """One listening socket.

    Args:
        context: The TLS context for a connection that comes now; None while there is no certificate yet.

    Attributes:
        stats: Envoy's counters of TLS outcomes: handshake, fail_verify_error, fail_verify_no_cert, connection_error.
    """

    def __init__(self, host: str, port: int, context: Callable[[], SSL.Context | None]) -> None:
        self.stats: Counter[str] = Counter()
        self._context = context
        self._acceptor = Acceptor(host, port, self._serve)

    def start(self) -> None:
        """Bind and accept in the background; raises OSError if the address is taken."""
        self._acceptor.start()

    async def stop(self) -> None:
        """Stop listening and drop what is open."""
        await self._acceptor.stop()

    async def _serve(self, connection: socket.socket) -> None:
        try:
            context = self._context()
            if context is None:
                return
            stream = _Stream(connection, context)
            try:
                async with asyncio.timeout(HANDSHAKE_SECONDS):
                    await stream.handshake()
            except (SSL.Error, OSError, TimeoutError) as error:
                self.stats[_outcome(error)] += 1
                await self._linger(connection)
                return
            self.stats["handshake"] += 1
            with contextlib.suppress(SSL.Error, OSError):
                await stream.echo()
            with contextlib.suppress(SSL.Error, OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await stream.close()
        finally:
            connection.close()

    @staticmethod
    async def _linger(connection: socket.socket) -> None:
        """Let the alert arrive: closing while unread bytes are there would reset the connection and take it along."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError):
            connection.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(CLOSE_SECONDS):
                while await loop.sock_recv(connection, _CHUNK):
                    pass


class _Stream:
    """One TLS connection over a non-blocking socket."""

    def __init__(self, connection: socket.socket, context: SSL.Context) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = connection
        self._tls = SSL.Connection(context, None)
        self._tls.set_accept_state()

    async def handshake(self) -> None:
        """Complete it; a refused peer has been sent the alert when this raises SSL.Error."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except SSL.WantReadError:
                await self._flush()
                await self._receive()
            except SSL.Error:
                await self._flush()
                raise
        await self._flush()

    async def echo(self) -> None:
        """Send back what comes until the peer ends it."""
        while True:
            try:
                data = self._tls.recv(_CHUNK)
            except SSL.WantReadError:
                await self._flush()
                await self._receive()
                continue
            except SSL.ZeroReturnError:
                return
            self._tls.sendall(data)
            await self._flush()

    async def close(self) -> None:
        """Say that nothing more comes."""
        self._tls.shutdown()
        await self._flush()

    async def _receive(self) -> None:
        data = await self._loop.sock_recv(self._socket, _CHUNK)
        if not data:
            raise ConnectionResetError("the peer has closed the connection")
        self._tls.bio_write(data)

    async def _flush(self) -> None:
        with contextlib.suppress(SSL.WantReadError):
            while data := self._tls.bio_read(_CHUNK):
                await self._loop.sock_sendall(self._socket, data)


def _outcome(error: Exception) -> str:
    """The counter of Envoy that a failed handshake goes to."""
    reasons = " ".join(str(part) for part in error.args)
    if "certificate verify failed" in reasons:
        return "fail_verify_error"
    if "peer did not return a certificate" in reasons:
        return "fail_verify_no_cert"
    return "connection_error"
