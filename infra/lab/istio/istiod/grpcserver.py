"""gRPC over HTTP/2 for connections somebody else accepted: unary calls and server streams, on the h2 library.

The Python gRPC server fixes its certificate, or asks no client for one, when it starts; istiod does neither. The
protocol is https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, without compression.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING
from urllib.parse import quote

import h2.config
import h2.connection
import h2.events
import h2.exceptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.lab.linkerd.tlsstream import Writer

_PREFIX = 5  # compressed flag and length of a message
_MAX_MESSAGE = 4 << 20


class Status(IntEnum):
    """gRPC status codes in use here."""

    OK = 0
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """Ends a call with a status other than OK."""

    def __init__(self, status: Status, details: str) -> None:
        super().__init__(details)
        self.status = status
        self.details = details


@dataclass(eq=False)
class Connection:
    """One client's connection, as handlers see it. `notes` is theirs, for as long as it is open."""

    peer: str
    certificate: bytes | None
    """The client's verified certificate in DER."""
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One call."""

    connection: Connection
    metadata: Mapping[str, str]


Unary = Callable[[bytes, Call], Awaitable[bytes]]
Stream = Callable[[bytes, Call], AsyncIterator[bytes]]


class GrpcServer:
    """The methods of one server; `serve` is called per connection.

    Args:
        unary: Path ("/package.Service/Method") -> handler.
        streams: The same for methods that answer with a stream.
    """

    def __init__(self, unary: Mapping[str, Unary], streams: Mapping[str, Stream]) -> None:
        self._unary = unary
        self._streams = streams
        self.connections: set[Connection] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        """Answer calls until the client ends the connection; the caller closes it."""
        tls = writer.get_extra_info("ssl_object")
        host, port = (writer.get_extra_info("peername") or ("", 0))[:2]
        certificate = tls.getpeercert(binary_form=True) if isinstance(tls, ssl.SSLObject | ssl.SSLSocket) else None
        connection = Connection(f"{host}:{port}", certificate)
        self.connections.add(connection)
        try:
            await _Session(self._unary, self._streams, connection, reader, writer).run()
        finally:
            self.connections.discard(connection)


@dataclass
class _Stream:
    path: str
    metadata: dict[str, str]
    body: bytearray = field(default_factory=bytearray)


class _Session:
    """One HTTP/2 connection."""

    def __init__(
        self,
        unary: Mapping[str, Unary],
        streams: Mapping[str, Stream],
        connection: Connection,
        reader: asyncio.StreamReader,
        writer: Writer,
    ) -> None:
        self._unary, self._server_streams = unary, streams
        self._connection = connection
        self._reader, self._writer = reader, writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._open: dict[int, _Stream] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._window = asyncio.Event()  # set whenever the client has given more room

    async def run(self) -> None:
        self._h2.initiate_connection()
        try:
            await self._flush()
            while data := await self._reader.read(65536):
                for event in self._h2.receive_data(data):
                    self._handle(event)
                await self._flush()
        except (OSError, h2.exceptions.ProtocolError):
            return
        finally:
            for task in self._calls.values():
                task.cancel()
            await asyncio.gather(*self._calls.values(), return_exceptions=True)

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            headers = {str(name): str(value) for name, value in event.headers or []}
            self._open[event.stream_id or 0] = _Stream(headers.get(":path", ""), headers)
        elif isinstance(event, h2.events.DataReceived):
            identifier = event.stream_id or 0
            self._h2.acknowledge_received_data(event.flow_controlled_length or 0, identifier)
            if (stream := self._open.get(identifier)) is not None and len(stream.body) <= _MAX_MESSAGE:
                stream.body += event.data or b""
        elif isinstance(event, h2.events.StreamEnded):
            identifier = event.stream_id or 0
            if (stream := self._open.pop(identifier, None)) is not None:
                self._start(identifier, stream)
        elif isinstance(event, h2.events.StreamReset):
            identifier = event.stream_id or 0
            self._open.pop(identifier, None)
            if (task := self._calls.pop(identifier, None)) is not None:
                task.cancel()
            self._window.set()
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            self._window.set()

    def _start(self, identifier: int, stream: _Stream) -> None:
        task = asyncio.create_task(self._answer(identifier, stream))
        self._calls[identifier] = task
        task.add_done_callback(lambda _: self._calls.pop(identifier, None))

    async def _answer(self, identifier: int, stream: _Stream) -> None:
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            try:
                message = _message(bytes(stream.body))
                call = Call(self._connection, stream.metadata)
                if (handler := self._unary.get(stream.path)) is not None:
                    answer = await handler(message, call)
                    self._h2.send_headers(identifier, _HEAD)
                    await self._send(identifier, answer)
                elif (streaming := self._server_streams.get(stream.path)) is not None:
                    self._h2.send_headers(identifier, _HEAD)
                    await self._flush()
                    async for part in streaming(message, call):
                        await self._send(identifier, part)
                else:
                    await self._finish(identifier, Status.UNIMPLEMENTED, _unknown(stream.path), started=False)
                    return
                await self._finish(identifier, Status.OK, "", started=True)
            except RpcError as error:
                await self._finish(identifier, error.status, error.details, started=False)

    async def _send(self, identifier: int, message: bytes) -> None:
        data = b"\0" + len(message).to_bytes(_PREFIX - 1, "big") + message
        while data:
            room = min(self._h2.local_flow_control_window(identifier), self._h2.max_outbound_frame_size)
            if room <= 0:
                self._window.clear()
                await self._window.wait()
                continue
            self._h2.send_data(identifier, data[:room])
            data = data[room:]
            await self._flush()

    async def _finish(self, identifier: int, status: Status, details: str, *, started: bool) -> None:
        trailers = [] if started else list(_HEAD)
        trailers.append(("grpc-status", str(int(status))))
        if details:
            # PROTOCOL-HTTP2: percent-encoded, printable ASCII but "%" as it is.
            trailers.append(("grpc-message", quote(details, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")))
        self._h2.send_headers(identifier, trailers, end_stream=True)
        await self._flush()

    async def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._writer.write(data)
            await self._writer.drain()


_HEAD = ((":status", "200"), ("content-type", "application/grpc"))


def _message(body: bytes) -> bytes:
    if len(body) < _PREFIX or len(body) != _PREFIX + int.from_bytes(body[1:_PREFIX], "big"):
        raise RpcError(Status.INTERNAL, "grpc: the request is not one whole message")
    if body[0]:
        raise RpcError(Status.UNIMPLEMENTED, "grpc: Decompressor is not installed for grpc-encoding")
    return body[_PREFIX:]


def _unknown(path: str) -> str:
    service, _, method = path.strip("/").rpartition("/")
    return f"unknown service {service}" if method else f"malformed method name: {path!r}"
