"""Listening sockets that decide per connection whether it is TLS, and with which certificate.

A proxy changes its leaf while it listens, and its admin port carries plain HTTP and TLS alike (told apart by the first
byte: 0x16 begins a TLS handshake record, RFC 8446 5.1).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable

from infra.lab.accepting import Acceptor
from infra.lab.linkerd.tlsstream import TlsStream, Writer

TLS_HANDSHAKE_RECORD = b"\x16"
FIRST_BYTE_SECONDS = 10.0
HANDSHAKE_SECONDS = 10.0

log = logging.getLogger(__name__)

Connected = Callable[[asyncio.StreamReader, Writer], Awaitable[None]]
Choose = Callable[[bool], ssl.SSLContext | None]


class RefusedError(Exception):
    """Raised by the chooser: end this connection without an answer."""


class Listener:
    """One listening socket.

    Args:
        choose: Called with whether the client begins TLS; returns the context to answer with, or None for plain text.
            May raise RefusedError.
        connected: Serves the connection, after the handshake if there is one.
    """

    def __init__(self, host: str, port: int, choose: Choose, connected: Connected) -> None:
        self._choose = choose
        self._connected = connected
        self._acceptor = Acceptor(host, port, self._handle)

    def start(self) -> None:
        """Bind and accept in the background.

        Raises:
            OSError: If the address is taken.
        """
        self._acceptor.start()

    async def stop(self) -> None:
        """Stop listening and drop what is open."""
        await self._acceptor.stop()

    async def _handle(self, connection: socket.socket) -> None:
        try:
            first = await _peek(connection)
            context = self._choose(first == TLS_HANDSHAKE_RECORD)
        except (RefusedError, OSError, TimeoutError):
            connection.close()
            return
        except asyncio.CancelledError:
            connection.close()
            raise
        try:
            if context is None:
                await self._plain(connection)
            else:
                await self._encrypted(connection, context)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            # ssl.SSLError is an OSError: a peer whose certificate or server name was refused.
            log.debug("connection on %s:%s: %s", *self._acceptor.address, error)

    async def _plain(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            await self._connected(reader, writer)
        finally:
            writer.close()

    async def _encrypted(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        stream = TlsStream(connection, context)
        try:
            await stream.handshake(HANDSHAKE_SECONDS)
            await self._connected(stream.reader, stream)
        finally:
            await stream.aclose()


async def _peek(connection: socket.socket) -> bytes:
    """The first byte the client sends, left in the socket; b"" at its end."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(FIRST_BYTE_SECONDS):
        while True:
            try:
                return connection.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                readable = loop.create_future()
                loop.add_reader(connection, _set, readable)
                try:
                    await readable
                finally:
                    loop.remove_reader(connection)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def pipe(reader: asyncio.StreamReader, writer: Writer) -> None:
    """Copy one direction until its end, then half-close."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def relay(reader: asyncio.StreamReader, writer: Writer, host: str, port: int) -> None:
    """Join a connection with a new one to host:port until either ends; raises OSError if that cannot be opened."""
    upstream_reader, upstream_writer = await asyncio.open_connection(host, port)
    try:
        forward = asyncio.ensure_future(pipe(reader, upstream_writer))
        backward = asyncio.ensure_future(pipe(upstream_reader, writer))
        try:
            await asyncio.wait((forward, backward), return_when=asyncio.FIRST_COMPLETED)
            # TLS cannot half-close: once the client is gone nothing can be answered any more.
            if not backward.done():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(backward), 0.5)
        finally:
            for task in (forward, backward):
                task.cancel()
            await asyncio.gather(forward, backward, return_exceptions=True)
    finally:
        upstream_writer.close()
