"""The relay of an upgraded connection: bytes between client and kubelet, untouched, until both are done.

As kube-apiserver's upgrade-aware proxy: the request goes to the kubelet as it came (method, upgrade and stream
headers), without the client's credentials; an answer other than 101 is passed on as an ordinary response; after a 101
the two connections are joined. WebSocket and SPDY pass alike because nothing here looks inside.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import h11

from .request import Response

if TYPE_CHECKING:
    import ssl

    from .protocol import RawStream
    from .request import Request

_CHUNK = 64 * 1024
_CONNECT_SECONDS = 10.0
_MAX_ERROR_BYTES = 64 * 1024
# Hop-by-hop (RFC 9110 section 7.6.1) or the client's business with the API server alone
_DROPPED = {b"host", b"authorization", b"content-length", b"transfer-encoding", b"keep-alive", b"te", b"trailer"}


async def relay_upgrade(request: Request, base: str, target: str, context: ssl.SSLContext) -> Response | None:
    """Send the upgrade to ``base`` (``https://HOST:PORT``) + `target` and relay the stream.

    None when the stream has been relayed and is over; a Response when the kubelet did not upgrade. Raises OSError
    (TimeoutError included) when the kubelet cannot be reached.
    """
    url = urlsplit(base)
    async with asyncio.timeout(_CONNECT_SECONDS):
        reader, writer = await asyncio.open_connection(url.hostname, url.port, ssl=context, limit=1 << 20)
    try:
        backend = h11.Connection(h11.CLIENT)
        writer.write(backend.send(_upgrade(request, target, url.netloc)) or b"")
        writer.write(backend.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        answer = await _answer(backend, reader)
        if answer.status_code != 101:
            return await _refusal(backend, reader, answer)
        client: RawStream = request.scope["state"]["take_over"]()
        await client.write(_head(answer))
        await _join(client, reader, writer, backend.trailing_data[0])
        return None
    finally:
        writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()


def _upgrade(request: Request, target: str, host: str) -> h11.Request:
    headers = [
        (name, value)
        for name, value in request.scope["headers"]
        if name not in _DROPPED and not name.startswith(b"impersonate-")
    ]
    if request.method == "POST":
        headers.append((b"content-length", b"0"))
    return h11.Request(method=request.method, target=target, headers=[(b"host", host.encode()), *headers])


async def _answer(backend: h11.Connection, reader: asyncio.StreamReader) -> h11.Response | h11.InformationalResponse:
    while True:
        event = backend.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(_CHUNK)
            if not data:
                raise ConnectionResetError("the kubelet closed the connection without an answer")
            backend.receive_data(data)
        elif isinstance(event, h11.Response | h11.InformationalResponse) and event.status_code >= 101:
            return event


async def _refusal(
    backend: h11.Connection, reader: asyncio.StreamReader, answer: h11.Response | h11.InformationalResponse
) -> Response:
    """The kubelet's own answer, passed on."""
    body = b""
    while len(body) < _MAX_ERROR_BYTES:
        event = backend.next_event()
        if event is h11.NEED_DATA:
            backend.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        else:
            break
    content_type = next(
        (value.decode("latin-1") for name, value in answer.headers if name == b"content-type"), "text/plain"
    )
    return Response(answer.status_code, body, content_type)


def _head(answer: h11.Response | h11.InformationalResponse) -> bytes:
    """The 101 as bytes again, with the kubelet's headers (Sec-WebSocket-Accept among them)."""
    lines = [b"HTTP/1.1 101 Switching Protocols"]
    lines += [name + b": " + value for name, value in answer.headers.raw_items()]
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def _join(client: RawStream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, early: bytes) -> None:
    """Copy both ways until one side ends; then the other is closed too, once it has got what was read."""

    async def downstream() -> None:
        data = early or await reader.read(_CHUNK)
        while data:
            await client.write(data)
            data = await reader.read(_CHUNK)

    async def upstream() -> None:
        while data := await client.reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()

    tasks = [asyncio.create_task(downstream()), asyncio.create_task(upstream())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
                raise outcome
        client.close()
