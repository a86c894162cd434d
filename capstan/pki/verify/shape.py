"""Rules that neither verifier is sure to apply, checked on the chains they found."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from capstan.pki.verify.answer import Purpose, Relaxation
from capstan.pki.verify.pyca import missing_usages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.pki.inspect import Certificate

_CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})
_MIN_RSA_BITS = 2048


def identity_problem(leaf: Certificate, identity: str) -> str:
    """Why `leaf` does not carry `identity`; empty if it does.

    A mesh identity is one exact name: no wildcards, no common name, DNS names without regard to case (RFC 4343), a
    URI byte for byte (SPIFFE), an IP address by value.
    """
    if "://" in identity:
        present: tuple[str, ...] = leaf.uris
        found = identity in present
    else:
        try:
            address = ipaddress.ip_address(identity)
        except ValueError:
            present = leaf.dns_names
            found = identity.lower() in (name.lower() for name in present)
        else:
            names = leaf.extension(x509.SubjectAlternativeName)
            addresses = names.value.get_values_for_type(x509.IPAddress) if names else []
            present = tuple(str(each) for each in addresses)
            found = address in addresses
    return "" if found else f"carries {', '.join(present) or 'no such name'}"


def problems(chain: tuple[Certificate, ...], purpose: Purpose, relax: frozenset[Relaxation]) -> Iterator[str]:
    """Everything wrong with a chain, its target first and its root last."""
    for index, certificate in enumerate(chain):
        label = certificate.common_name or certificate.identity or certificate.fingerprint[:16]
        for problem in _of_one(certificate, purpose):
            yield f"{label}: {problem}"
        if certificate.serial_number <= 0 and index < len(chain) - 1:  # a root is known by its key, not its number
            yield f"{label}: serial number is not positive (RFC 5280 section 4.1.2.2)"
        if index or certificate.is_ca:
            for problem in _of_a_ca(certificate, chain[:index], relax):
                yield f"{label}: {problem}"
        needs_aki = index < len(chain) - 1 or not certificate.self_issued
        if needs_aki and certificate.aki is None and Relaxation.AKI_ABSENT not in relax:
            yield f"{label}: authority key identifier is absent (RFC 5280 section 4.2.1.1)"


def _of_one(certificate: Certificate, purpose: Purpose) -> Iterator[str]:
    key = certificate.public_key
    strong = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES
    if isinstance(key, rsa.RSAPublicKey):
        strong = key.key_size >= _MIN_RSA_BITS and key.key_size % 8 == 0
    if not strong:
        yield f"key {certificate.key_algorithm} is not supported (ECDSA P-256 to P-521, RSA from {_MIN_RSA_BITS} bits)"
    usage = certificate.extension(x509.ExtendedKeyUsage)
    if missing := missing_usages(usage.value if usage else None, purpose):
        yield f"extended key usage lacks {missing}"
    for kind in (x509.NameConstraints, x509.PolicyConstraints):
        extension = certificate.extension(kind)
        if extension is not None and not extension.critical:
            yield f"{kind.__name__} is not critical (RFC 5280 sections 4.2.1.10 and 4.2.1.11)"


def _of_a_ca(certificate: Certificate, below: tuple[Certificate, ...], relax: frozenset[Relaxation]) -> Iterator[str]:
    if certificate.ski is None and Relaxation.SKI_ABSENT not in relax:
        yield "subject key identifier is absent (RFC 5280 section 4.2.1.2)"
    constraints = certificate.extension(x509.BasicConstraints)
    critical = constraints is not None and constraints.critical
    if not critical and Relaxation.BASIC_CONSTRAINTS_NOT_CRITICAL not in relax:
        yield "basic constraints are not critical (RFC 5280 section 4.2.1.9)"
    if certificate.extension(x509.KeyUsage) is None and Relaxation.KEY_USAGE_ABSENT not in relax:
        yield "key usage is absent (RFC 5280 section 4.2.1.3)"
    authority = certificate.extension(x509.AuthorityKeyIdentifier)
    if certificate.self_signed and certificate.ski and certificate.aki and certificate.aki != certificate.ski:
        yield "authority key identifier of a self-signed certificate names another key"
    if authority is not None and authority.value.authority_cert_serial_number is not None and not relax:
        yield "authority key identifier names issuer and serial number, which ties it to one certificate"
    # A leaf will stand below the target, so a CA as target counts as an intermediate here.
    cas_below = sum(each.is_ca and not each.self_issued for each in below)
    if certificate.path_length is not None and cas_below > certificate.path_length:
        yield f"path length {certificate.path_length} leaves no room for {cas_below} CAs and a leaf below"
