"""Serving certificates of webhooks: self-signed, for one DNS name, as Linkerd's charts render them.

The chart's `genSelfSignedCert` (Sprig) makes an end-entity certificate that is its own anchor; Go accepts a server's
certificate that is itself among the roots, CA or not (crypto/x509 Verify). So no key exists that could sign another.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from capstan.errors import InvalidInput
from capstan.pki.clock import require_aware
from capstan.pki.inspect import Certificate
from capstan.pki.keys import KeyAlgorithm, PrivateKey
from capstan.pki.mint import BACKDATE, Minted

if TYPE_CHECKING:
    from datetime import datetime

VALIDITY: Final = timedelta(days=365)
"""As the charts have it (`genSelfSignedCert $host (list) (list $host) 365`)."""
_MAX_COMMON_NAME: Final = 64  # RFC 5280, ub-common-name


def mint_serving(
    dns_name: str, now: datetime, *, validity: timedelta = VALIDITY, backdate: timedelta = BACKDATE
) -> Minted:
    """Make a self-signed serving certificate with a P-256 key.

    P-256 in PKCS 8 is what every server of Linkerd reads: those in Go, and the policy-validator in Rust.

    Args:
        dns_name: `<service>.<namespace>.svc`; the common name too, where it is short enough.
        now: Aware time of minting.

    Raises:
        InvalidInput: The name is empty, or the validity is not positive.
    """
    if not dns_name or validity < timedelta(seconds=1) or backdate < timedelta(0):
        raise InvalidInput(
            "this serving certificate cannot be made", observed=f"name {dns_name!r}, {validity} from now",
            expected="a DNS name and a positive validity",
        )  # fmt: skip
    key = PrivateKey.generate(KeyAlgorithm.P256)
    moment = require_aware(now).replace(microsecond=0)  # X.509 counts whole seconds
    short = len(dns_name) <= _MAX_COMMON_NAME
    # A self-signed certificate needs an issuer name (RFC 5280 section 4.1.2.4): a name too long is cut.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, dns_name if short else dns_name[:_MAX_COMMON_NAME])])
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key)
    usage = x509.KeyUsage(
        digital_signature=True, key_encipherment=True, content_commitment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - backdate)
        .not_valid_after(moment + validity)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(ski, critical=False)
        # Old and new have the same subject: the identifier tells a verifier which of the two it is to try.
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns_name)]), critical=False)
    )
    return Minted(Certificate(key.sign(builder)), key)
