"""A very small HTTP/1.1 server over asyncio streams, for the admin ports of mesh programs and the lab's control port.

The protocol is h11's; this module only moves bytes. It serves a connection that somebody else accepted, plain or TLS,
because a proxy's admin port carries both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus, urlsplit

import h11

if TYPE_CHECKING:
    from infra.lab.linkerd.tlsstream import Writer

IDLE_SECONDS = 60.0
_MAX_BODY = 8 << 20


@dataclass(frozen=True)
class Request:
    """One request; `query` is the raw query string (Linkerd's `env.json?A&B` is no key=value list)."""

    method: str
    path: str
    query: str = ""
    body: bytes = b""

    def names(self) -> list[str]:
        """The bare names of a query such as `?A&B`."""
        return [unquote_plus(part.partition("=")[0]) for part in self.query.split("&") if part]


@dataclass(frozen=True)
class Response:
    """One answer."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = field(default=())

    @classmethod
    def text(cls, text: str, status: int = 200) -> Response:
        """A plain-text answer."""
        return cls(status, text.encode())

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Response:
        """A JSON answer."""
        return cls(status, json.dumps(value).encode(), "application/json")


NOT_FOUND = Response.text("not found\n", 404)
Handler = Callable[[Request], Awaitable[Response]]


async def serve_connection(reader: asyncio.StreamReader, writer: Writer, handler: Handler) -> None:
    """Answer requests on one connection until either side ends it."""
    connection = h11.Connection(h11.SERVER)
    try:
        while True:
            request = await _read_request(connection, reader)
            if request is None:
                return
            writer.write(_encode(connection, await handler(request)))
            await writer.drain()
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
    except (h11.RemoteProtocolError, ConnectionError, ssl.SSLError, TimeoutError, asyncio.IncompleteReadError):
        return
    finally:
        if isinstance(writer, asyncio.StreamWriter):  # a TLS stream is closed, with good-bye, by its listener
            writer.close()


async def start(host: str, port: int, handler: Handler, *, tls: ssl.SSLContext | None = None) -> asyncio.Server:
    """Listen on host:port and serve `handler`; the caller closes the server."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_connection(reader, writer, handler)

    return await start_server(connected, host, port, tls=tls)


async def start_server(
    connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
) -> asyncio.Server:
    """asyncio.start_server, whose connections end quietly when the event loop does."""

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A connection cancelled at the end of the loop is no error to report (asyncio before 3.12 prints a traceback).
        with contextlib.suppress(asyncio.CancelledError):
            await connected(reader, writer)

    return await asyncio.start_server(quietly, host, port, ssl=tls)


async def stop(server: asyncio.Server) -> None:
    """Stop listening and drop idle connections."""
    server.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(server.wait_closed(), 1.0)


async def _read_request(connection: h11.Connection, reader: asyncio.StreamReader) -> Request | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            async with asyncio.timeout(IDLE_SECONDS):
                connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _MAX_BODY:
                raise h11.RemoteProtocolError("request body is too large", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            target = urlsplit(head.target.decode("latin-1"))
            return Request(head.method.decode(), target.path, target.query, bytes(body))
        else:
            return None


def _encode(connection: h11.Connection, response: Response) -> bytes:
    headers = [("content-type", response.content_type), ("content-length", str(len(response.body))), *response.headers]
    head = h11.Response(
        status_code=response.status,
        headers=headers,
        reason=HTTPStatus(response.status).phrase.encode(),
    )
    return b"".join(
        part or b""
        for part in (
            connection.send(head),
            connection.send(h11.Data(data=response.body)),
            connection.send(h11.EndOfMessage()),
        )
    )
