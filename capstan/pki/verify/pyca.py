"""The first verifier: cryptography's own (Rust), under its web PKI profile with named relaxations only.

It builds paths through every candidate of a name, checks path length, name constraints, CA bit, validity and unknown
critical extensions. It cannot take a CA as the leaf; issuers go to `path` instead.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509 import verification as v
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from capstan.pki.inspect import Certificate
from capstan.pki.verify.answer import Answer, Purpose, Relaxation, accepted, refused

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

NAME = "cryptography"
_UsageCheck = Callable[[v.Policy, x509.Certificate, x509.ExtendedKeyUsage | None], None]


def judge_leaf(
    leaf: Certificate,
    intermediates: Sequence[Certificate],
    roots: Sequence[Certificate],
    at: datetime,
    *,
    identity: str | None,
    purpose: Purpose,
    relax: frozenset[Relaxation],
) -> Answer:
    """Verify a leaf as server, as client, or as both, as `purpose` says.

    A DNS name or IP address goes to the server verifier; its client verifier takes no name, so a URI is compared by
    the caller (`identity.check`), as is every name a second time.
    """
    builder = (
        v.PolicyBuilder()
        .store(v.Store([root.raw for root in roots]))
        .time(at)
        .extension_policies(ca_policy=_ca_policy(purpose, relax), ee_policy=_leaf_policy(purpose, relax))
    )
    below = [certificate.raw for certificate in intermediates]
    try:
        chain: list[x509.Certificate] = []
        subject = _server_name(identity)
        if purpose.as_server and subject is not None:
            chain = builder.build_server_verifier(subject).verify(leaf.raw, below)
        if purpose.as_client or subject is None:
            chain = builder.build_client_verifier().verify(leaf.raw, below).chain
    except (v.VerificationError, ValueError, x509.UnsupportedGeneralNameType) as e:
        return refused(NAME, str(e))
    return accepted(NAME, tuple(Certificate(certificate) for certificate in chain))


def _server_name(identity: str | None) -> v.Subject | None:
    if identity is None or "://" in identity:
        return None
    try:
        return x509.IPAddress(ipaddress.ip_address(identity))
    except ValueError:
        return x509.DNSName(identity)


def _ca_policy(purpose: Purpose, relax: frozenset[Relaxation]) -> v.ExtensionPolicy:
    policy = v.ExtensionPolicy.webpki_defaults_ca().may_be_present(
        x509.ExtendedKeyUsage, v.Criticality.AGNOSTIC, _usage_check(purpose)
    )
    if Relaxation.BASIC_CONSTRAINTS_NOT_CRITICAL in relax:
        policy = policy.require_present(x509.BasicConstraints, v.Criticality.AGNOSTIC, _is_ca)
    if Relaxation.KEY_USAGE_ABSENT in relax:
        policy = policy.may_be_present(x509.KeyUsage, v.Criticality.AGNOSTIC, _may_sign_certificates)
    if Relaxation.AKI_ABSENT in relax:
        policy = policy.may_be_present(x509.AuthorityKeyIdentifier, v.Criticality.NON_CRITICAL, None)
    return policy


def _leaf_policy(purpose: Purpose, relax: frozenset[Relaxation]) -> v.ExtensionPolicy:
    policy = v.ExtensionPolicy.webpki_defaults_ee().may_be_present(
        x509.ExtendedKeyUsage, v.Criticality.AGNOSTIC, _usage_check(purpose)
    )
    if Relaxation.AKI_ABSENT in relax:
        policy = policy.may_be_present(x509.AuthorityKeyIdentifier, v.Criticality.NON_CRITICAL, None)
    return policy


def _is_ca(_policy: v.Policy, _certificate: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("not a CA")


def _may_sign_certificates(_policy: v.Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("CA key usage lacks keyCertSign")


def _usage_check(purpose: Purpose) -> _UsageCheck:
    def check(_policy: v.Policy, _certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
        if missing := missing_usages(usage, purpose):
            raise ValueError(f"extended key usage lacks {missing}")

    return check


def missing_usages(usage: x509.ExtendedKeyUsage | None, purpose: Purpose) -> str:
    """Usages that `purpose` needs and an EKU extension does not give; an absent one gives all (RFC 5280 4.2.1.12)."""
    if usage is None or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage:
        return ""
    wanted = [
        ("serverAuth", ExtendedKeyUsageOID.SERVER_AUTH, purpose.as_server),
        ("clientAuth", ExtendedKeyUsageOID.CLIENT_AUTH, purpose.as_client),
    ]
    return ", ".join(name for name, oid, needed in wanted if needed and oid not in usage)


KNOWN_CRITICAL = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.NAME_CONSTRAINTS,
    }
)
"""Critical extensions somebody here enforces; any other one means refusal (RFC 5280 section 4.2)."""
