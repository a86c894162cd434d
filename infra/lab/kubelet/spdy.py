"""SPDY/3.1 as far as Kubernetes streams need it: the server's end, streams opened by the client.

Specification: "SPDY Protocol - Draft 3.1" (2013), sections 2.2 (frames), 2.6 (control frames) and 2.6.10 (header
compression and its dictionary). Kubernetes uses it as a multiplexer: SYN_STREAM with headers, SYN_REPLY, DATA with
FIN, RST_STREAM, PING, GOAWAY. Flow-control windows are announced by WINDOW_UPDATE; the reference implementation in Go
(moby/spdystream) neither sends nor heeds them, so neither do we.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from infra.lab.kubelet.tunnel import Tunnel

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FIN = 0x01
CANCEL = 5
_LARGEST = (1 << 24) - 1


class SpdyError(Exception):
    """The peer sent something that is no SPDY/3.1."""


class Stream:
    """One stream: headers of its opener, bytes both ways."""

    def __init__(self, session: Session, number: int, headers: dict[str, str], ended: bool) -> None:
        self.number = number
        self.headers = headers
        self._session = session
        self._inbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._sent_fin = False
        if ended:
            self._inbox.put_nowait(b"")

    async def read(self) -> bytes:
        """Some bytes, or b"" when the peer has finished its side (or the session is over)."""
        return await self._inbox.get()

    async def write(self, data: bytes) -> None:
        """Send bytes."""
        for start in range(0, len(data), _LARGEST):
            await self._session.send_data(self.number, data[start : start + _LARGEST])

    async def end(self) -> None:
        """Finish our side."""
        if not self._sent_fin:
            self._sent_fin = True
            await self._session.send_data(self.number, b"", FIN)

    async def reset(self) -> None:
        """Give the stream up."""
        self._sent_fin = True
        await self._session.send_control(RST_STREAM, 0, struct.pack("!II", self.number, CANCEL))

    def feed(self, data: bytes) -> None:
        """Bytes from the peer; b"" is its end."""
        self._inbox.put_nowait(data)


class Session:
    """Frames over one tunnel."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._buffer = b""
        self._streams: dict[int, Stream] = {}
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._sending = asyncio.Lock()
        self._closed = False

    async def accept(self) -> AsyncIterator[Stream]:
        """Streams as the peer opens them; reading frames for all streams happens here, so keep iterating."""
        try:
            while True:
                head = await self._exactly(8)
                if head is None:
                    return
                length = int.from_bytes(head[5:8], "big")
                body = await self._exactly(length)
                if body is None:
                    return
                if not head[0] & 0x80:
                    self._data(int.from_bytes(head[:4], "big"), head[4], body)
                    continue
                stream = await self._control(int.from_bytes(head[2:4], "big"), head[4], body)
                if stream is not None:
                    yield stream
        finally:
            for open_stream in self._streams.values():
                open_stream.feed(b"")

    async def reply(self, stream: Stream) -> None:
        """Accept a stream (SYN_REPLY without headers)."""
        async with self._sending:
            packed = self._compress({})
            await self._write(_control(SYN_REPLY, 0, struct.pack("!I", stream.number) + packed))

    async def send_data(self, number: int, data: bytes, flags: int = 0) -> None:
        """One DATA frame."""
        async with self._sending:
            await self._write(struct.pack("!II", number, flags << 24 | len(data)) + data)

    async def send_control(self, kind: int, flags: int, body: bytes) -> None:
        """One control frame."""
        async with self._sending:
            await self._write(_control(kind, flags, body))

    async def close(self) -> None:
        """End the session."""
        self._closed = True
        await self._tunnel.close()

    async def _write(self, frame: bytes) -> None:
        if not self._closed:
            await self._tunnel.write(frame)

    def _data(self, number: int, flags: int, body: bytes) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            if body:
                stream.feed(body)
            if flags & FIN:
                stream.feed(b"")

    async def _control(self, kind: int, flags: int, body: bytes) -> Stream | None:
        if kind == SYN_STREAM:
            number = int.from_bytes(body[:4], "big") & 0x7FFFFFFF
            stream = Stream(self, number, self._headers(body[10:]), bool(flags & FIN))
            self._streams[number] = stream
            return stream
        if kind == RST_STREAM:
            given_up = self._streams.pop(int.from_bytes(body[:4], "big") & 0x7FFFFFFF, None)
            if given_up is not None:
                given_up.feed(b"")
            return None
        if kind == PING:
            await self.send_control(PING, 0, body)
        elif kind == HEADERS:
            self._headers(body[4:])  # the compression state must see every block
        elif kind not in (SETTINGS, GOAWAY, WINDOW_UPDATE, SYN_REPLY):
            raise SpdyError(f"unknown control frame {kind}")
        return None

    def _headers(self, packed: bytes) -> dict[str, str]:
        try:
            raw = self._inflate.decompress(packed)
        except zlib.error as error:
            raise SpdyError(f"header block: {error}") from error
        words, at = [], 4
        for _ in range(2 * int.from_bytes(raw[:4], "big")):
            size = int.from_bytes(raw[at : at + 4], "big")
            words.append(raw[at + 4 : at + 4 + size].decode("latin-1"))
            at += 4 + size
        return dict(zip((name.lower() for name in words[::2]), words[1::2], strict=True))

    def _compress(self, headers: dict[str, str]) -> bytes:
        raw = struct.pack("!I", len(headers))
        for name, value in headers.items():
            raw += struct.pack("!I", len(name)) + name.encode() + struct.pack("!I", len(value)) + value.encode()
        return self._deflate.compress(raw) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    async def _exactly(self, count: int) -> bytes | None:
        while len(self._buffer) < count:
            try:
                more = await self._tunnel.read()
            except OSError:
                return None
            if not more:
                return None
            self._buffer += more
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data


def _control(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("!HHI", 0x8003, kind, flags << 24 | len(body)) + body


def _dictionary() -> bytes:
    """The dictionary of section 2.6.10.1: length-prefixed words, then a run of plain text."""
    words = [
        "options",
        "head",
        "post",
        "put",
        "delete",
        "trace",
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "accept-ranges",
        "age",
        "allow",
        "authorization",
        "cache-control",
        "connection",
        "content-base",
        "content-encoding",
        "content-language",
        "content-length",
        "content-location",
        "content-md5",
        "content-range",
        "content-type",
        "date",
        "etag",
        "expect",
        "expires",
        "from",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "last-modified",
        "location",
        "max-forwards",
        "pragma",
        "proxy-authenticate",
        "proxy-authorization",
        "range",
        "referer",
        "retry-after",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "vary",
        "via",
        "warning",
        "www-authenticate",
        "method",
        "get",
        "status",
    ]
    more = ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"]
    tail = (
        "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Author"
        "itative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 No"
        "t Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Au"
        "g Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,"
        "image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,def"
        "late,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
    )
    return b"".join(struct.pack("!I", len(word)) + word.encode() for word in [*words, *more]) + tail.encode()


DICTIONARY = _dictionary()
