"""What a proxy holds in memory: its roots, its key, its current leaf; and the TLS contexts made of them.

TLS 1.3 only, no tickets, no resumption: every connection is a full handshake that both sides verify anew, as between
Linkerd's proxies. A client certificate is optional for the server but verified if one is shown.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ECHO_PROTOCOL = "lab.capstan.dev/echo"
"""ALPN of the prober: the proxy itself sends one byte back, which shows that it accepted the client's certificate."""
HTTP2_PROTOCOL = "h2"
_SOON = timedelta(days=2)  # longer than any leaf lives that a context is made of
_LONG = timedelta(days=3650)


@dataclass(frozen=True)
class Key:
    """A proxy's private key, made once at its start, and the CSR it sends at every renewal."""

    private: ec.EllipticCurvePrivateKey
    csr_der: bytes

    @classmethod
    def generate(cls, name: str) -> Key:
        """A new P-256 key and a CSR for the mesh identity `name`."""
        private = ec.generate_private_key(ec.SECP256R1())
        csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if len(name) <= 64 else []))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(private, hashes.SHA256())
        )
        return cls(private, csr.public_bytes(serialization.Encoding.DER))

    @property
    def pem(self) -> bytes:
        """PKCS 8 PEM."""
        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


@dataclass(frozen=True)
class Material:
    """One state of a proxy: everything a handshake depends on. Replaced as a whole at every renewal.

    Attributes:
        name: Its mesh identity, also the only server name it answers to.
        roots_pem: The bundle it read at start.
        chain: Leaf first, then what identity sent along.
        scratch: Directory (mode 0700) in which the key may be for the moment OpenSSL takes to read it.
    """

    name: str
    roots_pem: str
    key: Key
    chain: tuple[x509.Certificate, ...]
    scratch: Path

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate presented."""
        return self.chain[0]

    @property
    def chain_pem(self) -> bytes:
        """Leaf and intermediates in PEM."""
        return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in self.chain)

    def load(self) -> Self:
        """Build both contexts now, so that a handshake later needs no file; raises OSError (ssl.SSLError included)."""
        _ = self.server, self.client
        return self

    @cached_property
    def server(self) -> ssl.SSLContext:
        """For inbound connections: SNI must be the proxy's own name; client certificates are verified if shown."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.num_tickets = 0
        context.set_alpn_protocols([HTTP2_PROTOCOL, ECHO_PROTOCOL])
        own_name = self.name

        def check_name(_: ssl.SSLObject, server_name: str | None, __: ssl.SSLContext) -> int | None:
            return None if server_name == own_name else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

        context.sni_callback = check_name
        return context

    @cached_property
    def client(self) -> ssl.SSLContext:
        """For outbound connections of the prober: shows the leaf, verifies the server's chain and name."""
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols([ECHO_PROTOCOL])
        return context

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # The proxies' verifier ends a chain at whatever certificate it was given as an anchor, self-signed or not.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=undated(self.roots_pem, datetime.now(UTC)))
        # The ssl module reads keys from files only.
        handle, path = tempfile.mkstemp(dir=self.scratch)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self.key.pem + self.chain_pem)
            context.load_cert_chain(path)
        finally:
            Path(path).unlink()
        return context


def undated(roots_pem: str, now: datetime) -> str:
    """The same anchors to an OpenSSL that looks at their ends: one that ends soon is replaced by an alike without.

    The proxies' verifier (rustls-webpki) knows of an anchor only its name and key: a leaf is accepted on after its
    anchor has ended, until it ends itself. The copy's signature is of no consequence: OpenSSL does not check an
    anchor's own.
    """
    found = []
    for root in parse_roots(roots_pem):
        if root.not_valid_after_utc > now + _SOON:
            found.append(root)
            continue
        builder = (
            x509.CertificateBuilder()
            .subject_name(root.subject)
            .issuer_name(root.issuer)
            .public_key(root.public_key())
            .serial_number(root.serial_number)
            .not_valid_before(root.not_valid_before_utc)
            .not_valid_after(now + _LONG)
        )
        for extension in root.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        found.append(builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()))
    return "".join(root.public_bytes(serialization.Encoding.PEM).decode() for root in found)


def parse_roots(pem: str) -> list[x509.Certificate]:
    """The certificates of a bundle as the proxy reads them: PEM blocks wherever they are, other text ignored.

    Raises:
        ValueError: If there is none, or one is malformed. The real proxy does not start then.
    """
    return x509.load_pem_x509_certificates(pem.encode())
