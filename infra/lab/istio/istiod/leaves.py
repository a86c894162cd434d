"""Certificates that istiod makes: its own root, leaves for workloads, its serving certificate.

Shapes and order of extensions are those of the recorded ones (traces 01, 03 and 04).
"""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from datetime import datetime

    from infra.lab.istio.istiod.bundle import Bundle
    from infra.lab.linkerd.gopem import PrivateKey

CLOCK_SKEW = timedelta(minutes=2)
RSA_BITS = 2048
_PRINTABLE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?")
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
MAX_COMMON_NAME = 64


class SignerExpiredError(ValueError):
    """The signer has expired; the text is istiod's (versions that clamp)."""


def usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """keyCertSign for a root; digitalSignature and keyEncipherment for everything else."""
    leaf = not signs_certificates
    return x509.KeyUsage(leaf, False, leaf, False, False, signs_certificates, False, False, False)


def new_key(like: PrivateKey | None = None, bits: int = RSA_BITS, *, p384: bool = True) -> PrivateKey:
    """RSA, unless the CA that will sign it has an elliptic curve: then P-256, or P-384 if the CA has that.

    Args:
        p384: Whether this version knows P-384 (from 1.18 on).
    """
    if isinstance(like, ec.EllipticCurvePrivateKey):
        curve = ec.SECP384R1() if p384 and isinstance(like.curve, ec.SECP384R1) else ec.SECP256R1()
        return ec.generate_private_key(curve)
    return rsa.generate_private_key(65537, bits)


def key_pem(key: PrivateKey) -> bytes:
    """PKCS 1 ("RSA PRIVATE KEY") or SEC 1 ("EC PRIVATE KEY")."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def self_signed_root(key: PrivateKey, organization: str, lifetime: timedelta, now: datetime) -> x509.Certificate:
    """istiod's own root: O=<organization>, valid from now, no path length, SKI and no AKI."""
    kind = _ASN1Type.PrintableString if _PRINTABLE.issuperset(organization) else _ASN1Type.UTF8String
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization, kind)])
    begin = now.replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(_serial())
        .not_valid_before(begin)
        .not_valid_after(begin + lifetime)
        .add_extension(usage(signs_certificates=True), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _digest(key))
    )


def leaf(
    bundle: Bundle,
    public: PublicKey,
    names: list[x509.GeneralName],
    lifetime: timedelta,
    *,
    now: datetime,
    clamp: bool = False,
    skew: timedelta = CLOCK_SKEW,
    common_name: str = "",
) -> x509.Certificate:
    """A certificate valid from `skew` ago (two minutes for istiod, none for Citadel).

    Args:
        common_name: Its subject ("dual use"); usually none.

    Raises:
        SignerExpiredError: With `clamp`, if the signer has expired.
    """
    signer, begin = bundle.signer, now.replace(microsecond=0)
    end = begin + lifetime
    if clamp:
        limit = signer.not_valid_after_utc
        if now >= limit:
            text = limit.strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
            raise SignerExpiredError(f"signing certificate has expired at {text}")
        end = min(end, limit)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(common_name))
        .issuer_name(signer.subject)
        .public_key(public)
        .serial_number(_serial())
        .not_valid_before(begin - skew)
        .not_valid_after(end)
        .add_extension(usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    try:
        ski = signer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)
        builder = builder.add_extension(identifier, critical=False)
    except x509.ExtensionNotFound:
        pass  # Go adds no AKI then either: facts 0.3
    # Critical whether there is a subject or not (BuildSANExtension).
    return builder.add_extension(x509.SubjectAlternativeName(names), critical=True).sign(
        bundle.key, _digest(bundle.key)
    )


def pem(certificate: x509.Certificate) -> bytes:
    """PEM, ending in one newline."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def _serial() -> int:
    return secrets.randbits(128) | 1


def _subject(common_name: str) -> x509.Name:
    if not common_name:
        return x509.Name([])
    kind = _ASN1Type.PrintableString if _PRINTABLE.issuperset(common_name) else _ASN1Type.UTF8String
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name, kind)])


def _digest(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512:
    """Go's default: SHA-256, SHA-384 for P-384, SHA-512 for P-521."""
    curve = key.curve if isinstance(key, ec.EllipticCurvePrivateKey) else None
    if isinstance(curve, ec.SECP521R1):
        return hashes.SHA512()
    return hashes.SHA384() if isinstance(curve, ec.SECP384R1) else hashes.SHA256()
