"""Certificate signing requests (PKCS#10, RFC 2986): how an issuer gets its certificate from a root kept offline.

The issuer's key stays where it was made; the root's key stays on a machine without network. Between the two travel a
request and a certificate, both public.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from capstan.errors import InvalidCertificate, InvalidInput, InvalidPem
from capstan.pki.keys import describe_key, spki_sha256
from capstan.pki.mint import IssuerPolicy, certify_issuer

if TYPE_CHECKING:
    from datetime import datetime

    from capstan.pki.inspect import Certificate
    from capstan.pki.keys import PrivateKey
    from capstan.pki.mint import Minted

_E = TypeVar("_E", bound=x509.ExtensionType)
_LABELS = (b"-----BEGIN CERTIFICATE REQUEST-----", b"-----BEGIN NEW CERTIFICATE REQUEST-----")
_MIN_RSA_BITS = 2048  # below, OpenSSL at its default security level (and so Envoy) refuses the chain


@dataclass(frozen=True, eq=False)
class Request:
    """A signing request whose signature was verified: whoever made it has the private key.

    Attributes:
        raw: The parsed request.
    """

    raw: x509.CertificateSigningRequest

    @property
    def subject(self) -> str:
        """RFC 4514 text of the name that is asked for."""
        return self.raw.subject.rfc4514_string()

    @property
    def common_name(self) -> str:
        """The first common name, or the empty string."""
        names = self.raw.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value) if names else ""

    @property
    def key_algorithm(self) -> str:
        """`ECDSA P-256`, `RSA 2048`, `Ed25519`, ..."""
        return describe_key(self.raw.public_key())

    @cached_property
    def spki_sha256(self) -> str:
        """SHA-256 of the public key, lower-case hex: the same in the certificate that comes back."""
        return spki_sha256(self.raw.public_key())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the DER, lower-case hex: to be compared by eye on both machines."""
        return hashlib.sha256(self.raw.public_bytes(Encoding.DER)).hexdigest()

    def pem(self) -> str:
        """PEM with a trailing newline."""
        return self.raw.public_bytes(Encoding.PEM).decode("ascii")

    def answered_by(self, certificate: Certificate) -> bool:
        """Whether a certificate is for the key of this request."""
        return certificate.spki_sha256 == self.spki_sha256

    def extension(self, kind: type[_E]) -> _E | None:
        """An extension that is asked for, or None."""
        try:
            return self.raw.extensions.get_extension_for_class(kind).value
        except x509.ExtensionNotFound:
            return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"<Request for {self.subject!r}, {self.key_algorithm} {self.spki_sha256[:16]}>"


def make_request(key: PrivateKey, common_name: str, *, organization: str = "", path_length: int = 0) -> Request:
    """Ask for an issuing CA's certificate for this key.

    The request names the extensions that an issuer needs, for signers that copy them; `sign_request` sets its own.

    Args:
        organization: O of the subject; left out if empty.

    Raises:
        InvalidInput: The name is empty or longer than X.509 allows (RFC 5280, ub-common-name).
    """
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)] if organization else []
    try:
        name = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    except ValueError as error:
        raise InvalidInput(
            "common name cannot be used", observed=repr(common_name), expected="1 to 64 characters"
        ) from error
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
    )
    return Request(key.sign_request(builder))


def parse_request(pem: bytes | str, where: str) -> Request:
    """Read a request of anybody's making, and verify its signature: the proof that its key is theirs.

    Raises:
        InvalidPem: It is no PEM with exactly one request in it.
        InvalidInput: Its signature does not verify, or its parts cannot be read.
    """
    text = pem.encode() if isinstance(pem, str) else pem
    found = sum(text.count(label) for label in _LABELS)
    if found != 1:
        raise InvalidPem(
            "no certificate request can be read", where=where, observed=f"{found} requests in it",
            expected="one PEM block of CERTIFICATE REQUEST", next_command="openssl req -in FILE -noout -text",
        )  # fmt: skip
    try:
        raw = x509.load_pem_x509_csr(text)
        signed = raw.is_signature_valid
        _ = raw.extensions, raw.subject, raw.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise InvalidPem(
            "no certificate request can be read", where=where, observed=str(error),
            expected="PKCS#10 (RFC 2986) with an ECDSA, RSA or Ed25519 key",
        ) from error  # fmt: skip
    if not signed:
        raise InvalidInput(
            "a certificate request is not signed by the key that it is for", where=where,
            observed="its signature does not verify", expected="proof of possession (RFC 2986 section 3)",
            next_command="fetch the request again from the machine that made it",
        )  # fmt: skip
    return Request(raw)


def sign_request(
    root: Minted, request: Request, policy: IssuerPolicy, now: datetime, *, serial: int | None = None
) -> Certificate:
    """Answer a request for an issuing CA: the key and the name are the request's, everything else is the policy's.

    Extensions that the request asks for are not copied: what a CA may do is its root's to say. SKI and AKI are set.

    Args:
        policy: Validity, path length and backdate count; its name and algorithm do not.
        now: Aware time of signing.
        serial: None draws a random one.

    Raises:
        InvalidInput: The request is for no CA, has no name, its root's name, or a key too weak; or the certificate
            would outlive its root.
        InvalidCertificate: The root cannot issue it (no CA, no room for the path length).
    """
    where = f"request for {request.subject or 'nobody'}"
    if not list(request.raw.subject):
        raise InvalidInput("a CA needs a name", where=where, observed="an empty subject", expected="a common name")
    if request.raw.subject == root.certificate.raw.subject:
        raise InvalidInput(
            "an issuer may not have its root's name: chains would be built wrongly", where=where,
            observed=request.subject, expected=f"another name than {root.certificate.subject}",
            next_command="make a request with another common name",
        )  # fmt: skip
    constraints = request.extension(x509.BasicConstraints)
    if constraints is not None and not constraints.ca:
        raise InvalidInput(
            "the request is for an end entity, not for an issuing CA", where=where, observed="CA:FALSE",
            expected="CA:TRUE, or no basicConstraints",
        )  # fmt: skip
    key = request.raw.public_key()
    weak = isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS
    if weak or not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
        raise InvalidInput(
            "the request's key cannot be used", where=where, observed=request.key_algorithm,
            expected=f"ECDSA, Ed25519, or RSA of {_MIN_RSA_BITS} bits and more",
        )  # fmt: skip
    certificate = certify_issuer(policy, request.raw.subject, key, root, now, serial=serial)
    if not certificate.signed_by(root.certificate):
        raise InvalidCertificate(
            "the signature does not verify with the root's certificate", where=where,
            observed=f"root {root.certificate.fingerprint[:16]}", expected="the root of this key",
        )  # fmt: skip
    return certificate
