"""Byte transports after an HTTP upgrade: the plain connection, or the binary messages of a WebSocket (RFC 6455)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import struct
from typing import TYPE_CHECKING, Protocol

import h11

if TYPE_CHECKING:
    import asyncio

    from infra.lab.kubelet.server import Call

CHUNK = 65536
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10


class Tunnel(Protocol):
    """A byte stream: `read` returns b"" at its end."""

    async def read(self) -> bytes:
        """Some bytes, or b"" at the end."""

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""

    async def close(self) -> None:
        """End both directions."""


class BytesTunnel:
    """The connection itself; `early` is what arrived together with the upgrade request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, early: bytes = b"") -> None:
        self._reader = reader
        self._writer = writer
        self._early = early

    async def read(self) -> bytes:
        """Some bytes, or b"" at the end."""
        early, self._early = self._early, b""
        return early or await self._reader.read(CHUNK)

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()


class WebSocket:
    """The server's end of a WebSocket: whole messages in and out, pings answered."""

    def __init__(self, tunnel: BytesTunnel) -> None:
        self._tunnel = tunnel
        self._buffer = b""
        self._closed = False
        self._parted = False

    @classmethod
    async def accept(cls, call: Call, subprotocol: str) -> WebSocket:
        """Answer the upgrade request with 101."""
        key = call.headers.get("sec-websocket-key", "").encode()
        digest = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode()
        headers = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-accept", digest),
        ]
        if subprotocol:
            headers.append(("sec-websocket-protocol", subprotocol))
        call.writer.write(call.http.send(h11.InformationalResponse(status_code=101, headers=headers)) or b"")
        await call.writer.drain()
        early, _ = call.http.trailing_data
        return cls(BytesTunnel(call.reader, call.writer, early))

    async def send(self, data: bytes) -> None:
        """Send one binary message."""
        await self._frame(_BINARY, data)

    async def send_text(self, text: str) -> None:
        """Send one text message."""
        await self._frame(_TEXT, text.encode())

    async def receive(self) -> bytes | None:
        """The next message (binary or text), None when the peer is done."""
        message = b""
        while True:
            head = await self._exactly(2)
            if head is None:
                return None
            final, opcode, masked, length = bool(head[0] & 0x80), head[0] & 0x0F, bool(head[1] & 0x80), head[1] & 0x7F
            if length >= 126:
                more = await self._exactly(2 if length == 126 else 8)
                if more is None:
                    return None
                length = int.from_bytes(more, "big")
            mask = await self._exactly(4) if masked else b"\0\0\0\0"
            payload = await self._exactly(length) if length else b""
            if mask is None or payload is None:
                return None
            payload = _unmask(payload, mask) if masked else payload
            if opcode == _CLOSE:
                await self.close(payload[:2])
                return None
            if opcode == _PING:
                await self._frame(_PONG, payload)
            elif opcode in (_CONTINUATION, _TEXT, _BINARY):
                message += payload
                if final:
                    return message

    async def close(self, code: bytes = struct.pack("!H", 1000)) -> None:
        """Say goodbye, once, and close the connection."""
        if not self._closed:
            await self.say_goodbye(code)
            self._closed = True
            await self._tunnel.close()

    async def say_goodbye(self, code: bytes = struct.pack("!H", 1000)) -> None:
        """Send the closing frame, once: nothing can be sent after it, but the peer's answer can be read."""
        if not self._parted:
            self._parted = True
            with contextlib.suppress(OSError, RuntimeError):
                await self._tunnel.write(_header(_CLOSE, len(code)) + code)

    async def _frame(self, opcode: int, data: bytes) -> None:
        if not self._parted:
            await self._tunnel.write(_header(opcode, len(data)) + data)

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


class MessageTunnel:
    """A byte stream carried in the binary messages of a WebSocket; message boundaries mean nothing."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def read(self) -> bytes:
        """Some bytes, or b"" at the end."""
        while (data := await self._socket.receive()) is not None:
            if data:
                return data
        return b""

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""
        await self._socket.send(data)

    async def close(self) -> None:
        """Close the WebSocket."""
        await self._socket.close()


def _header(opcode: int, length: int) -> bytes:
    first = 0x80 | opcode
    if length < 126:
        return bytes([first, length])
    if length < 1 << 16:
        return struct.pack("!BBH", first, 126, length)
    return struct.pack("!BBQ", first, 127, length)


def _unmask(data: bytes, mask: bytes) -> bytes:
    # One big-integer XOR instead of a loop over bytes: a tenth of the time.
    repeated = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(data), "big")
