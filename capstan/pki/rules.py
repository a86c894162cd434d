"""What a root, an issuer and a bundle must be for the mesh to work with them, and to go on working.

The crypto table is Linkerd's own (pkg/healthcheck, checks l5d-identity-trustAnchors-use-supported-crypto and
l5d-identity-issuer-cert-uses-supported-crypto), so what passes here passes `linkerd check`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import combinations
from typing import TYPE_CHECKING

from cryptography import x509

from capstan.errors import InvalidCertificate
from capstan.pki.clock import require_aware
from capstan.pki.keys import KeyAlgorithm
from capstan.pki.verify.answer import Purpose
from capstan.pki.verify.pyca import missing_usages

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from capstan.pki.inspect import Certificate

EXPIRES_SOON = timedelta(days=60)


class Level(StrEnum):
    """How bad a finding is."""

    WARNING = "warning"
    FATAL = "fatal"


@dataclass(frozen=True, slots=True)
class RuleFinding:
    """A rule that a certificate breaks.

    Attributes:
        rule: The rule's name, as Linkerd's checks call it where they have it.
        subject: The certificate, by common name and fingerprint.
    """

    level: Level
    rule: str
    subject: str
    observed: str
    expected: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.subject}: {self.observed} (expected {self.expected})"


def root_findings(root: Certificate, now: datetime) -> tuple[RuleFinding, ...]:
    """Rules of a trust anchor.

    ECDSA P-256 signed with ECDSA-SHA256 or SHA256-RSA, or RSA of exactly 2048 or 4096 bits signed with SHA256-RSA;
    valid now and for 60 days; a CA that may have an issuer below it.
    """
    rsa_key = root.key_algorithm in (KeyAlgorithm.RSA2048, KeyAlgorithm.RSA4096)
    by_hash = root.signature_algorithm
    supported = (rsa_key and by_hash == "SHA256-RSA") or (
        root.key_algorithm == KeyAlgorithm.P256 and by_hash in ("ECDSA-SHA256", "SHA256-RSA")
    )
    found = []
    if not supported:
        expected = "ECDSA P-256 or RSA 2048/4096, signed with SHA-256"
        found.append(_fatal("trust anchors are using supported crypto algorithm", root, root.algorithm, expected))
    found += _validity(root, now, "trust anchors")
    found += _ca(root)
    if root.is_ca and root.path_length == 0:
        found.append(_fatal("root has room for an issuer", root, "path length 0", "path length 1 or more, or none"))
    if not root.self_signed:
        message = "not self-signed: its own issuer is not part of the trust"
        found.append(_warning("root is self-signed", root, message, "a self-signed root"))
    if root.ski is None:
        found.append(_warning("root has a subject key identifier", root, "no SKI", "SKI (RFC 5280 section 4.2.1.2)"))
    return tuple(found)


def issuer_findings(issuer: Certificate, now: datetime) -> tuple[RuleFinding, ...]:
    """Rules of an issuer: ECDSA P-256 and nothing else (an RSA issuer loads, then every Certify fails), a valid CA.

    Whether it chains to the roots is `verify_issuer`'s to say.
    """
    found = []
    if issuer.key_algorithm != KeyAlgorithm.P256:
        rule = "issuer cert is using supported crypto algorithm"
        found.append(_fatal(rule, issuer, issuer.key_algorithm, KeyAlgorithm.P256.value))
    found += _validity(issuer, now, "issuer cert")
    found += _ca(issuer)
    if issuer.ski is None:
        message = "no SKI: its leaves cannot point to it"
        found.append(_warning("issuer has a subject key identifier", issuer, message, "SKI"))
    return tuple(found)


def bundle_findings(roots: Iterable[Certificate], children: Sequence[Certificate] = ()) -> tuple[RuleFinding, ...]:
    """Rules of roots that stand side by side.

    OpenSSL picks a root by name, then by key identifier. Two roots of one name and different keys therefore break
    each other's chains, depending on their order, unless both have distinct SKIs and everything below them has an AKI.

    Args:
        children: Issuers and leaves known to stand directly below the roots.
    """
    found = []
    for first, second in combinations(dict.fromkeys(roots), 2):
        if first.raw.subject != second.raw.subject or first.spki_sha256 == second.spki_sha256:
            continue
        rule = "roots of one name are told apart by key identifiers"
        if first.ski is None or second.ski is None or first.ski == second.ski:
            observed = f"same subject as {second.fingerprint[:16]}, identifiers {first.ski} and {second.ski}"
            found.append(_fatal(rule, first, observed, "another common name, or distinct SKIs"))
        for child in children:
            if child.raw.issuer == first.raw.subject and child not in (first, second) and child.aki is None:
                found.append(
                    _fatal(rule, child, "no AKI below roots of one name", "an AKI, or roots of distinct names")
                )
    return tuple(dict.fromkeys(found))


def cross_sign_findings(signer: Certificate, new_root: Certificate) -> tuple[RuleFinding, ...]:
    """Whether `signer` may cross-sign `new_root` and still leave room for an issuer below it.

    The chain is signer, cross-signed root, issuer, leaf: two CAs below the signer, so its path length must be 2 or
    none (RFC 5280 section 4.2.1.9; roots of the usual `root-ca` profiles have 1).
    """
    if signer.path_length is not None and signer.path_length < 2:
        observed = f"path length {signer.path_length}, with {new_root.common_name} and an issuer below"
        return (_fatal("signer has room for a cross-signed root", signer, observed, "path length 2 or more, or none"),)
    return ()


def same_key(old: Certificate, new: Certificate) -> bool:
    """Whether this is a re-date (a new certificate of the old key) and not a re-key: a stolen key stays useful."""
    return old.spki_sha256 == new.spki_sha256


def require(findings: Iterable[RuleFinding], where: str) -> tuple[RuleFinding, ...]:
    """Return the warnings.

    Raises:
        InvalidCertificate: There are fatal findings; all of them are named.
    """
    everything = tuple(findings)
    fatal = [finding for finding in everything if finding.level is Level.FATAL]
    if fatal:
        raise InvalidCertificate(
            "certificate breaks the rules of its role",
            where=where,
            observed="; ".join(f"{finding.rule}: {finding.subject}: {finding.observed}" for finding in fatal),
            expected="; ".join(dict.fromkeys(finding.expected for finding in fatal)),
        )
    return everything


def _validity(certificate: Certificate, now: datetime, kind: str) -> list[RuleFinding]:
    moment = require_aware(now)
    period = f"valid from {certificate.not_before:%F %T}Z to {certificate.not_after:%F %T}Z"
    if not certificate.valid_at(moment):
        return [_fatal(f"{kind} within the validity period", certificate, period, f"valid at {moment:%F %T}Z")]
    if certificate.not_after < moment + EXPIRES_SOON:
        return [_warning(f"{kind} valid for at least 60 days", certificate, period, "60 days and more")]
    return []


def _ca(certificate: Certificate) -> list[RuleFinding]:
    found = []
    if not certificate.is_ca:
        found.append(_fatal("certificate is a CA", certificate, "not a CA", "BasicConstraints CA:TRUE"))
    usage = certificate.extension(x509.KeyUsage)
    if usage is not None and not usage.value.key_cert_sign:
        found.append(_fatal("CA may sign certificates", certificate, "key usage lacks keyCertSign", "keyCertSign"))
    eku = certificate.extension(x509.ExtendedKeyUsage)
    if missing := missing_usages(eku.value if eku else None, Purpose.SERVER):
        observed = f"extended key usage lacks {missing}"
        found.append(_fatal("CA is good for server certificates", certificate, observed, "serverAuth, or no EKU"))
    return found


def _fatal(rule: str, certificate: Certificate, observed: str, expected: str) -> RuleFinding:
    return RuleFinding(Level.FATAL, rule, _label(certificate), observed, expected)


def _warning(rule: str, certificate: Certificate, observed: str, expected: str) -> RuleFinding:
    return RuleFinding(Level.WARNING, rule, _label(certificate), observed, expected)


def _label(certificate: Certificate) -> str:
    return f"{certificate.common_name or certificate.subject} {certificate.fingerprint[:16]}"
