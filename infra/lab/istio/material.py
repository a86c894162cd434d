"""What a proxy holds in memory: its key, its leaf with chain, its roots; and the TLS contexts made of them.

The server side is pyOpenSSL: unlike the standard library it can name the trusted roots in its CertificateRequest, as
Envoy does. The client side is the standard library's, for asyncio.
"""

from __future__ import annotations

import os
import ssl
import tempfile
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import SSL, crypto

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

RSA_BITS = 2048
CLIENT_PROTOCOLS = ["istio-peer-exchange", "istio"]
SERVER_PROTOCOLS = (b"h2", b"http/1.1")


@dataclass(frozen=True)
class Key:
    """A private key and the CSR it goes with; the agent makes both anew for every leaf."""

    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    csr_pem: str

    @classmethod
    def generate(cls, identity: str, *, elliptic: bool) -> Key:
        """A new key (P-256, or RSA with 2048 bits as agents have unless told otherwise) and a CSR for `identity`."""
        private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
        if elliptic:
            private = ec.generate_private_key(ec.SECP256R1())
        else:
            private = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
        csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
            .sign(private, hashes.SHA256())
        )
        return cls(private, csr.public_bytes(serialization.Encoding.PEM).decode())

    @property
    def pem(self) -> bytes:
        """PEM as the agent writes it: SEC 1 or PKCS 1."""
        return self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )


@dataclass(frozen=True)
class Material:
    """One state of a proxy: everything a handshake depends on. Replaced as a whole.

    Attributes:
        identity: Its SPIFFE ID.
        trust_domain: Peers must be of it.
        chain_pem: Leaf first, then what the CA sent along.
        roots_pem: The bundle, text as it is.
        leaf_updated, roots_updated: When each of the two secrets last changed.
        scratch: Directory (mode 0700) in which the key may be for the moment OpenSSL takes to read it.
    """

    identity: str
    trust_domain: str
    key_pem: bytes
    chain_pem: str
    roots_pem: str
    leaf_updated: datetime
    roots_updated: datetime
    scratch: Path

    def __repr__(self) -> str:
        """Without the key."""
        return f"Material({self.identity})"

    @cached_property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Leaf and intermediates; raises ValueError if one is malformed."""
        return tuple(x509.load_pem_x509_certificates(self.chain_pem.encode()))

    @cached_property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """The bundle's certificates, in its order, each once; raises ValueError if it has none."""
        return tuple(dict.fromkeys(x509.load_pem_x509_certificates(self.roots_pem.encode())))

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate presented."""
        return self.chain[0]

    def load(self) -> Self:
        """Build both contexts now, so that a handshake later needs no file.

        Raises:
            ValueError, OSError: If Envoy would reject the secrets: malformed, or a key that is not the leaf's.
        """
        try:
            _ = self.server, self.client
        except SSL.Error as error:
            raise ValueError(f"key and certificate cannot be used: {error}") from error
        return self

    @cached_property
    def server(self) -> SSL.Context:
        """For inbound connections: STRICT mutual TLS 1.2 or 1.3, without resumption."""
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET)
        taking: Any = context  # the stubs are of an older pyOpenSSL, which took objects of its own only
        taking.use_privatekey(_private_key(self.key_pem))
        taking.use_certificate(self.leaf)
        for certificate in self.chain[1:]:
            taking.add_extra_chain_cert(certificate)
        context.check_privatekey()
        store = context.get_cert_store()
        if store is None:
            raise ValueError("this TLS context has no certificate store")
        for root in self.roots:
            store.add_cert(crypto.X509.from_cryptography(root))
        # Envoy ends a chain at whatever certificate is in trusted_ca, self-signed or not.
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        with warnings.catch_warnings():  # deprecated without a successor: names in the CertificateRequest need it
            warnings.simplefilter("ignore", DeprecationWarning)
            context.set_client_ca_list([crypto.X509.from_cryptography(root).get_subject() for root in self.roots])
        prefix = f"spiffe://{self.trust_domain}/"

        def verify(_: SSL.Connection, peer: crypto.X509, __: int, depth: int, ok: int) -> bool:
            if not ok:
                return False
            return depth > 0 or any(uri.startswith(prefix) for uri in uris(peer.to_cryptography()))

        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        context.set_alpn_select_callback(_select_protocol)
        return context

    @cached_property
    def client(self) -> ssl.SSLContext:
        """For outbound connections: shows the leaf, verifies the server's chain. Its SPIFFE ID is the caller's to check
        (`uris`): TLS stacks verify DNS names, not URIs.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.set_alpn_protocols(CLIENT_PROTOCOLS)
        context.load_verify_locations(cadata=self.roots_pem)
        handle, path = tempfile.mkstemp(dir=self.scratch)  # the ssl module reads keys from files only
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self.key_pem + self.chain_pem.encode())
            context.load_cert_chain(path)
        finally:
            Path(path).unlink()
        return context


def _private_key(pem: bytes) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    """A proxy's key; raises ValueError for any other thing."""
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ValueError("the private key is neither elliptic nor RSA")  # noqa: TRY004 - of the content, not of an argument
    return key


def uris(certificate: x509.Certificate) -> list[str]:
    """The URIs in a certificate's subject alternative names."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def merged_roots(*bundles: str) -> str:
    """The union of bundles as the agent makes it for ROOTCA: every certificate once, sorted by its PEM text.

    (security/pkg/nodeagent/cache: mergeConfigTrustBundle.) Raises ValueError if a bundle is malformed.
    """
    found: set[str] = set()
    for bundle in bundles:
        if bundle.strip():
            found.update(_pem(certificate) for certificate in x509.load_pem_x509_certificates(bundle.encode()))
    return "".join(sorted(found))


def without_equal_names(roots: Iterable[x509.Certificate]) -> list[str]:
    """Bundles in PEM of which none has two roots of one subject; together they hold all the roots.

    Go tries every root of a fitting name until one verifies, BoringSSL only the first. Trying these bundles in turn is
    what a Go client does with the one bundle.
    """
    pools: list[dict[bytes, str]] = []
    for root in dict.fromkeys(roots):
        subject = root.subject.public_bytes()
        for pool in pools:
            if subject not in pool:
                pool[subject] = _pem(root)
                break
        else:
            pools.append({subject: _pem(root)})
    return ["".join(pool.values()) for pool in pools]


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _select_protocol(_: SSL.Connection, offered: list[bytes]) -> Any:
    """A protocol, or pyOpenSSL's mark for none."""
    return next((name for name in SERVER_PROTOCOLS if name in offered), SSL.NO_OVERLAPPING_PROTOCOLS)
