"""Certificates of chosen shapes, made by hand so that the tests do not lean on the minting they judge."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from capstan.pki.inspect import Certificate

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass
class Pair:
    """A certificate and its key."""

    certificate: Certificate
    key: Key = field(repr=False)


def make(
    name: str,
    parent: Pair | None = None,
    *,
    ca: bool = True,
    path_length: int | None = None,
    key: Key | None = None,
    start: dt.datetime = NOW - DAY,
    end: dt.datetime = NOW + 90 * DAY,
    ski: bool = True,
    aki: bool = True,
    key_usage: bool = True,
    cert_sign: bool = True,
    constraints_critical: bool = True,
    eku: Sequence[x509.ObjectIdentifier] | None = None,
    san: Sequence[x509.GeneralName] = (),
    hash_algorithm: hashes.HashAlgorithm | None = None,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    serial: int | None = None,
) -> Pair:
    """One certificate; everything a test may want to get wrong is an argument."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    issuer = parent.certificate.raw.subject if parent else subject
    signer = parent.key if parent else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )
    if ca:
        constraints = x509.BasicConstraints(ca=True, path_length=path_length)
        builder = builder.add_extension(constraints, critical=constraints_critical)
    if key_usage:
        builder = builder.add_extension(
            x509.KeyUsage(
                digital_signature=not ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=ca and cert_sign,
                crl_sign=ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    if ski and ca:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    if aki:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(identifier, critical=False)
    if eku is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(eku)), critical=False)
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(san)), critical=not name)
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical=critical)
    return Pair(Certificate(builder.sign(signer, hash_algorithm or hashes.SHA256())), key)


def dns_leaf(parent: Pair, name: str = "web.ns.serviceaccount.identity.linkerd.cluster.local", **shape: object) -> Pair:
    """A leaf as linkerd-identity issues them: name in subject and SAN, both usages."""
    shape = {"eku": (SERVER, CLIENT), "end": NOW + DAY, **shape}
    return make(name, parent, ca=False, san=[x509.DNSName(name)], **shape)  # type: ignore[arg-type]  # tests pass kwargs through
