"""Exec and attach: the streams of one command between a client and a container.

Dialects, told apart by the upgrade request:

- WebSocket `v5.channel.k8s.io` (kubectl since 1.31, the Python client), `v4.channel.k8s.io`, `channel.k8s.io` and
  their base64 forms: each message is led by its channel (0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize). In v5 channel
  255 closes the channel named by the next byte (KEP-4006), which is how standard input ends.
- SPDY/3.1 with `v4.channel.k8s.io` to `channel.k8s.io` in X-Stream-Protocol-Version: a stream for each, named by its
  header `streamtype`; finishing the stream of standard input ends it.

From v4 on the error channel carries a Status: Success, or NonZeroExitCode with the exit code as a cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h11

from infra.lab.kubelet import spdy, userland
from infra.lab.kubelet.channels import ERROR, STDERR, STDIN, STDOUT, SpdyChannels, WebSocketChannels
from infra.lab.kubelet.tunnel import BytesTunnel, WebSocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from infra.lab.kubelet.container import RunningContainer
    from infra.lab.kubelet.runtime import Container
    from infra.lab.kubelet.server import Call

JSON = dict[str, Any]
WEBSOCKET_PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
)
SPDY_PROTOCOLS = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
_LINGER_SECONDS = 2.0


@dataclass(frozen=True)
class Wanted:
    """Which streams the client asked for."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool

    @classmethod
    def of(cls, call: Call) -> Wanted:
        """From the kubelet's query. Raises RefusedError (400) when it names no stream."""
        from infra.lab.kubelet.server import RefusedError

        tty = call.flag("tty")
        wanted = cls(call.flag("input"), call.flag("output"), call.flag("error") and not tty, tty)
        if not (wanted.stdin or wanted.stdout or wanted.stderr):
            raise RefusedError(400, "you must specify at least 1 of stdin, stdout, stderr")
        return wanted

    def streams(self) -> set[int]:
        """The channels that must be there before the command runs."""
        chosen = ((STDIN, self.stdin), (STDOUT, self.stdout), (STDERR, self.stderr))
        return {ERROR, *(number for number, asked in chosen if asked)}


async def execute(call: Call, container: RunningContainer) -> None:
    """Run the command of a request in a container, and serve its streams to the end. Raises RefusedError."""
    from infra.lab.kubelet.server import RefusedError

    wanted = Wanted.of(call)
    command = call.query.get("command", [])
    if not command:
        raise RefusedError(400, "you must specify a command")
    instance = container.instance
    if instance is None:
        raise RefusedError(500, f'container not found ("{container.state.name}")')

    async def work(streams: userland.Streams) -> JSON:
        running = asyncio.ensure_future(userland.run(instance, command, streams))
        ended = asyncio.ensure_future(_exit_of(instance))
        try:
            await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                return exited(command, 137)  # the container's processes end with it
            return exited(command, running.result())
        except FileNotFoundError:
            return failed(missing(command[0]))
        finally:
            for task in (running, ended):
                task.cancel()
            await asyncio.gather(running, ended, return_exceptions=True)

    await _serve(call, wanted, work)


async def _exit_of(instance: Container) -> None:
    async for _ in instance.logs.follow(tail=0):
        pass  # the log closes when the instance has exited


async def attach(call: Call, container: RunningContainer) -> None:
    """Show a client what a container writes from now on, until it exits. Raises RefusedError."""
    from infra.lab.kubelet.server import RefusedError

    wanted = Wanted.of(call)
    log = container.log
    if container.instance is None or log is None:
        raise RefusedError(500, f'container not found ("{container.state.name}")')

    async def work(streams: userland.Streams) -> JSON:
        async for line in log.follow(tail=0):
            await streams.out(line.text.encode() + b"\n")
        return {"metadata": {}, "status": "Success"}

    await _serve(call, wanted, work)


def exited(command: list[str], code: int) -> JSON:
    """The Status of a command that has run (kubelet, remotecommand/exec.go)."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    words = " ".join(command)
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: error executing command [{words}], exit code {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def missing(program: str) -> str:
    """What containerd and runc say about a program that is not in the image."""
    return (
        "error executing command in container: failed to exec in container: failed to start exec: OCI runtime exec "
        f'failed: exec failed: unable to start container process: exec: "{program}": executable file not found in $PATH'
    )


def failed(message: str) -> JSON:
    """The Status of a command that could not be run."""
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"Internal error occurred: {message}",
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    }


async def _serve(call: Call, wanted: Wanted, work: Callable[[userland.Streams], Awaitable[JSON]]) -> None:
    channels = await _open(call, wanted)

    async def discard(_: bytes) -> None:
        return

    async def out(data: bytes) -> None:
        await channels.write(STDOUT, data)

    async def err(data: bytes) -> None:
        await channels.write(STDOUT if wanted.tty else STDERR, data)

    async def nothing() -> bytes:
        return b""

    streams = userland.Streams(
        channels.read if wanted.stdin else nothing,
        out if wanted.stdout else discard,
        err if wanted.stderr or (wanted.tty and wanted.stdout) else discard,
    )
    job = asyncio.ensure_future(work(streams))
    gone = asyncio.ensure_future(channels.gone.wait())
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            status = job.result()
            with_status = channels.protocol.startswith(("v4", "v5"))
            text = json.dumps(status, separators=(",", ":")) if with_status else str(status.get("message", ""))
            await channels.finish(text.encode())
            with contextlib.suppress(TimeoutError):  # the client closes first; else what it has not read might be lost
                await asyncio.wait_for(asyncio.shield(gone), _LINGER_SECONDS)
    finally:
        for task in (job, gone):
            task.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)
        with contextlib.suppress(OSError, RuntimeError):
            await channels.close()


async def _open(call: Call, wanted: Wanted) -> WebSocketChannels | SpdyChannels:
    """Upgrade the connection. Raises RefusedError."""
    from infra.lab.kubelet.server import RefusedError

    upgrade = call.headers.get("upgrade", "").lower()
    if upgrade == "websocket":
        offered = [word.strip() for word in call.headers.get("sec-websocket-protocol", "").split(",") if word.strip()]
        chosen = next((name for name in offered if name in WEBSOCKET_PROTOCOLS), None)
        if chosen is None and offered:
            raise RefusedError(400, f"unable to upgrade: none of the subprotocols {offered} is served")
        socket = await WebSocket.accept(call, chosen or "")
        opened = WebSocketChannels(socket, chosen or "channel.k8s.io")
        # The first message tells the client that the command is being run (kubelet, remotecommand/websocket.go).
        await opened.write(STDOUT if wanted.stdout else STDERR if wanted.stderr else ERROR, b"")
        return opened
    if not upgrade.startswith("spdy/3.1"):
        raise RefusedError(400, "Upgrade request required")
    offered = call.values("x-stream-protocol-version")
    chosen = next((name for name in offered if name in SPDY_PROTOCOLS), None)
    if chosen is None:
        text = f"client supports {offered}, server accepts {[*SPDY_PROTOCOLS]}"
        raise RefusedError(403, f"unable to upgrade: unable to negotiate protocol: {text}")
    headers = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", chosen)]
    call.writer.write(call.http.send(h11.InformationalResponse(status_code=101, headers=headers)) or b"")
    await call.writer.drain()
    early, _ = call.http.trailing_data
    streams = SpdyChannels(spdy.Session(BytesTunnel(call.reader, call.writer, early)), chosen)
    await streams.wait_for(wanted.streams())
    return streams
