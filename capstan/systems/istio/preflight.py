"""Will istiod start with these files, and take them? Asked before every write.

The rules are istiod's own (security/pkg/pki/util/keycertbundle.go, Verify; pilot/pkg/bootstrap/istio_ca.go), in the
order in which it applies them, then what it does not look at and the data plane fails on: two roots of one name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography import x509

from capstan.errors import CapstanError, GateRefused, InvalidCertificate, InvalidInput, InvalidPem
from capstan.pki import rules
from capstan.pki.bundle import Bundle
from capstan.pki.verify import verify_issuer
from capstan.systems.istio import versions
from capstan.systems.istio.texts import certificates_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from capstan.pki.inspect import Certificate
    from capstan.pki.keys import PrivateKey
    from capstan.pki.verify import Verified
    from capstan.systems.istio.source import CaFiles
    from capstan.systems.istio.versions import Version

MAX_SECRET_BYTES: Final = 1024 * 1024
"""Largest Secret (Kubernetes documentation, "Secrets": 1 MiB)."""


def verify_files(files: CaFiles, key: PrivateKey, where: str, *, now: datetime, crl: str = "") -> Verified:
    """Refuse files with which an istiod would not start, or which it would not take while it runs.

    Args:
        files: The public texts as they would be written.
        key: The signing CA's key as it would be written.
        where: The place they would be written to, for messages.
        now: Aware UTC.
        crl: Text of ca-crl.pem; empty if there is none.

    Returns:
        The chain from the signing CA to its root.

    Raises:
        InvalidPem: A text is missing, holds no certificate, or something that no reader of PEM takes.
        InvalidCertificate: The key is another certificate's, the signing certificate is no CA, or the roots cannot be
            told apart by every proxy.
        VerificationFailed: The signing CA does not verify against the roots.
    """
    # 1. The set is complete. Before 1.26.1 an istiod that lacks the key makes itself a self-signed CA without a word.
    for name, text in (("root-cert.pem", files.root_cert), ("ca-cert.pem", files.ca_cert),
                       ("cert-chain.pem", files.cert_chain)):  # fmt: skip
        if not text.strip():
            raise InvalidPem(
                "the set of files is not complete", where=where, observed=f"no {name}",
                expected="root-cert.pem, ca-cert.pem, ca-key.pem and cert-chain.pem: an istiod with a part of them "
                "refuses to start, or (before 1.26.1, without ca-key.pem) makes itself a new self-signed CA",
            )  # fmt: skip
    roots = Bundle(certificates_of(files.root_cert, f"root-cert.pem of {where}"))
    signer = _first(files.ca_cert, f"ca-cert.pem of {where}")
    chain = certificates_of(files.cert_chain, f"cert-chain.pem of {where}")
    _require_only_certificates(files, where)
    # 2. The first certificate of ca-cert.pem verifies to a root through cert-chain.pem.
    verified = verify_issuer(signer, roots, now, [each for each in chain if each not in roots])
    # 3. The key is its key, 4. and it is a CA (which verify_issuer has seen to).
    if not signer.key_matches(key):
        raise InvalidCertificate(
            "the cert does not match the key", where=where, observed=repr(key), expected=f"the key of {signer!r}"
        )
    # 5. A list of revocations, where there is one, must cover every CA of the chain.
    if crl.strip():
        require_crls(crl, verified.chain, where)
    # 6. No proxy can confuse two of the roots.
    require_distinct(roots, [signer, *chain], where)
    return verified


def require_distinct(roots: Iterable[Certificate], below: Sequence[Certificate], where: str) -> None:
    """Refuse roots that a proxy cannot tell apart.

    BoringSSL takes the first root of the wanted name; two roots of one name break every new connection from the moment
    both are trusted, unless every certificate carries key identifiers, the old ones too.

    Raises:
        InvalidCertificate: Two roots with different keys share a name and something lacks its identifiers.
    """
    findings = rules.bundle_findings(roots, [each for each in below if not each.self_signed])
    fatal = [finding for finding in findings if finding.level is rules.Level.FATAL]
    if fatal:
        raise InvalidCertificate(
            "proxies could not tell these roots apart", where=where,
            observed="; ".join(f"{finding.subject}: {finding.observed}" for finding in fatal),
            expected="a new root whose name differs from that of every root there is (or key identifiers everywhere)",
            next_command="make the new root with another name, for example with a generation in it: CN=Root CA G2",
        )  # fmt: skip


def require_crls(text: str, chain: Sequence[Certificate], where: str) -> None:
    """Refuse a list of revocations that would keep istiod from taking the new CA (istio#61075).

    Raises:
        InvalidInput: A CA of the chain has no list, or the text is none.
    """
    try:
        found = _crls(text)
    except ValueError as error:
        raise InvalidInput(
            "ca-crl.pem cannot be read", where=where, observed=str(error), expected="PEM sections X509 CRL",
        ) from error  # fmt: skip
    missing = [
        ca for ca in chain
        if not any(crl.issuer == ca.raw.subject and crl.is_signature_valid(ca.raw.public_key()) for crl in found)  # type: ignore[arg-type]  # a CA's key is one that signs
    ]  # fmt: skip
    if missing:
        raise InvalidInput(
            "istiod would not take this CA because ca-crl.pem says nothing about it", where=where,
            observed=f"no list by {', '.join(ca.common_name or ca.subject for ca in missing)}",
            expected="one list signed by every CA of the chain, the root included",
            next_command="add the lists to ca-crl.pem, or remove it; then run the same command again",
        )  # fmt: skip


def require_version(version: Version | None, who: str) -> None:
    """Refuse to change the roots under an istiod that breaks workloads by it.

    Raises:
        GateRefused: 1.24.4 or 1.25.1.
    """
    if version is not None and (why := versions.refused_version(version)):
        raise GateRefused(
            "this istiod must not be given several roots", where=who, observed=why,
            expected="a version that hands out all of them", next_command="upgrade istiod first",
        )  # fmt: skip


def require_secret_size(texts: Iterable[str], where: str) -> None:
    """Refuse what no Secret can hold.

    Raises:
        InvalidInput: More than 1 MiB.
    """
    size = sum(len(text.encode()) for text in texts)
    if size > MAX_SECRET_BYTES:
        raise InvalidInput(
            "the files are too large for a Secret", where=where, observed=f"{size} bytes",
            expected=f"at most {MAX_SECRET_BYTES} bytes", next_command="drop expired roots from the bundle",
        )  # fmt: skip


def _first(text: str, where: str) -> Certificate:
    found = certificates_of(text, where)
    if not found:
        raise InvalidPem("no certificate", where=where, observed="no CERTIFICATE section", expected="a certificate")
    return found[0]


def _require_only_certificates(files: CaFiles, where: str) -> None:
    """A private key in one of the public texts would be handed to every proxy."""
    for name, text in (("root-cert.pem", files.root_cert), ("ca-cert.pem", files.ca_cert),
                       ("cert-chain.pem", files.cert_chain)):  # fmt: skip
        if "PRIVATE KEY-----" in text:
            raise InvalidPem(
                "a private key stands among the certificates", where=f"{name} of {where}",
                expected="certificates only: this text is handed to every proxy",
                next_command="take the key out, and consider it known to everybody",
            )  # fmt: skip
        if not certificates_of(text, f"{name} of {where}"):
            raise InvalidPem(
                "no certificate", where=f"{name} of {where}", observed="no CERTIFICATE section",
                expected="PEM certificates",
            )  # fmt: skip


def _crls(text: str) -> list[x509.CertificateRevocationList]:
    begin, end = "-----BEGIN X509 CRL-----", "-----END X509 CRL-----"
    found = []
    for piece in text.split(begin)[1:]:
        body, marker, _ = piece.partition(end)
        if not marker:
            raise ValueError("a section without its END line")
        found.append(x509.load_pem_x509_crl(f"{begin}{body}{end}\n".encode()))
    if not found:
        raise ValueError("no section X509 CRL")
    return found


def try_verify(files: CaFiles, key: PrivateKey, where: str, *, now: datetime) -> str:
    """As `verify_files`, for a caller that only asks: why not; empty if istiod would take them."""
    try:
        verify_files(files, key, where, now=now)
    except CapstanError as error:
        return f"{error.what}: {error.observed}"
    return ""


def roots_of(files: CaFiles, where: str) -> frozenset[str]:
    """Fingerprints of the roots that a source holds.

    Raises:
        InvalidPem, InvalidCertificate: The text cannot be read.
    """
    return Bundle(certificates_of(files.root_cert, f"root-cert.pem of {where}")).fingerprints
