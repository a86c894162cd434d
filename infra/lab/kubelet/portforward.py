"""Port-forwarding: a client's byte streams to ports on the pod's own address.

Three dialects, told apart by the upgrade request: - WebSocket `v4.channel.k8s.io` / `portforward.k8s.io`: two
channels per port (data, error), each message led by its channel's byte; the first message
  on each channel carries the port, two bytes little-endian. The official Python client speaks this.
- WebSocket `SPDY/3.1+portforward.k8s.io`: SPDY frames in binary messages (KEP-4006). kubectl 1.30 and later tries
this first. - SPDY/3.1 directly after the upgrade, with X-Stream-Protocol-Version: portforward.k8s.io.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import struct
from typing import TYPE_CHECKING

import h11

from infra.lab.kubelet import spdy
from infra.lab.kubelet.tunnel import BytesTunnel, MessageTunnel, WebSocket

if TYPE_CHECKING:
    from infra.lab.kubelet.server import Call

CHUNK = 65536
PROTOCOL = "portforward.k8s.io"
TUNNELLED = f"SPDY/3.1+{PROTOCOL}"
CHANNELS = ("v4.channel.k8s.io", PROTOCOL, "v4.base64.channel.k8s.io")


async def serve(call: Call, address: str) -> None:
    """Take over the connection of an upgrade request and forward until it ends. `address` is the pod's."""
    from infra.lab.kubelet.server import RefusedError

    upgrade = call.headers.get("upgrade", "").lower()
    if upgrade == "websocket":
        offered = [word.strip() for word in call.headers.get("sec-websocket-protocol", "").split(",")]
        if TUNNELLED in offered:
            socket = await WebSocket.accept(call, TUNNELLED)
            await _spdy(spdy.Session(MessageTunnel(socket)), address)
            return
        chosen = next((name for name in offered if name in CHANNELS), None)
        if chosen is None:
            raise RefusedError(400, f"unable to upgrade: none of the subprotocols {offered} is one of {[*CHANNELS]}")
        asked = [*call.query.get("port", []), *call.query.get("ports", [])]
        ports = [int(port) for text in asked for port in text.split(",")]
        if not ports:
            raise RefusedError(400, 'query parameter "port" is required')
        await _channels(await WebSocket.accept(call, chosen), ports, address, chosen.startswith("v4.base64"))
        return
    if upgrade.startswith("spdy/3.1"):
        offered = [word.strip() for word in call.headers.get("x-stream-protocol-version", "").split(",")]
        if PROTOCOL not in offered:
            text = f"unable to negotiate protocol: client supports {offered}, server accepts [{PROTOCOL}]"
            raise RefusedError(403, f"unable to upgrade: {text}")
        headers = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", PROTOCOL)]
        call.writer.write(call.http.send(h11.InformationalResponse(status_code=101, headers=headers)) or b"")
        await call.writer.drain()
        early, _ = call.http.trailing_data
        await _spdy(spdy.Session(BytesTunnel(call.reader, call.writer, early)), address)
        return
    raise RefusedError(400, "Upgrade request required")


def refusal(port: int, error: OSError) -> str:
    """The text a client gets on the error stream when nothing answers on a port."""
    why = os.strerror(error.errno).lower() if error.errno else str(error)
    return f"error forwarding port {port} to pod: failed to connect to port {port}: {why}"


async def _dial(address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """From inside the pod: what listens there sees a client on its own loopback."""
    return await asyncio.open_connection(address, port, local_addr=(address, 0))


# WebSocket channels ------------------------------------------------------------------------------------------------


async def _channels(socket: WebSocket, ports: list[int], address: str, encoded: bool) -> None:
    def message(channel: int, data: bytes) -> bytes:
        return str(channel).encode() + base64.b64encode(data) if encoded else bytes([channel]) + data

    for index, port in enumerate(ports):
        for channel in (2 * index, 2 * index + 1):
            await socket.send(message(channel, struct.pack("<H", port)))
    inbox: list[asyncio.Queue[bytes]] = [asyncio.Queue() for _ in ports]

    async def forward(index: int, port: int) -> None:
        first = await inbox[index].get()  # connect when the client first has something to say, as a real kubelet does
        try:
            reader, writer = await _dial(address, port)
        except OSError as error:
            await socket.send(message(2 * index + 1, refusal(port, error).encode()))
            return

        async def upstream() -> None:
            data = first
            while True:
                writer.write(data)
                await writer.drain()
                data = await inbox[index].get()

        sending = asyncio.create_task(upstream())
        try:
            while data := await reader.read(CHUNK):
                await socket.send(message(2 * index, data))
        finally:
            sending.cancel()
            writer.close()

    forwards = [asyncio.create_task(forward(index, port)) for index, port in enumerate(ports)]
    finished = asyncio.create_task(_all(forwards))
    receiving = asyncio.create_task(_receive(socket, inbox, encoded))
    try:
        await asyncio.wait({receiving, finished}, return_when="FIRST_COMPLETED")
    finally:
        for task in (*forwards, receiving, finished):
            task.cancel()
        await asyncio.gather(*forwards, receiving, finished, return_exceptions=True)
        await socket.close()


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)


async def _receive(socket: WebSocket, inbox: list[asyncio.Queue[bytes]], encoded: bool) -> None:
    while (data := await socket.receive()) is not None:
        if not data:
            continue
        channel = int(data[:1]) if encoded else data[0]
        payload = base64.b64decode(data[1:]) if encoded else data[1:]
        if channel % 2 == 0 and channel // 2 < len(inbox) and payload:
            inbox[channel // 2].put_nowait(payload)


# SPDY --------------------------------------------------------------------------------------------------------------


async def _spdy(session: spdy.Session, address: str) -> None:
    """One pair of streams per connection: `error` comes first, then `data`, joined by `requestid`."""
    errors: dict[str, spdy.Stream] = {}
    running: set[asyncio.Task[None]] = set()
    try:
        async for stream in session.accept():
            request, kind = stream.headers.get("requestid", ""), stream.headers.get("streamtype", "")
            await session.reply(stream)
            if kind == "error":
                errors[request] = stream
            elif kind == "data":
                port = int(stream.headers.get("port", "0"))
                task = asyncio.create_task(_pair(stream, errors.pop(request, None), address, port))
                running.add(task)
                task.add_done_callback(running.discard)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await session.close()


async def _pair(data: spdy.Stream, errors: spdy.Stream | None, address: str, port: int) -> None:
    try:
        reader, writer = await _dial(address, port)
    except OSError as error:
        if errors is not None:
            await errors.write(refusal(port, error).encode())
            await errors.end()
        await data.reset()
        return

    async def upstream() -> None:
        while chunk := await data.read():
            writer.write(chunk)
            await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()

    sending = asyncio.create_task(upstream())
    try:
        while chunk := await reader.read(CHUNK):
            await data.write(chunk)
        await data.end()
    except OSError:
        await data.reset()
    finally:
        sending.cancel()
        writer.close()
        if errors is not None:
            await errors.end()
