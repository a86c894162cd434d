"""A small HTTP/1.1 client over asyncio streams: kept connections, whole answers, streamed answers (RFC 9112).

General clients cost more processor time per request than the lab's API server itself; with thousands of small
requests from one process that decides how many pods a laptop can carry. This one knows what a Kubernetes API server
sends and no more: Content-Length, chunked, or until close.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Mapping

LIMIT = 1 << 20  # of one header block
IDLE_SECONDS = 60.0
CHUNK = 1 << 16


class NoAnswerError(Exception):
    """The connection could not be made, broke, or said something that is no HTTP. Whether the request took effect is
    unknown.
    """


@dataclass(frozen=True)
class Answer:
    """A whole answer. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(eq=False)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used: float = 0.0

    def alive(self, now: float) -> bool:
        return not self.reader.at_eof() and not self.writer.is_closing() and now - self.used < IDLE_SECONDS


@dataclass(eq=False)
class Pool:
    """Connections to one server.

    Args:
        base: Scheme, host, port and possibly a path prefix.
        tls: For https.
        server_name: Name to expect in the server's certificate, the host if None.
        limit: Requests in flight at once; streams do not count.
    """

    base: str
    tls: ssl.SSLContext | None = None
    server_name: str | None = None
    limit: int = 16
    _idle: list[_Connection] = field(default_factory=list)
    _streams: set[_Connection] = field(default_factory=set)
    _closed: bool = False

    def __post_init__(self) -> None:
        url = urlsplit(self.base)
        self._host = url.hostname or ""
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._prefix = url.path.rstrip("/")
        self._secure = url.scheme == "https"
        self._authority = url.netloc
        self._slots = asyncio.Semaphore(self.limit)

    async def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None, seconds: float = 30.0
    ) -> Answer:
        """Send one request and read the whole answer within `seconds`. Raises NoAnswerError."""
        async with self._slots:
            while True:
                connection, kept = await self._connect(seconds)
                try:
                    async with asyncio.timeout(seconds):
                        self._send(connection, method, target, headers, body)
                        await connection.writer.drain()
                        status, fields = await _head(connection.reader)
                        whole = b"".join([part async for part in _body(connection.reader, status, fields)])
                except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
                    connection.writer.close()
                    if kept and method == "GET" and isinstance(error, OSError | EOFError) and not self._closed:
                        continue  # the server closed a kept connection under our hands: reading again harms nobody
                    raise NoAnswerError(f"{type(error).__name__}: {error}") from error
                except BaseException:  # cancelled in the middle of an answer: the connection is of no further use
                    connection.writer.close()
                    raise
                if self._closed or fields.get("connection", "").lower() == "close":
                    connection.writer.close()
                else:
                    connection.used = asyncio.get_running_loop().time()
                    self._idle.append(connection)
                return Answer(status, fields, whole)

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, target: str, headers: Mapping[str, str], silence: float
    ) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """(status, parts of the body as they arrive); a part that takes longer than `silence` seconds breaks it off.

        Raises NoAnswerError, also from the iterator.
        """
        connection, _ = await self._connect(30.0, fresh=True)
        self._streams.add(connection)
        try:
            try:
                async with asyncio.timeout(30.0):
                    self._send(connection, method, target, headers, None)
                    await connection.writer.drain()
                    status, fields = await _head(connection.reader)
            except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
                raise NoAnswerError(f"{type(error).__name__}: {error}") from error
            yield status, _guarded(_body(connection.reader, status, fields), silence)
        finally:
            self._streams.discard(connection)
            connection.writer.close()

    async def close(self) -> None:
        """Close all connections; streams break off."""
        self._closed = True
        for connection in (*self._idle, *self._streams):
            connection.writer.close()
            with contextlib.suppress(OSError):
                await connection.writer.wait_closed()
        self._idle.clear()

    async def _connect(self, seconds: float, *, fresh: bool = False) -> tuple[_Connection, bool]:
        """A connection, and whether it was used before. Raises NoAnswerError."""
        if self._closed:
            raise NoAnswerError("this client has been closed")
        now = asyncio.get_running_loop().time()
        while self._idle and not fresh:
            connection = self._idle.pop()  # the one used last: others grow old and are closed
            if connection.alive(now):
                return connection, True
            connection.writer.close()
        name = (self.server_name or self._host) if self._secure else None
        try:
            async with asyncio.timeout(seconds):
                reader, writer = await asyncio.open_connection(
                    self._host, self._port, ssl=self.tls if self._secure else None, server_hostname=name, limit=LIMIT
                )
        except (OSError, TimeoutError) as error:
            raise NoAnswerError(f"{type(error).__name__}: {error}") from error
        return _Connection(reader, writer), False

    def _send(
        self, connection: _Connection, method: str, target: str, headers: Mapping[str, str], body: bytes | None
    ) -> None:
        lines = [f"{method} {self._prefix}{target} HTTP/1.1", f"host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None or method in ("POST", "PUT", "PATCH"):
            lines.append(f"content-length: {len(body or b'')}")
        connection.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers; informational answers (1xx) are skipped. Raises EOFError, ValueError."""
    while True:
        block = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = block[:-4].split("\r\n")
        version, status, *_ = first.split(" ", 2)
        if not version.startswith("HTTP/1."):
            raise ValueError(f"not an HTTP/1 answer: {first[:80]!r}")
        if not 100 <= int(status) < 200:
            fields = {}
            for line in rest:
                name, _, value = line.partition(":")
                fields[name.lower()] = value.strip()
            return int(status), fields


async def _body(reader: asyncio.StreamReader, status: int, fields: dict[str, str]) -> AsyncIterator[bytes]:
    """The parts of a body. Raises EOFError when it ends early, ValueError when its framing is wrong."""
    if status in (204, 304):
        return
    if "chunked" in fields.get("transfer-encoding", "").lower():
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        while (await reader.readuntil(b"\r\n")) != b"\r\n":  # trailers
            pass
    elif "content-length" in fields:
        if length := int(fields["content-length"]):
            yield await reader.readexactly(length)
    else:
        fields["connection"] = "close"
        while part := await reader.read(CHUNK):
            yield part


async def _guarded(parts: AsyncIterator[bytes], silence: float) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(silence):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
            raise NoAnswerError(f"{type(error).__name__}: {error}") from error
        yield part
