"""One certificate, read once, with the names people use for its parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding

from capstan.errors import InvalidCertificate, InvalidPem
from capstan.pki.clock import require_aware
from capstan.pki.keys import PrivateKey, describe_key, spki_sha256

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

_E = TypeVar("_E", bound=x509.ExtensionType)


@dataclass(frozen=True, eq=False)
class Certificate:
    """An X.509 certificate. Two are equal when their DER is.

    Attributes:
        raw: The parsed certificate. Extensions have been parsed too: a certificate with broken or duplicate ones
            cannot be made into this class.
    """

    raw: x509.Certificate

    def __post_init__(self) -> None:
        try:
            _ = self.raw.extensions, self.raw.subject, self.raw.issuer, self.raw.not_valid_after_utc
            _ = self.raw.public_key(), self.raw.signature_algorithm_oid
        except (
            ValueError,
            TypeError,
            UnsupportedAlgorithm,
            x509.DuplicateExtension,
            x509.UnsupportedGeneralNameType,
        ) as e:
            raise InvalidCertificate(
                "certificate cannot be parsed",
                where=f"certificate {self.fingerprint[:16]}",
                observed=str(e),
                expected="RFC 5280",
            ) from e

    @classmethod
    def from_der(cls, der: bytes, where: str = "certificate") -> Certificate:
        """Parse DER.

        Raises:
            InvalidCertificate: It is no X.509 certificate.
        """
        try:
            return cls(x509.load_der_x509_certificate(der))
        except (ValueError, x509.InvalidVersion) as e:
            raise InvalidCertificate("not an X.509 certificate", where=where, observed=str(e), expected="DER") from e

    @classmethod
    def from_pem(cls, pem: bytes | str, where: str = "certificate") -> Certificate:
        """Parse PEM text that holds exactly one certificate.

        Raises:
            InvalidPem: None, more than one, or text that a strict reader refuses.
            InvalidCertificate: The one in it is no X.509 certificate.
        """
        from capstan.pki.bundle import Bundle  # bundle is made of certificates; this convenience is the way back

        found = Bundle.parse(pem, where).certificates
        if len(found) != 1:
            raise InvalidPem("more than one certificate", where=where, observed=str(len(found)), expected="exactly one")
        return found[0]

    @cached_property
    def der(self) -> bytes:
        """The encoded certificate."""
        return self.raw.public_bytes(Encoding.DER)

    def pem(self) -> str:
        """PEM without a trailing newline."""
        return self.raw.public_bytes(Encoding.PEM).decode("ascii").strip()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the DER, lower-case hex."""
        return hashlib.sha256(self.raw.public_bytes(Encoding.DER)).hexdigest()

    @cached_property
    def public_key(self) -> PublicKeyTypes:
        """The subject's public key."""
        return self.raw.public_key()

    @cached_property
    def spki_sha256(self) -> str:
        """SHA-256 of the public key: a re-dated root keeps it, a re-keyed root does not."""
        return spki_sha256(self.public_key)

    @property
    def subject(self) -> str:
        """RFC 4514 text."""
        return self.raw.subject.rfc4514_string()

    @property
    def issuer(self) -> str:
        """RFC 4514 text of the issuer's name."""
        return self.raw.issuer.rfc4514_string()

    @property
    def common_name(self) -> str:
        """The first common name, or the empty string."""
        names = self.raw.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(names[0].value) if names else ""

    @property
    def serial_number(self) -> int:
        """As in the certificate; unique only within one issuer, and for Linkerd leaves not even there."""
        return self.raw.serial_number

    @property
    def not_before(self) -> datetime:
        """Aware UTC."""
        return self.raw.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """Aware UTC; the last second in which it is valid (RFC 5280 section 4.1.2.5)."""
        return self.raw.not_valid_after_utc

    def valid_at(self, moment: datetime) -> bool:
        """Whether `moment` (aware) lies in the validity period, both ends included."""
        return self.not_before <= require_aware(moment) <= self.not_after

    def extension(self, kind: type[_E]) -> x509.Extension[_E] | None:
        """The extension of this kind, or None."""
        try:
            return self.raw.extensions.get_extension_for_class(kind)
        except x509.ExtensionNotFound:
            return None

    @property
    def is_ca(self) -> bool:
        """Whether BasicConstraints says so."""
        constraints = self.extension(x509.BasicConstraints)
        return constraints is not None and constraints.value.ca

    @property
    def path_length(self) -> int | None:
        """How many CAs may stand below this one; None when unlimited (or no CA)."""
        constraints = self.extension(x509.BasicConstraints)
        return constraints.value.path_length if constraints else None

    @property
    def ski(self) -> str | None:
        """Subject Key Identifier, lower-case hex; None when absent."""
        extension = self.extension(x509.SubjectKeyIdentifier)
        return extension.value.digest.hex() if extension else None

    @property
    def aki(self) -> str | None:
        """Authority Key Identifier's key id, lower-case hex; None when absent."""
        extension = self.extension(x509.AuthorityKeyIdentifier)
        return extension.value.key_identifier.hex() if extension and extension.value.key_identifier else None

    @property
    def dns_names(self) -> tuple[str, ...]:
        """DNS subject alternative names, in order."""
        names = self.extension(x509.SubjectAlternativeName)
        return tuple(names.value.get_values_for_type(x509.DNSName)) if names else ()

    @property
    def uris(self) -> tuple[str, ...]:
        """URI subject alternative names (SPIFFE ids), in order."""
        names = self.extension(x509.SubjectAlternativeName)
        return tuple(names.value.get_values_for_type(x509.UniformResourceIdentifier)) if names else ()

    @property
    def identity(self) -> str:
        """The first DNS name or URI; the common name where there is neither."""
        return next(iter((*self.dns_names, *self.uris)), self.common_name)

    @property
    def key_algorithm(self) -> str:
        """`ECDSA P-256`, `RSA 2048`, ..."""
        return describe_key(self.public_key)

    @property
    def signature_algorithm(self) -> str:
        """`ECDSA-SHA256`, `SHA256-RSA`, ... in the words of Go's crypto/x509, which Linkerd's checks print."""
        try:
            digest = self.raw.signature_hash_algorithm
        except UnsupportedAlgorithm:
            return self.raw.signature_algorithm_oid.dotted_string
        name = digest.name.upper() if digest else ""
        oid = self.raw.signature_algorithm_oid
        if oid == x509.SignatureAlgorithmOID.RSASSA_PSS:
            return f"{name}-RSAPSS"
        dotted = oid.dotted_string
        if dotted.startswith("1.2.840.10045."):
            return f"ECDSA-{name}"
        if dotted.startswith("1.2.840.113549.1.1."):
            return f"{name}-RSA"
        return {"1.3.101.112": "Ed25519", "1.3.101.113": "Ed448"}.get(dotted, dotted)

    @property
    def algorithm(self) -> str:
        """Key and signature in one text: `ECDSA P-256, signed with ECDSA-SHA256`."""
        return f"{self.key_algorithm}, signed with {self.signature_algorithm}"

    @property
    def self_issued(self) -> bool:
        """Subject and issuer are the same name."""
        return self.raw.subject == self.raw.issuer

    @cached_property
    def self_signed(self) -> bool:
        """Self-issued, and the signature verifies with its own key."""
        return self.self_issued and self.signed_by(self)

    def signed_by(self, issuer: Certificate) -> bool:
        """Whether `issuer` carries the name and the key that signed this certificate; says nothing about validity.

        Any sound signature algorithm counts here; which ones are allowed is `capstan.pki.rules`' business.
        """
        if self.raw.issuer != issuer.raw.subject:
            return False
        if self.raw.signature_algorithm_oid == x509.SignatureAlgorithmOID.RSASSA_PSS:
            parameters = self.raw.signature_algorithm_parameters
            if not isinstance(parameters, padding.PSS):
                return False
        try:
            self.raw.verify_directly_issued_by(issuer.raw)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            return False
        return True

    def key_matches(self, key: PrivateKey) -> bool:
        """Whether `key` is the private half of this certificate's key."""
        return key.spki_sha256 == self.spki_sha256

    def __reduce__(self) -> tuple[object, ...]:
        return Certificate.from_der, (self.der,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificate) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"<Certificate {self.common_name or self.identity!r} {self.fingerprint[:16]} until {self.not_after:%F %T}Z>"
        )
