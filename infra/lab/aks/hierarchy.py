"""Offline-made roots and intermediates, as the AKS page's readers make them with the Makefile of istio/istio's
tools/certs, and the four texts that go into Key Vault (or into Secret `cacerts`) of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.lab.pki import BACKDATE, KeyPair

ROOT_LIFE = timedelta(days=3650)
INTERMEDIATE_LIFE = timedelta(days=730)
FILES = ("root-cert.pem", "ca-cert.pem", "ca-key.pem", "cert-chain.pem")


@dataclass(frozen=True)
class Hierarchy:
    """A root and an intermediate under it."""

    root: KeyPair
    intermediate: KeyPair

    def texts(self, *, roots: str | None = None) -> dict[str, str]:
        """File name -> text: the set that istiod reads.

        Args:
            roots: root-cert.pem, where it holds more (or others) than this root.
        """
        root, intermediate = self.root.certificate_pem, self.intermediate.certificate_pem
        return {
            "root-cert.pem": root if roots is None else roots,
            "ca-cert.pem": intermediate,
            "ca-key.pem": self.intermediate.key_pem,
            "cert-chain.pem": intermediate + root,
        }


def mint(letter: str, *, now: datetime, identifiers: bool = True, root_name: str = "") -> Hierarchy:
    """A new root `CN=Root LETTER,O=Istio` and an intermediate of it.

    Args:
        identifiers: Whether the certificates carry SKI and AKI; OpenSSL's `req -x509` without an extension section
            makes them without.
        root_name: The root's common name, for two roots of one name.
    """
    root = mint_root(root_name or f"Root {letter}", now=now, identifiers=identifiers)
    return Hierarchy(root, mint_intermediate(root, f"{letter}1", now=now, identifiers=identifiers))


def mint_root(common_name: str, *, now: datetime, identifiers: bool = True) -> KeyPair:
    """A new self-signed root of organisation Istio."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Istio"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
    return _signed(name, key, _Signer(name, key), now, ROOT_LIFE, identifiers=identifiers)


def mint_intermediate(root: KeyPair, number: str, *, now: datetime, identifiers: bool = True) -> KeyPair:
    """A new intermediate `CN=Intermediate CA - NUMBER,O=Istio,L=cluster-NUMBER`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.LOCALITY_NAME, f"cluster-{number}"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Istio"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Intermediate CA - {number}"),
        ]
    )
    issuer = _Signer(root.certificate.subject, root.key)
    return _signed(name, key, issuer, now, INTERMEDIATE_LIFE, identifiers=identifiers)


@dataclass(frozen=True)
class _Signer:
    """Who signs: a name and its key."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey


def _signed(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: _Signer,
    now: datetime,
    life: timedelta,
    *,
    identifiers: bool,
) -> KeyPair:
    start = now.replace(microsecond=0) - BACKDATE
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + BACKDATE + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_CA_USAGE, critical=True)
    )
    if identifiers:
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    return KeyPair(builder.sign(issuer.key, hashes.SHA256()), key)


_CA_USAGE = x509.KeyUsage(
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
