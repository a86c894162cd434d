"""The issuer in linkerd-identity's memory: read from disk, verified against the roots, and signing leaves.

The rules and texts are those of the golden traces: 04 (what a broken Secret looks like), 06 (failing starts), 07
(expiry), 08 (the shape of a leaf).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.lab.linkerd import gopem, gox509
from infra.lab.linkerd.gotext import go_now, go_time

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta
    from pathlib import Path

# Which files of the issuer's mount are read, by `-identity-scheme`; for any other, those of Kubernetes.
_KUBERNETES_SCHEME = "kubernetes.io/tls"
SCHEME_FILES = {
    "linkerd.io/tls": ("crt.pem", "key.pem"),
    _KUBERNETES_SCHEME: ("tls.crt", "tls.key"),
}
_PRINTABLE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?")


class IssuerError(ValueError):
    """An issuer that cannot be loaded or used; the text is what linkerd-identity prints."""


@dataclass(frozen=True)
class Validity:
    """Leaf lifetime and clock-skew allowance; a leaf spans lifetime + 2 x skew."""

    lifetime: timedelta
    skew: timedelta


@dataclass
class Issuer:
    """One loaded issuer. Leaf serial numbers count from 1 for each one loaded (trace 01)."""

    chain: tuple[x509.Certificate, ...]
    key: gopem.PrivateKey
    _serials: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def certificate(self) -> x509.Certificate:
        """The issuing certificate itself."""
        return self.chain[0]

    def verify(self, roots: Sequence[x509.Certificate], now: datetime) -> None:
        """Check that the issuer chains to `roots` now.

        Raises:
            IssuerError: Go's text; for expiry with the times that Linkerd appends.
        """
        try:
            gox509.verify(self.certificate, roots=roots, intermediates=self.chain[1:], now=now)
        except gox509.ExpiredError as error:
            window = f"Invalid before {go_time(self.certificate.not_valid_before_utc)}"
            window += f" - Invalid After {go_time(self.certificate.not_valid_after_utc)}"
            raise IssuerError(f"{error} - Current Time : {go_now(now)} - {window}") from error
        except gox509.VerifyError as error:
            raise IssuerError(str(error)) from error

    def issue(self, csr: x509.CertificateSigningRequest, validity: Validity, now: datetime) -> x509.Certificate:
        """Sign a leaf for a checked CSR.

        Raises:
            IssuerError: If the CSR's key is not ECDSA, or the issuer's own key cannot make the one signature Linkerd
                uses (ECDSA with SHA-256).
        """
        public = csr.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise IssuerError(f"CSR must contain an ECDSA public key: {_go_public_key(public)}")
        serial = next(self._serials)
        if not isinstance(self.key, ec.EllipticCurvePrivateKey):
            raise IssuerError("x509: requested SignatureAlgorithm does not match private key type")
        # The end is clamped to whatever in the issuer's own file ends first; the root only counts if it is in there.
        end = min([now + validity.lifetime + validity.skew, *(c.not_valid_after_utc for c in self.chain)])
        subject = _as_go_encodes(csr.subject)
        builder = (
            x509.CertificateBuilder()
            .serial_number(serial)
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .not_valid_before((now - validity.skew).replace(microsecond=0))
            .not_valid_after(end.replace(microsecond=0))
            .add_extension(_LEAF_USAGE, critical=True)
            .add_extension(_LEAF_EXTENDED_USAGE, critical=False)
        )
        if (ski := _subject_key_identifier(self.certificate)) is not None:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False
            )
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = [x509.DNSName(name) for name in names.get_values_for_type(x509.DNSName)]  # Go reads no other kinds
        # RFC 5280 4.2.1.6: without a subject the names are critical (so is the recorded leaf cert-4 of trace 08).
        extension = x509.SubjectAlternativeName(dns)
        return builder.add_extension(extension, critical=not list(subject)).sign(self.key, hashes.SHA256())


def load(directory: Path, scheme: str, mount: str) -> Issuer:
    """Read the issuer's files; key first, then certificate, then whether they belong together.

    Args:
        directory: Where the mount is on this machine.
        mount: Where it is in the container, for messages.

    Raises:
        IssuerError: "failed to read CA from disk: …".
    """
    certificate_file, key_file = SCHEME_FILES.get(scheme, SCHEME_FILES[_KUBERNETES_SCHEME])
    try:
        key = gopem.private_key(_read(directory, key_file, mount))
        chain = gopem.issuer_chain(_read(directory, certificate_file, mount))
    except gopem.PemError as error:
        raise IssuerError(f"failed to read CA from disk: {error}") from error
    if _spki(chain[0].public_key()) != _spki(key.public_key()):
        raise IssuerError("failed to read CA from disk: tls: Public and private key do not match")
    return Issuer(tuple(chain), key)


def load_verified(
    directory: Path, scheme: str, mount: str, *, roots: Sequence[x509.Certificate], name: str, now: datetime
) -> Issuer:
    """Read the issuer and accept it only if it is a CA under `roots`.

    Raises:
        IssuerError: As the reload and the start of linkerd-identity word it.
    """
    issuer = load(directory, scheme, mount)
    try:
        issuer.verify(roots, now)
    except IssuerError as error:
        raise IssuerError(f"failed to verify issuer credentials for '{name}' with trust anchors: {error}") from error
    try:
        is_ca = issuer.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    if not is_ca:
        raise IssuerError("failed to verify issuer certificate: it must be an intermediate-CA, but it is not")
    return issuer


_LEAF_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=True,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
_LEAF_EXTENDED_USAGE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


def _read(directory: Path, name: str, mount: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except FileNotFoundError as error:
        raise IssuerError(f"failed to read CA from disk: open {mount}/{name}: no such file or directory") from error


def _spki(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]  # any public key has it


def _subject_key_identifier(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return None


def _as_go_encodes(name: x509.Name) -> x509.Name:
    """The same name as Go writes it again (pkix.Name): the kinds it knows, in its order, others left out.

    Several values of a kind share one set; of common names and serial numbers the last counts. A value is a
    PrintableString where its characters allow it, else a UTF8String.
    """
    sets = []
    for oid in _GO_KINDS:
        values = [str(attribute.value) for attribute in name.get_attributes_for_oid(oid)]
        if oid in (NameOID.COMMON_NAME, NameOID.SERIAL_NUMBER):
            values = [value for value in values[-1:] if value]
        if values:
            attributes = [x509.NameAttribute(oid, v, _string_type(v), _validate=False) for v in dict.fromkeys(values)]
            sets.append(x509.RelativeDistinguishedName(attributes))
    return x509.Name(sets)


_GO_KINDS = (
    NameOID.COUNTRY_NAME,
    NameOID.ORGANIZATION_NAME,
    NameOID.ORGANIZATIONAL_UNIT_NAME,
    NameOID.LOCALITY_NAME,
    NameOID.STATE_OR_PROVINCE_NAME,
    NameOID.STREET_ADDRESS,
    NameOID.POSTAL_CODE,
    NameOID.COMMON_NAME,
    NameOID.SERIAL_NUMBER,
)


def _string_type(value: str) -> _ASN1Type:
    return _ASN1Type.PrintableString if _PRINTABLE.issuperset(value) else _ASN1Type.UTF8String


def _go_public_key(key: object) -> str:
    """A key as Go prints it with %+v."""
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        return f"&{{N:+{numbers.n} E:{numbers.e}}}"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return f"[{' '.join(str(byte) for byte in key.public_bytes_raw())}]"
    return "<nil>"  # a kind of key that Go does not know
