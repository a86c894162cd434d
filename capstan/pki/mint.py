"""New roots, issuers and probe leaves.

Every CA made here has: critical BasicConstraints with a path length, critical KeyUsage (keyCertSign, cRLSign), an SKI,
an AKI (roots too, pointing to themselves), no ExtendedKeyUsage (Go verifies issuers for serverAuth, and a CA without
EKU is good for everything), a random serial, SHA-256. Source: RFC 5280 section 4.2; Linkerd pkg/healthcheck.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NoReturn, SupportsIndex

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from capstan.errors import InvalidCertificate, InvalidInput
from capstan.pki.clock import require_aware
from capstan.pki.inspect import Certificate
from capstan.pki.keys import KeyAlgorithm, PrivateKey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

# Kubernetes calls a node skewed from 5 min 10 s on (Linkerd's check `no clock skew detected`): a certificate made
# now must already be valid on the slowest clock that is still called healthy.
BACKDATE = timedelta(minutes=6)
_MAX_COMMON_NAME = 64  # ub-common-name, RFC 5280 appendix A.1


@dataclass(frozen=True, slots=True)
class Minted:
    """A certificate with its private key. Its text forms never show the key; it cannot be pickled."""

    certificate: Certificate
    key: PrivateKey

    def __post_init__(self) -> None:
        if not self.certificate.key_matches(self.key):
            raise InvalidCertificate(
                "private key does not belong to the certificate",
                where=f"certificate {self.certificate.fingerprint}",
                observed=f"key of public key {self.key.spki_sha256[:16]}",
                expected=f"key of public key {self.certificate.spki_sha256[:16]}",
            )

    def __deepcopy__(self, memo: dict[int, object]) -> Minted:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        self.key.__reduce_ex__(protocol)

    @classmethod
    def parse(cls, certificate_pem: bytes | str, key_pem: bytes | str, where: str) -> Minted:
        """Read a pair back, for example from a vault.

        Raises:
            InvalidPem: One of them is no clean PEM.
            InvalidCertificate: They do not belong together.
        """
        return cls(Certificate.from_pem(certificate_pem, where), PrivateKey.parse(key_pem, where))


@dataclass(frozen=True, slots=True)
class RootPolicy:
    """How a new root is to look.

    Attributes:
        common_name: CN without the generation, which is added as ` G<n>`: two roots of one name break OpenSSL's
            path building during the overlap, so no two generations may share a name.
        validity: From now to notAfter.
        path_length: CAs below the root. Two leaves room for one cross-signed root above the issuer; a root of path
            length 1 can never be cross-signed over.
        backdate: From notBefore to now.
    """

    common_name: str = "root.linkerd.cluster.local"
    validity: timedelta = timedelta(days=3650)
    algorithm: KeyAlgorithm = KeyAlgorithm.P256
    path_length: int | None = 2
    backdate: timedelta = BACKDATE

    def name(self, generation: int) -> str:
        """The common name of one generation: `root.linkerd.cluster.local G2`.

        Raises:
            InvalidInput: The generation is below 1, or the name is longer than X.509 allows.
        """
        if generation < 1:
            raise InvalidInput("a root generation counts from 1", observed=str(generation))
        name = f"{self.common_name} G{generation}"
        if not self.common_name or len(name) > _MAX_COMMON_NAME:
            raise InvalidInput(
                "common name cannot be used",
                observed=f"{name!r}, {len(name)} characters",
                expected=f"1 to {_MAX_COMMON_NAME} characters (RFC 5280, ub-common-name)",
            )
        return name

    def next_generation(self, roots: Iterable[Certificate]) -> int:
        """One more than the highest generation in use; a root of another name, or without number, counts as the first.

        Args:
            roots: Every root known, the ones no longer trusted included.
        """
        numbered = re.compile(re.escape(self.common_name) + r" G([1-9][0-9]{0,8})")
        found = [int(match[1]) if (match := numbered.fullmatch(root.common_name)) else 1 for root in roots]
        return max(found, default=0) + 1


@dataclass(frozen=True, slots=True)
class IssuerPolicy:
    """How a new issuer is to look.

    Attributes:
        common_name: Linkerd expects `identity.<linkerd namespace>.<trust domain>`, without a generation.
        validity: From now to notAfter; never past the root's end.
        path_length: 0: an issuer signs leaves only.
        backdate: From notBefore to now.
    """

    common_name: str = "identity.linkerd.cluster.local"
    validity: timedelta = timedelta(days=365)
    algorithm: KeyAlgorithm = KeyAlgorithm.P256
    path_length: int | None = 0
    backdate: timedelta = BACKDATE


def mint_root(
    policy: RootPolicy, generation: int, now: datetime, *, key: PrivateKey | None = None, serial: int | None = None
) -> Minted:
    """Make a self-signed root.

    Args:
        generation: From `RootPolicy.next_generation`.
        now: Aware time of minting.
        key: The key to certify; None makes a new one.
        serial: None draws a random one of 159 bits (RFC 5280 section 4.1.2.2 allows 20 octets).

    Raises:
        InvalidInput: The policy cannot be met.
    """
    key = key or PrivateKey.generate(policy.algorithm)
    name = _common_name(policy.name(generation))
    start, end = _validity(now, policy.validity, policy.backdate)
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key)
    builder = _builder(name, name, key.public_key, start, end, serial)
    builder = _as_ca(builder, policy.path_length, ski, ski)
    return Minted(Certificate(key.sign(builder)), key)


def mint_issuer(
    policy: IssuerPolicy, root: Minted, now: datetime, *, key: PrivateKey | None = None, serial: int | None = None
) -> Minted:
    """Make an issuing CA under `root`.

    Raises:
        InvalidInput: The policy cannot be met; above all when the issuer would outlive its root.
        InvalidCertificate: `root` cannot issue it (no CA, no room for the path length).
    """
    key = key or PrivateKey.generate(policy.algorithm)
    subject = _common_name(policy.common_name)
    return Minted(certify_issuer(policy, subject, key.public_key, root, now, serial=serial), key)


def certify_issuer(
    policy: IssuerPolicy,
    subject: x509.Name,
    public_key: CertificatePublicKeyTypes,
    root: Minted,
    now: datetime,
    *,
    serial: int | None = None,
) -> Certificate:
    """Certify a key that stays where it was made as an issuing CA under `root`.

    Args:
        policy: Validity, path length and backdate count; name and algorithm are the request's.
        subject: Taken as it is, ASN.1 string types included.

    Raises:
        InvalidInput, InvalidCertificate: As `mint_issuer`.
    """
    parent = root.certificate
    _may_issue(parent, policy.path_length)
    start, end = _validity(now, policy.validity, policy.backdate)
    _within(parent, end)
    ski = x509.SubjectKeyIdentifier.from_public_key(public_key)
    builder = _builder(subject, parent.raw.subject, public_key, max(start, parent.not_before), end, serial)
    return Certificate(root.key.sign(_as_ca(builder, policy.path_length, ski, _identifier_of(parent))))


def mint_leaf(
    issuer: Minted,
    name: str,
    now: datetime,
    *,
    validity: timedelta = timedelta(minutes=10),
    backdate: timedelta = BACKDATE,
    key: PrivateKey | None = None,
    serial: int | None = None,
) -> Minted:
    """Make a short-lived leaf of the shape a mesh's CA issues, for the probe that must be refused (or accepted).

    Args:
        name: A DNS name (Linkerd), or a SPIFFE id (Istio).

    Raises:
        InvalidInput: It would outlive its issuer, or the name is empty.
    """
    parent = issuer.certificate
    _may_issue(parent, None)
    if not name:
        raise InvalidInput("a leaf needs a name")
    key = key or PrivateKey.generate(KeyAlgorithm.P256)
    start, end = _validity(now, validity, backdate)
    _within(parent, end)
    # A SPIFFE id, or a name above 64 characters (long service accounts), stands in the SAN alone, which then is
    # critical (RFC 5280 section 4.2.1.6).
    uri = name.startswith("spiffe://")
    alone = uri or len(name) > _MAX_COMMON_NAME
    subject = x509.Name([]) if alone else _common_name(name)
    builder = _builder(subject, parent.raw.subject, key.public_key, max(start, parent.not_before), end, serial)
    builder = (
        builder.add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name) if uri else x509.DNSName(name)]),
            critical=alone,
        )
        .add_extension(_key_usage(digital_signature=True, key_encipherment=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(_identifier_of(parent)), critical=False
        )
    )
    return Minted(Certificate(issuer.key.sign(builder)), key)


def _common_name(text: str) -> x509.Name:
    if not 1 <= len(text) <= _MAX_COMMON_NAME:
        raise InvalidInput(
            "common name cannot be used", observed=repr(text), expected=f"1 to {_MAX_COMMON_NAME} characters"
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _validity(now: datetime, validity: timedelta, backdate: timedelta) -> tuple[datetime, datetime]:
    if validity < timedelta(seconds=1) or backdate < timedelta(0):
        raise InvalidInput("validity must be positive", observed=f"{validity} after, {backdate} before now")
    moment = require_aware(now).replace(microsecond=0)  # X.509 counts whole seconds
    return moment - backdate, moment + validity


def _within(parent: Certificate, end: datetime) -> None:
    if end > parent.not_after:
        raise InvalidInput(
            "a certificate may not outlive its issuer",
            where=f"{parent.common_name} {parent.fingerprint[:16]}",
            observed=f"wanted until {end:%F %T}Z",
            expected=f"at most {parent.not_after:%F %T}Z",
            next_command="shorten the validity in the policy, or rotate the CA above first",
        )


def _may_issue(parent: Certificate, path_length: int | None) -> None:
    room = parent.path_length
    needed = 0 if path_length is None else path_length + 1
    if not parent.is_ca or (room is not None and room < needed):
        raise InvalidCertificate(
            "this CA cannot issue that certificate",
            where=f"{parent.common_name} {parent.fingerprint[:16]}",
            observed=f"CA: {parent.is_ca}, path length: {room}",
            expected=f"a CA with path length of at least {needed}",
        )


def _identifier_of(parent: Certificate) -> x509.SubjectKeyIdentifier:
    """The parent's SKI as it stands in the parent; computed only where the parent has none."""
    present = parent.extension(x509.SubjectKeyIdentifier)
    return present.value if present else x509.SubjectKeyIdentifier.from_public_key(parent.raw.public_key())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: CertificatePublicKeyTypes,
    start: datetime,
    end: datetime,
    serial: int | None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial if serial is not None else x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _as_ca(
    builder: x509.CertificateBuilder,
    path_length: int | None,
    ski: x509.SubjectKeyIdentifier,
    issuer_ski: x509.SubjectKeyIdentifier,
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(ski, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_ski), critical=False)
    )


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
