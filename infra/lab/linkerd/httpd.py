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
from typing import TYPE_CHECKING, Any, Self
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
Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def serve_connection(reader: asyncio.StreamReader, writer: Writer, handler: Handler) -> None:
    """Answer requests on one connection until either side ends it; the caller closes the connection."""
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


class Server:
    """A listening server whose open connections end with it, as a process's do. (asyncio leaves them running.)"""

    def __init__(self, connected: Connected, tls: ssl.SSLContext | None = None) -> None:
        self._connected = connected
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> Self:
        """Listen; raises OSError if the address is taken."""
        self._server = await asyncio.start_server(self._serve, host, port, ssl=self._tls)
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        if self._server is None:
            raise RuntimeError("the server has not been started")
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def stop(self) -> None:
        """Stop listening and drop what is open."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            # A connection cancelled because its server ends is no error (asyncio before 3.12 would print a traceback).
            with contextlib.suppress(asyncio.CancelledError):
                await self._connected(reader, writer)
        finally:
            writer.close()


async def start(host: str, port: int, handler: Handler, *, tls: ssl.SSLContext | None = None) -> Server:
    """Listen on host:port and serve `handler`; the caller stops the server."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_connection(reader, writer, handler)

    return await Server(connected, tls).start(host, port)


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
