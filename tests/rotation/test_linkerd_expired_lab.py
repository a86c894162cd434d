"""The lab's proxies judge ends as rustls does: of leaf and issuer, never of an anchor; its identity judges all."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from infra.lab import pki
from infra.lab.__main__ import options, parser
from infra.lab.linkerd import gox509, install
from infra.lab.linkerd.material import Key, Material, parse_roots, undated
from infra.lab.services import ServiceAddresses

if TYPE_CHECKING:
    from pathlib import Path

NAME = "web.shop.serviceaccount.identity.linkerd.cluster.local"
HOUR = timedelta(hours=1)


def leaf_of(issuer: pki.KeyPair, key: Key, ends: datetime) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.private.public_key())
        .serial_number(1)
        .not_valid_before(ends - 24 * HOUR)
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(pki._authority_key_identifier(issuer.certificate), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )


def held(scratch: Path, *, root_life: timedelta, leaf_ends_in: timedelta) -> Material:
    """What a proxy holds whose root was made a day ago."""
    now = datetime.now(UTC).replace(microsecond=0)
    root = pki.mint_root(now=now - 24 * HOUR, lifetime=root_life)
    issuer = pki.mint_issuer(root, now=now - 24 * HOUR)
    key = Key.generate(NAME)
    leaf = leaf_of(issuer, key, now + leaf_ends_in)
    return Material(NAME, root.certificate_pem, key, (leaf, issuer.certificate), scratch)


def shake_hands(client: Material, server: Material) -> bytes:
    """One mutual-TLS handshake in memory, and a byte that the server answers after it saw the client's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.client.wrap_bio(to_client, to_server, server_hostname=server.name)
    other = server.server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(6):
        for side in (one, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    other.write(b"?")
    return one.read(1)


def test_a_living_leaf_is_accepted_under_an_anchor_that_has_ended(tmp_path: Path) -> None:
    dead_anchor = held(tmp_path, root_life=23 * HOUR, leaf_ends_in=HOUR)
    (root,) = parse_roots(dead_anchor.roots_pem)
    assert root.not_valid_after_utc < datetime.now(UTC)
    assert shake_hands(dead_anchor, dead_anchor) == b"?"


def test_a_leaf_that_has_ended_is_refused_whatever_its_anchor(tmp_path: Path) -> None:
    for life in (23 * HOUR, 10_000 * HOUR):
        dead = held(tmp_path, root_life=life, leaf_ends_in=-HOUR)
        with pytest.raises(ssl.SSLError, match="expired"):
            shake_hands(dead, dead)


def test_an_anchor_of_another_key_is_none_however_long_it_lives(tmp_path: Path) -> None:
    ours, theirs = (held(tmp_path, root_life=23 * HOUR, leaf_ends_in=HOUR) for _ in range(2))
    with pytest.raises(ssl.SSLError, match=r"self-signed|unable to get|verify failed"):
        shake_hands(ours, theirs)


def test_only_an_anchor_that_soon_ends_is_handed_over_without_its_end() -> None:
    now = datetime.now(UTC)
    long, short = pki.mint_root(now=now), pki.mint_root(now=now, lifetime=HOUR)
    (same,) = parse_roots(undated(long.certificate_pem, now))
    assert same == long.certificate
    (other,) = parse_roots(undated(short.certificate_pem, now))
    assert other.not_valid_after_utc > now + 365 * 24 * HOUR
    assert other.subject == short.certificate.subject
    assert other.public_key() == short.certificate.public_key()


def test_identity_signs_no_more_once_its_anchor_has_ended() -> None:
    now = datetime.now(UTC)
    root = pki.mint_root(now=now - 24 * HOUR, lifetime=23 * HOUR)
    issuer = pki.mint_issuer(root, now=now - 24 * HOUR)
    with pytest.raises(gox509.ExpiredError):
        gox509.verify(issuer.certificate, roots=[root.certificate], intermediates=[], now=now)
    gox509.verify(issuer.certificate, roots=[root.certificate], intermediates=[], now=now, anchors_expire=False)


def test_the_lab_makes_anchors_and_issuers_that_live_as_long_as_they_are_told_to() -> None:
    addresses = ServiceAddresses()
    try:
        chosen = options(parser().parse_args(["up", "--anchor-seconds", "60", "--issuer-seconds", "30"])).linkerd
        made, now = install.mint(addresses, chosen), datetime.now(UTC)
        assert (made.root.certificate.not_valid_after_utc - now).total_seconds() == pytest.approx(60, abs=5)
        assert (made.issuer.certificate.not_valid_after_utc - now).total_seconds() == pytest.approx(30, abs=5)
        both = options(parser().parse_args(["up", "--default-certificates", "--anchor-seconds", "60"])).linkerd
        made = install.mint(addresses, both)
        assert made.root is made.issuer
        assert (made.root.certificate.not_valid_after_utc - now).total_seconds() == pytest.approx(60, abs=5)
        assert made.issuer.certificate.public_bytes(Encoding.DER)
    finally:
        addresses.close()
