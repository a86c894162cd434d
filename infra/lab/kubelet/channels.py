"""The streams of one exec or attach, carried by the messages of a WebSocket or the streams of a SPDY session."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infra.lab.kubelet import spdy
    from infra.lab.kubelet.tunnel import WebSocket

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
NAMES = {"stdin": STDIN, "stdout": STDOUT, "stderr": STDERR, "error": ERROR, "resize": RESIZE}
_STREAM_SECONDS = 30.0  # what a kubelet waits for the client's streams


@dataclass(eq=False)
class WebSocketChannels:
    """Channels as messages of a WebSocket."""

    socket: WebSocket
    protocol: str
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    _input: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self._encoded = "base64" in self.protocol
        self._reading = asyncio.ensure_future(self._receive())

    async def read(self) -> bytes:
        """Standard input; b"" at its end."""
        data = await self._input.get()
        if not data:
            self._input.put_nowait(b"")  # the end stays the end
        return data

    async def write(self, channel: int, data: bytes) -> None:
        """Send on a channel."""
        if self._encoded:
            await self.socket.send_text(str(channel) + base64.b64encode(data).decode())
        else:
            await self.socket.send(bytes([channel]) + data)

    async def finish(self, status: bytes) -> None:
        """The status, then the closing frame; the connection stays for what the client still says."""
        await self.write(ERROR, status)
        await self.socket.say_goodbye()

    async def close(self) -> None:
        """End the connection."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self.socket.close()

    async def _receive(self) -> None:
        try:
            while (message := await self.socket.receive()) is not None:
                if not message:
                    continue
                channel = int(message[:1]) if self._encoded else message[0]
                data = base64.b64decode(message[1:]) if self._encoded else message[1:]
                if channel == STDIN and data:
                    self._input.put_nowait(data)
                elif channel == CLOSE and data[:1] == bytes([STDIN]) and self.protocol.startswith("v5"):
                    self._input.put_nowait(b"")
        finally:
            self._input.put_nowait(b"")
            self.gone.set()


@dataclass(eq=False)
class SpdyChannels:
    """Channels as streams of a SPDY session."""

    session: spdy.Session
    protocol: str
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    _streams: dict[int, spdy.Stream] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._news = asyncio.Event()
        self._reading = asyncio.ensure_future(self._accept())

    async def wait_for(self, numbers: set[int]) -> None:
        """Until the client has opened these. Raises TimeoutError."""
        async with asyncio.timeout(_STREAM_SECONDS):
            while not numbers <= set(self._streams) and not self.gone.is_set():
                self._news.clear()
                await self._news.wait()

    async def read(self) -> bytes:
        """Standard input; b"" at its end."""
        stream = self._streams.get(STDIN)
        return await stream.read() if stream is not None else b""

    async def write(self, channel: int, data: bytes) -> None:
        """Send on a channel."""
        stream = self._streams.get(channel)
        if stream is not None:
            await stream.write(data)

    async def finish(self, status: bytes) -> None:
        """End the outputs, then the status."""
        for number in (STDOUT, STDERR):
            if number in self._streams:
                await self._streams[number].end()
        if ERROR in self._streams:
            if status:
                await self._streams[ERROR].write(status)
            await self._streams[ERROR].end()

    async def close(self) -> None:
        """End the session."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self.session.close()

    async def _accept(self) -> None:
        try:
            async for stream in self.session.accept():
                number = NAMES.get(stream.headers.get("streamtype", ""))
                if number is None:
                    await stream.reset()
                    continue
                self._streams[number] = stream
                await self.session.reply(stream)
                self._news.set()
        finally:
            self.gone.set()
            self._news.set()
