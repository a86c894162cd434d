"""Certificates for the lab's own trust systems: roots, issuers and serving certificates.

Shaped as `step certificate create --profile root-ca | intermediate-ca` makes them (the tool of Linkerd's manual
procedure): P-256, SHA-256, random serials, SKI always, AKI on everything that is not self-signed. Every function takes
`now`, so that a test decides what time it is.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROOT_NAME = "root.linkerd.cluster.local"
ISSUER_NAME = "identity.linkerd.cluster.local"
BACKDATE = timedelta(minutes=1)


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> str:
        """The certificate in PEM, ending in one newline."""
        return to_pem(self.certificate)

    @property
    def key_pem(self) -> str:
        """The private key in PEM, SEC 1 ("EC PRIVATE KEY"), as `step` writes it."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        ).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER, lower-case hex."""
        return fingerprint(self.certificate)


def to_pem(certificate: x509.Certificate) -> str:
    """The certificate in PEM, ending in one newline."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate's DER, lower-case hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def subject_key(certificate: x509.Certificate) -> bytes:
    """The subject key identifier, b"" without one."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return b""


def authority_key(certificate: x509.Certificate) -> bytes:
    """The authority key identifier, b"" without one."""
    try:
        return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier or b""
    except x509.ExtensionNotFound:
        return b""


def mint_root(
    *, now: datetime, name: str = ROOT_NAME, lifetime: timedelta = timedelta(days=3650), path_length: int | None = 1
) -> KeyPair:
    """A new self-signed root. `step`'s root-ca profile sets a path length of 1."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = _authority(subject, subject, key, now, lifetime, path_length)
    return KeyPair(builder.sign(key, hashes.SHA256()), key)


def mint_issuer(
    root: KeyPair, *, now: datetime, name: str = ISSUER_NAME, lifetime: timedelta = timedelta(days=365)
) -> KeyPair:
    """A new issuing CA under `root`, with path length 0."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _authority(_name(name), root.certificate.subject, key, now, lifetime, 0)
    builder = builder.add_extension(_authority_key_identifier(root.certificate), critical=False)
    return KeyPair(builder.sign(root.key, hashes.SHA256()), key)


def mint_self_signed_issuer(
    *, now: datetime, name: str = ISSUER_NAME, lifetime: timedelta = timedelta(hours=8760, seconds=20)
) -> KeyPair:
    """What `linkerd install` makes where it is given no certificates: one CA that is both trust anchor and issuer.

    Serial 1, no path length, a DNS name, and the extended key usages of a leaf (linkerd2 pkg/tls, CreateRootCA).
    """
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _authority(_name(name), _name(name), key, now, lifetime, None, serial=1)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return KeyPair(builder.sign(key, hashes.SHA256()), key)


def mint_serving(names: list[str], *, now: datetime, lifetime: timedelta = timedelta(days=365)) -> KeyPair:
    """A self-signed serving certificate for DNS names and addresses, as a Helm chart's `genSelfSignedCert` makes it.

    It is its own CA: the caBundle of the webhook that it serves is the certificate itself.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(names[0])
    builder = (
        _builder(subject, subject, key, now, lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True, key_cert_sign=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
    )
    return KeyPair(builder.sign(key, hashes.SHA256()), key)


def _authority(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    lifetime: timedelta,
    path_length: int | None,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    return (
        _builder(subject, issuer, key, now, lifetime, serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    lifetime: timedelta,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    now = now.replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + lifetime)
    )


def _authority_key_identifier(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
