"""Two light proxies: whom they let in, whom they refuse, and what a refused peer is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from OpenSSL import SSL

from infra.lab import pki
from infra.lab.istio.inbound import Inbound
from infra.lab.istio.material import uris, without_equal_names
from tests.lab.istio.data_plane import DB, WEB, Ca, address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from infra.lab.istio.material import Material


@contextlib.asynccontextmanager
async def serving(material: Material | None) -> AsyncIterator[tuple[str, Inbound]]:
    """A light proxy's inbound listener."""
    ip = address()
    inbound = Inbound(ip, 15006, lambda: None if material is None else material.server)
    inbound.start()
    try:
        yield ip, inbound
    finally:
        await inbound.stop()


async def shake(ip: str, context: ssl.SSLContext) -> tuple[str, list[str]]:
    """One handshake and one echoed byte; TLS version and the server's URIs."""
    reader, writer = await asyncio.open_connection(ip, 15006, ssl=context, server_hostname="outbound_.80_._.db")
    try:
        writer.write(b"?")
        assert await reader.readexactly(1) == b"?"
        tls = writer.get_extra_info("ssl_object")
        return tls.version(), uris(x509.load_der_x509_certificate(tls.getpeercert(True)))
    finally:
        writer.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_two_proxies_of_one_root_shake_hands_in_either_version_of_tls(tmp_path: Path, version: ssl.TLSVersion) -> None:
    ca = Ca.mint()

    async def script() -> None:
        async with serving(ca.material(DB, tmp_path)) as (ip, inbound):
            context = ca.material(WEB, tmp_path).client
            context.maximum_version = version
            assert await shake(ip, context) == (version.name.replace("_", "."), [DB])
            assert dict(inbound.stats) == {"handshake": 1}

    asyncio.run(script())


def test_a_client_of_a_foreign_root_gets_the_alert_and_is_counted(tmp_path: Path) -> None:
    ours, theirs = Ca.mint("Root CA"), Ca.mint("Root CA 2")
    both = ours.roots_pem + theirs.roots_pem

    async def script() -> None:
        async with serving(ours.material(DB, tmp_path)) as (ip, inbound):
            with pytest.raises(ssl.SSLError, match="alert unknown ca"):
                await shake(ip, theirs.material(WEB, tmp_path, roots_pem=both).client)
            await asyncio.sleep(0)
            assert dict(inbound.stats) == {"fail_verify_error": 1}

    asyncio.run(script())


def test_a_client_that_does_not_trust_the_server_refuses_and_counts_as_a_connection_error_there(tmp_path: Path) -> None:
    ours, theirs = Ca.mint("Root CA"), Ca.mint("Root CA 2")

    async def script() -> None:
        async with serving(ours.material(DB, tmp_path)) as (ip, inbound):
            with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
                await shake(ip, theirs.material(WEB, tmp_path).client)
            async with asyncio.timeout(2):
                while not inbound.stats:
                    await asyncio.sleep(0.01)
            assert dict(inbound.stats) == {"connection_error": 1}

    asyncio.run(script())


def test_clients_of_another_trust_domain_and_clients_without_a_certificate_are_refused(tmp_path: Path) -> None:
    ca = Ca.mint()

    async def script() -> None:
        async with serving(ca.material(DB, tmp_path)) as (ip, _):
            with pytest.raises(ssl.SSLError, match="alert"):
                await shake(ip, ca.material("spiffe://other.example/ns/shop/sa/web", tmp_path).client)
            bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            bare.check_hostname = False
            bare.load_verify_locations(cadata=ca.roots_pem)
            with pytest.raises(ssl.SSLError, match=r"CERTIFICATE_REQUIRED|certificate required"):
                await shake(ip, bare)

    asyncio.run(script())


def test_plain_text_and_connections_before_the_first_leaf_get_no_answer(tmp_path: Path) -> None:
    async def script() -> None:
        for material in (None, Ca.mint().material(DB, tmp_path)):
            async with serving(material) as (ip, _):
                reader, writer = await asyncio.open_connection(ip, 15006)
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    assert b"HTTP" not in await asyncio.wait_for(reader.read(), 5)
                writer.close()

    asyncio.run(script())


def test_the_certificate_request_names_the_trusted_roots(tmp_path: Path) -> None:
    ours, theirs = Ca.mint("Root CA"), Ca.mint("Root CA 2")
    holding = ours.material(DB, tmp_path, roots_pem=ours.roots_pem + theirs.roots_pem)

    def ask(ip: str) -> list[str]:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        connection = SSL.Connection(context, socket.create_connection((ip, 15006), timeout=5))
        connection.setblocking(True)
        connection.set_connect_state()
        with contextlib.suppress(SSL.Error):
            connection.do_handshake()
        names = [str(name.commonName) for name in connection.get_client_ca_list()]
        connection.close()
        return names

    async def script() -> None:
        async with serving(holding) as (ip, _):
            assert await asyncio.to_thread(ask, ip) == ["Root CA", "Root CA 2"]

    asyncio.run(script())


@pytest.mark.parametrize(("identifiers", "fails"), [(True, False), (False, True)])
def test_roots_of_one_name_can_be_told_apart_by_key_identifiers_only(
    tmp_path: Path, identifiers: bool, fails: bool
) -> None:
    old, new = (Ca.mint("Root CA", identifiers=identifiers) for _ in range(2))
    both = old.roots_pem + new.roots_pem

    async def script() -> int:
        refused = 0
        for signer in (old, new):
            async with serving(signer.material(DB, tmp_path, roots_pem=both)) as (ip, _):
                try:
                    await shake(ip, signer.material(WEB, tmp_path, roots_pem=both).client)
                except ssl.SSLError:
                    refused += 1
        return refused

    assert asyncio.run(script()) == int(fails)


def test_bundles_without_equal_names_hold_every_root_once() -> None:
    old, new, other = Ca.mint("Root CA").root, Ca.mint("Root CA").root, Ca.mint("Root CA 2").root
    roots = [pair.certificate for pair in (old, other, new, old)]
    assert without_equal_names(roots) == [
        pki.to_pem(old.certificate) + pki.to_pem(other.certificate),
        pki.to_pem(new.certificate),
    ]
    assert without_equal_names([]) == []
