"""The TLS layer below the HTTP protocol: handshakes, floods, silence and goodbyes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from typing import TYPE_CHECKING, Any, cast

import pytest
from access_lab import Pair, make_pair
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from infra.lab.apiserver import tls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path


class Inner(asyncio.Protocol):
    """Echoes, and remembers what happened to it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.pauses = 0
        self.received = 0
        self.lost = asyncio.Event()
        self.made = asyncio.Event()
        self.chain: tuple[bytes, ...] = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.chain = transport.get_extra_info("peer_chain")
        self.made.set()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if data.startswith(b"flood"):
            self.transport.write(bytes(20_000_000))
        elif data.startswith(b"close"):
            self.transport.write(b"bye")
            self.transport.close()
        else:
            self.transport.write(data)

    def pause_writing(self) -> None:
        self.pauses += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


class Server:
    def __init__(self) -> None:
        self.inner: list[Inner] = []
        self.port = 0

    def make(self) -> Inner:
        self.inner.append(Inner())
        return self.inner[-1]


@pytest.fixture
def serving(tmp_path: Path) -> Pair:
    names = (x509.IPAddress(ipaddress.ip_address("127.0.0.1")),)
    return make_pair(tmp_path, "serving", "serving", usages=(ExtendedKeyUsageOID.SERVER_AUTH,), names=names)


@pytest.fixture
def run(serving: Pair) -> Iterator[Callable[[Callable[[Server], Awaitable[None]]], None]]:
    """Runs a coroutine with a listening server."""

    async def with_server(body: Callable[[Server], Awaitable[None]]) -> None:
        server = Server()
        factory = tls.over_tls(tls.server_context(serving.certificate_file, serving.key_file), server.make)
        listener = socket.socket()  # without a protocol number, as a caller's own socket may be
        listener.bind(("127.0.0.1", 0))
        server.port = listener.getsockname()[1]
        listening = await asyncio.get_running_loop().create_server(factory, sock=listener)
        async with asyncio.timeout(20):
            await body(server)
        listening.close()

    return lambda body: asyncio.run(with_server(body))


def client(serving: Pair, pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=serving.pem)
    if pair is not None:
        context.load_cert_chain(pair.certificate_file, pair.key_file)
    return context


async def connect(server: Server, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", server.port, ssl=context)


Run = Any


def test_small_answers_are_not_held_back_by_the_network_stack(run: Run, serving: Pair) -> None:
    async def body(server: Server) -> None:
        reader, writer = await connect(server, client(serving))
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        raw = server.inner[0].transport.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()

    run(body)


def test_the_whole_chain_of_a_client_is_seen_leaf_first_and_unverified(run: Run, serving: Pair, tmp_path: Path) -> None:
    root = make_pair(tmp_path, "root", "root", ca=True)
    middle = make_pair(tmp_path, "middle", "middle", issuer=root, ca=True)
    leaf = make_pair(tmp_path, "leaf", "leaf", issuer=middle)
    leaf.certificate_file.write_text(leaf.pem + middle.pem)

    async def body(server: Server) -> None:
        _, writer = await connect(server, client(serving, leaf))
        await server.inner[0].made.wait()
        subjects = [x509.load_der_x509_certificate(der).subject.rfc4514_string() for der in server.inner[0].chain]
        assert subjects == ["CN=leaf", "CN=middle"]
        writer.close()

    run(body)


def test_a_client_that_does_not_read_makes_the_server_wait_and_then_gets_everything(run: Run, serving: Pair) -> None:
    async def body(server: Server) -> None:
        reader, writer = await connect(server, client(serving))
        writer.write(b"flood")
        while not (server.inner and server.inner[0].pauses):
            await asyncio.sleep(0.01)
        assert len(await reader.readexactly(20_000_000)) == 20_000_000
        writer.close()

    run(body)


def test_closing_sends_what_was_written_and_a_proper_goodbye(run: Run, serving: Pair) -> None:
    async def body(server: Server) -> None:
        reader, writer = await connect(server, client(serving))
        writer.write(b"close")
        # without close_notify the client would raise an SSLError here
        assert await reader.read() == b"bye"
        await server.inner[0].lost.wait()
        writer.close()

    run(body)


def test_a_connection_that_never_speaks_tls_is_dropped_and_never_reaches_http(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.2)

    async def body(server: Server) -> None:
        for words in (b"GET / HTTP/1.1\r\n\r\n", b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(words)
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
            writer.close()
        assert not any(inner.made.is_set() for inner in server.inner)

    run(body)


def test_a_client_that_vanishes_is_reported_to_the_protocol_above(run: Run, serving: Pair) -> None:
    async def body(server: Server) -> None:
        _, writer = await connect(server, client(serving))
        await server.inner[0].made.wait()
        writer.transport.abort()
        await server.inner[0].lost.wait()
        server.inner[0].transport.write(b"into the void")

    run(body)
