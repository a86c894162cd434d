"""The endpoint's own CA and server certificate."""

from __future__ import annotations

import datetime
import ipaddress
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path


def write_certificates(directory: Path, host: str) -> tuple[Path, Path, Path]:
    """Make a CA and a certificate for the address `host`; return the files of CA, server chain and server key.

    Those that are there and good for another day are kept: clients of an earlier process trust them.
    """
    files = directory / "ca.crt", directory / "server.crt", directory / "server.key"
    now = datetime.datetime.now(datetime.UTC)
    if files[1].exists():
        present = x509.load_pem_x509_certificate(files[1].read_bytes())
        names = present.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        fits = ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
        if fits and present.not_valid_after_utc > now + datetime.timedelta(days=1):
            return files
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab key vault CA")])
    ca = _signed(ca_name, ca_name, ca_key, ca_key, now, [(x509.BasicConstraints(ca=True, path_length=0), True)])
    server = _signed(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab key vault")]),
        ca_name,
        key,
        ca_key,
        now,
        [
            (x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), False),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        ],
    )
    # The certificate last: whoever is killed before has made nothing that would be kept.
    files[2].touch(mode=0o600)
    files[2].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files[0].write_bytes(ca.public_bytes(Encoding.PEM))
    files[1].write_bytes(server.public_bytes(Encoding.PEM))
    return files


def _signed(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
    extensions: list[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, hashes.SHA256())
