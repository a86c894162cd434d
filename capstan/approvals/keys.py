"""An approver's public key: an OpenSSH key, or an X.509 certificate of which only the key and the dates count.

No chain is built for a certificate: a CA that could name approvers would be one more approver, and nobody listed it.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from capstan.approvals import sshsig
from capstan.approvals.statement import plain
from capstan.errors import InvalidInput, InvalidPem
from capstan.pki.inspect import Certificate
from capstan.pki.keys import spki_sha256

if TYPE_CHECKING:
    from datetime import datetime

    from capstan.config import ApproverKey

LEAST_RSA_BITS = 2048  # NIST SP 800-131A Rev. 2, section 3
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A parsed approver's key.

    Attributes:
        name: Whose it is.
        kind: `ssh` (SSHSIG signatures) or `x509` (JSON Web Signatures).
        id: For people: OpenSSH's `SHA256:` fingerprint, or `x5t#S256:` and the certificate's thumbprint (RFC 7515
            section 4.1.8).
        spki: SHA-256 (hex) of the public key itself, whatever it is wrapped in.
        ssh: The OpenSSH key.
        certificate: The certificate.
    """

    name: str
    kind: Literal["ssh", "x509"]
    id: str
    spki: str
    ssh: sshsig.PublicKey | None = None
    certificate: Certificate | None = None

    @property
    def not_after(self) -> datetime | None:
        """When a certificate ends, aware UTC; None for an OpenSSH key, which does not."""
        return self.certificate.not_after if self.certificate else None


def listed(approver: ApproverKey) -> ListedKey:
    """Parse an approver's key.

    Raises:
        InvalidInput: It is neither, is a private key, or is of a kind that does not count.
    """
    text, name = approver.key.strip(), plain(approver.name)
    if not name:
        raise _unusable(approver, "no name", "the name of the person it belongs to")
    if "PRIVATE KEY" in text:
        # Not even a part of it is repeated: this text is on its way into a log.
        raise _unusable(approver, "a private key", "a public key; and treat that private key as leaked")
    if text.startswith("-----BEGIN"):
        return _certificate(approver, text)
    try:
        key = sshsig.PublicKey.parse(text)
    except ValueError as error:
        raise _unusable(approver, str(error), "one line of an OpenSSH .pub file, or a PEM certificate") from error
    _require_strong(approver, key.key)
    return ListedKey(name, "ssh", key.fingerprint, spki_sha256(key.key), ssh=key)


def _certificate(approver: ApproverKey, text: str) -> ListedKey:
    try:
        certificate = Certificate.from_pem(text, f"certificate of approver {approver.name}")
    except (InvalidPem, InvalidInput) as error:
        raise _unusable(approver, error.observed or error.what, "one PEM certificate") from error
    _require_strong(approver, certificate.public_key)
    return ListedKey(
        plain(approver.name),
        "x509",
        f"x5t#S256:{thumbprint(certificate)}",
        certificate.spki_sha256,
        certificate=certificate,
    )


def thumbprint(certificate: Certificate) -> str:
    """`x5t#S256`: base64url, without padding, of the SHA-256 of the DER (RFC 7515 section 4.1.8)."""
    return base64.urlsafe_b64encode(hashlib.sha256(certificate.der).digest()).rstrip(b"=").decode("ascii")


def _require_strong(approver: ApproverKey, key: object) -> None:
    match key:
        case ed25519.Ed25519PublicKey():
            return
        case rsa.RSAPublicKey() if key.key_size >= LEAST_RSA_BITS:
            return
        case ec.EllipticCurvePublicKey() if key.curve.name in _CURVES:
            return
    match key:
        case rsa.RSAPublicKey():
            observed = f"RSA of {key.key_size} bits"
        case ec.EllipticCurvePublicKey():
            observed = f"ECDSA on {key.curve.name}"
        case _:
            observed = type(key).__name__
    raise _unusable(approver, observed, "Ed25519, ECDSA P-256, P-384 or P-521, RSA from 2048 bits")


def _unusable(approver: ApproverKey, observed: str, expected: str) -> InvalidInput:
    return InvalidInput(
        "this approver's key cannot be used", where=f"key of approver {approver.name!r}", observed=observed,
        expected=expected, next_command="ssh-keygen -l -f KEY.pub  # or: openssl x509 -in CERT.pem -noout -subject",
    )  # fmt: skip
