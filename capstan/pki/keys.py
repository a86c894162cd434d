"""Private keys that cannot be shown by accident.

A PrivateKey has exactly two ways out, `pem()` and, under a passphrase, `sealed_pem()`, so that every place where key
material leaves memory can be found by searching for those names. repr, str, format, logging, pickle and copy give
nothing.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn, SupportsIndex

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from capstan.errors import InvalidInput, InvalidPem

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes


class KeyAlgorithm(StrEnum):
    """The algorithms Capstan makes keys with."""

    P256 = "ECDSA P-256"
    RSA2048 = "RSA 2048"
    RSA4096 = "RSA 4096"


def describe_key(key: PublicKeyTypes) -> str:
    """Name a public key as people do: `ECDSA P-256`, `RSA 3072`, `Ed25519`."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        curves = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
        return f"ECDSA {curves.get(key.curve.name, key.curve.name)}"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    return type(key).__name__.lstrip("_").removesuffix("PublicKey")


def spki_sha256(key: PublicKeyTypes) -> str:
    """SHA-256 of the DER SubjectPublicKeyInfo, lower-case hex: the same for every certificate of one key."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


class PrivateKey:
    """An ECDSA or RSA private key whose text form is only to be had through `pem()` and `sealed_pem()`."""

    __slots__ = ("_key",)

    def __init__(self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls, algorithm: KeyAlgorithm = KeyAlgorithm.P256) -> PrivateKey:
        """Make a new key from the operating system's randomness."""
        if algorithm is KeyAlgorithm.P256:
            return cls(ec.generate_private_key(ec.SECP256R1()))
        bits = {KeyAlgorithm.RSA2048: 2048, KeyAlgorithm.RSA4096: 4096}[algorithm]
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=bits))

    @classmethod
    def parse(cls, pem: bytes | str, where: str) -> PrivateKey:
        """Read an unencrypted PEM key (SEC1, PKCS#1 or PKCS#8).

        Raises:
            InvalidPem: It is no such key. The message never quotes the input.
        """
        problem = "no unencrypted PEM private key"
        try:
            key = load_pem_private_key(pem.encode() if isinstance(pem, str) else pem, password=None)
            if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
                return cls(key)
            problem = f"a private key of an unsupported kind: {describe_key(key.public_key())}"
        except (ValueError, TypeError, UnsupportedAlgorithm):
            pass  # the library's message could quote the input, so it is dropped with its traceback
        raise InvalidPem(
            "private key cannot be read", where=where, observed=problem, expected="an ECDSA or RSA key"
        ) from None

    @classmethod
    def unseal(cls, pem: bytes, passphrase: str, where: str) -> PrivateKey:
        """Read a PEM key that is encrypted under a passphrase (PKCS#8, or the older form of OpenSSL).

        Raises:
            InvalidPem: It is no such key, or the passphrase is wrong. The message quotes neither.
        """
        problem = "no PEM private key that this passphrase opens"
        try:
            key = load_pem_private_key(pem, password=passphrase.encode())
            if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
                return cls(key)
            problem = f"a private key of an unsupported kind: {describe_key(key.public_key())}"
        except (ValueError, TypeError, UnsupportedAlgorithm):
            pass
        raise InvalidPem(
            "private key cannot be read", where=where, observed=problem, expected="an ECDSA or RSA key"
        ) from None

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
        """The public half."""
        return self._key.public_key()

    @property
    def algorithm(self) -> str:
        """As `describe_key`."""
        return describe_key(self.public_key)

    @property
    def spki_sha256(self) -> str:
        """As `spki_sha256` of the public half."""
        return spki_sha256(self.public_key)

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a certificate with SHA-256, the only hash every supported mesh accepts (healthcheck's crypto rules)."""
        return builder.sign(self._key, hashes.SHA256())

    def sign_request(self, builder: x509.CertificateSigningRequestBuilder) -> x509.CertificateSigningRequest:
        """Sign a request for this key, which proves that whoever asks has it. With SHA-256, as `sign`."""
        return builder.sign(self._key, hashes.SHA256())

    def pem(self) -> bytes:
        """The key itself, unencrypted: the one way out.

        SEC1 (`EC PRIVATE KEY`) or PKCS#1 (`RSA PRIVATE KEY`), the forms that every Linkerd, Istio and Kubernetes
        version reads. Ends with a newline.
        """
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())

    def pkcs8_pem(self) -> bytes:
        """The key itself, unencrypted, as PKCS#8 (`PRIVATE KEY`): what servers in Rust read. Ends with a newline."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sealed_pem(self, passphrase: str) -> bytes:
        """The key encrypted under a passphrase: PKCS#8 (`ENCRYPTED PRIVATE KEY`, RFC 5958), which OpenSSL reads too."""
        sealing = BestAvailableEncryption(passphrase.encode())
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrivateKey) and self.spki_sha256 == other.spki_sha256

    def __hash__(self) -> int:
        return hash(self.spki_sha256)

    def __repr__(self) -> str:
        return f"<PrivateKey {self.algorithm} of public key {self.spki_sha256[:16]}, not shown>"

    def __copy__(self) -> PrivateKey:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> PrivateKey:  # dataclasses.asdict copies deeply
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise InvalidInput(
            "a private key is never pickled",
            where=repr(self),
            observed=f"pickle protocol {protocol}",
            expected="a vault reference in its place",
        )
