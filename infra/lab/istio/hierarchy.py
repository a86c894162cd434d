"""CA hierarchies for the lab's Istio: an offline root and intermediates under it.

Names are those of Istio's own tools/certs (`O=Istio, CN=Root CA` and `CN=Intermediate CA`), unless others are asked
for. `identifiers=False` leaves out the subject and authority key identifiers: two such roots with one name cannot be
told apart when a chain is built, which is how many private hierarchies were made.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.lab.pki import BACKDATE, KeyPair

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

ORGANIZATION = "Istio"
ROOT_NAME = "Root CA"
INTERMEDIATE_NAME = "Intermediate CA"


def mint_root(
    *,
    now: datetime,
    common_name: str = ROOT_NAME,
    lifetime: timedelta = timedelta(days=3650),
    identifiers: bool = True,
) -> KeyPair:
    """A new self-signed root."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(common_name)
    return _certificate(subject, key, now, lifetime, identifiers=identifiers, signer=None)


def mint_intermediate(
    root: KeyPair,
    *,
    now: datetime,
    common_name: str = INTERMEDIATE_NAME,
    lifetime: timedelta = timedelta(days=730),
    identifiers: bool = True,
) -> KeyPair:
    """A new signing CA under `root`, with path length 0."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _certificate(_name(common_name), key, now, lifetime, identifiers=identifiers, signer=root)


def load(certificate: Path, key: Path) -> KeyPair:
    """A key pair from its two PEM files.

    Raises:
        OSError, ValueError, TypeError: One cannot be read, or is no certificate, or no elliptic key.
    """
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{key} holds no elliptic key")
    return KeyPair(x509.load_pem_x509_certificate(certificate.read_bytes()), private)


def _certificate(
    subject: x509.Name,
    key: EllipticCurvePrivateKey,
    now: datetime,
    lifetime: timedelta,
    *,
    identifiers: bool,
    signer: KeyPair | None,
) -> KeyPair:
    now = now.replace(microsecond=0)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if signer is None else signer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None if signer is None else 0), critical=True)
        .add_extension(usage, critical=True)
    )
    if identifiers:
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        above = own if signer is None else x509.SubjectKeyIdentifier.from_public_key(signer.key.public_key())
        builder = builder.add_extension(own, critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above)
        builder = builder.add_extension(authority, critical=False)
    return KeyPair(builder.sign(key if signer is None else signer.key, hashes.SHA256()), key)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
