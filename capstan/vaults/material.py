"""A secret value that cannot be shown by accident: certificates, a private key, or both, as PEM text.

Python cannot wipe memory, so a key lives as long as its `Material` does: keep that to one function. What this type
does prevent is the usual leak: a `repr` in a log line or traceback, a dataclass dump, a pickled task result.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING, NoReturn, SupportsIndex

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from capstan.errors import InvalidInput, InvalidPem
from capstan.pki.bundle import Bundle
from capstan.pki.keys import PrivateKey
from capstan.pki.mint import Minted

if TYPE_CHECKING:
    from capstan.pki.inspect import Certificate

# RFC 7468 section 2: the label on both encapsulation boundaries must be the same.
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\r?\n.*?-----END \1-----(?:\r?\n|\Z)", re.DOTALL)
_KEY_LABELS = ("PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY")


class Material:
    """Certificates (leaf or issuer first) and the private key of the first, either of which may be absent.

    Args:
        certificate_pem: One or more PEM certificates, or empty.
        private_key_pem: One unencrypted PEM private key (PKCS#8, SEC 1 or PKCS#1), or empty.
        where: The object or file it came from, for error messages.

    Raises:
        InvalidPem: Neither is given, one cannot be parsed, or the key is not the first certificate's.
    """

    __slots__ = ("_certificate_pem", "_fingerprint", "_private_key_pem")

    def __init__(
        self, certificate_pem: str = "", private_key_pem: str = "", *, where: str = "new key material"
    ) -> None:
        if not certificate_pem and not private_key_pem:
            raise InvalidPem(
                "there is nothing to keep", where=where, observed="no PEM block", expected="certificate or key"
            )
        if certificate_pem and private_key_pem and not certificate_pem.endswith("\n"):
            certificate_pem += "\n"
        certificate_spki = key_spki = b""
        if certificate_pem:
            try:
                first = x509.load_pem_x509_certificates(certificate_pem.encode())[0]
            except ValueError:
                raise InvalidPem(
                    "no certificate can be read", where=where, observed="text that does not parse", expected="PEM"
                ) from None
            certificate_spki = first.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            self._fingerprint = hashlib.sha256(first.public_bytes(Encoding.DER)).hexdigest()
        if private_key_pem:
            try:
                key = load_pem_private_key(private_key_pem.encode(), password=None)
            except (ValueError, TypeError, UnsupportedAlgorithm):
                # The cause is dropped: a parser's message may quote what it choked on.
                raise InvalidPem(
                    "the private key cannot be read",
                    where=where,
                    observed="text that is no unencrypted PEM private key",
                    expected="one PKCS#8, SEC 1 or PKCS#1 block",
                ) from None
            key_spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if certificate_spki and key_spki and certificate_spki != key_spki:
            raise InvalidPem(
                "the private key does not belong to the certificate",
                where=where,
                observed=f"key with SPKI {hashlib.sha256(key_spki).hexdigest()}",
                expected=f"SPKI {hashlib.sha256(certificate_spki).hexdigest()}",
            )
        if not certificate_spki:
            self._fingerprint = hashlib.sha256(key_spki).hexdigest()
        self._certificate_pem = certificate_pem
        self._private_key_pem = private_key_pem

    @classmethod
    def parse(cls, text: str, where: str) -> Material:
        """Read back what `unsafe_text` gave; also any PEM file of certificates followed by at most one key.

        Raises:
            InvalidPem: The text holds something else, or a key before the end.
        """
        blocks = list(_BLOCK.finditer(text))
        if "".join(block[0] for block in blocks) != text:
            raise InvalidPem(
                "text beside the PEM blocks", where=where, observed="other text", expected="PEM blocks only"
            )
        labels = [block[1] for block in blocks]
        keys = [label for label in labels if label in _KEY_LABELS]
        certificates = labels[: len(labels) - len(keys)]
        if len(keys) > 1 or any(label != "CERTIFICATE" for label in certificates):
            raise InvalidPem(
                "not what a vault entry looks like",
                where=where,
                observed=", ".join(labels) or "nothing",
                expected="certificates, then at most one private key",
            )
        split = blocks[-1].start() if keys else len(text)
        return cls(text[:split], text[split:], where=where)

    @classmethod
    def of(cls, minted: Minted, *chain: Certificate) -> Material:
        """A minted certificate with its key, and the certificates above it where they are to be kept with it."""
        certificates = "\n".join(certificate.pem() for certificate in (minted.certificate, *chain))
        return cls(certificates, minted.key.pem().decode("ascii"), where=minted.certificate.common_name)

    def minted(self, where: str) -> Minted:
        """The first certificate and its key, to sign with.

        Raises:
            InvalidPem: One of them is missing.
        """
        return Minted(
            Bundle.parse(self._certificate_pem, where).certificates[0], PrivateKey.parse(self._private_key_pem, where)
        )

    @property
    def certificate_pem(self) -> str:
        """The certificates as PEM; public. Empty for a bare key."""
        return self._certificate_pem

    @property
    def has_private_key(self) -> bool:
        """Whether a private key is inside."""
        return bool(self._private_key_pem)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the first certificate's DER; of the public key's SPKI DER where there is no certificate."""
        return self._fingerprint

    @property
    def content_sha256(self) -> str:
        """SHA-256 (hex) of the whole value.

        Safe to publish: a private key is a uniformly random number of at least 128 bits of strength, so its hash can be
        compared but not searched.
        """
        return hashlib.sha256(self.unsafe_text().encode()).hexdigest()

    def unsafe_private_key_pem(self) -> str:
        """The private key in clear. Never log it, return it from a task, or put it into an exception."""
        return self._private_key_pem

    def unsafe_text(self) -> str:
        """Certificates and private key in clear, as a vault stores them. The same cautions apply."""
        return self._certificate_pem + self._private_key_pem

    def __repr__(self) -> str:
        held = (
            "certificate and private key"
            if self._certificate_pem and self._private_key_pem
            else ("private key" if self._private_key_pem else "certificate")
        )
        return f"<Material {self._fingerprint[:16]}: {held}, not shown>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Material):
            return NotImplemented
        return hmac.compare_digest(self.content_sha256, other.content_sha256)

    def __hash__(self) -> int:
        return hash(self.content_sha256)

    def __copy__(self) -> Material:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Material:  # dataclasses.asdict copies deeply
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise InvalidInput(
            "key material is never pickled",
            where=repr(self),
            observed=f"pickle protocol {protocol}",
            expected="a vault reference in its place",
        )
