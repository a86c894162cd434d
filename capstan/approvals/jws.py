"""JSON Web Signatures of approvers whose X.509 certificate is listed.

Source: RFC 7515 (JWS compact serialization), RFC 7518 section 3.1 (algorithms), RFC 8037 (EdDSA), RFC 8725 (one
algorithm per key, explicit typing). The payload is the statement's fields and `iat`, the time of signing: it must lie
in the certificate's validity and within the request, since a key outlives the certificate that says whose it is.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from capstan.approvals.keys import thumbprint
from capstan.errors import VerificationFailed

if TYPE_CHECKING:
    from capstan.approvals.sshsig import Key, PrivateKey
    from capstan.approvals.statement import Statement
    from capstan.pki.inspect import Certificate

TYP: Final = "capstan-approval+jws"
SKEW: Final = timedelta(minutes=5)
"""How far the clock of whoever signs may be off."""

_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


def sign(statement: Statement, key: PrivateKey, certificate: Certificate, at: datetime) -> str:
    """A compact JWS.

    Args:
        at: Time of signing, aware UTC.
    """
    payload = json.dumps({**statement.fields(), "iat": int(at.timestamp())}, ensure_ascii=False).encode("utf-8")
    headers = {"typ": TYP, "x5t#S256": thumbprint(certificate)}
    return jwt.PyJWS().encode(payload, key, _key(certificate)[1][0], headers)


def verify(statement: Statement, compact: str, certificate: Certificate, *, asked: datetime, given: datetime) -> None:
    """Check a JWS.

    Args:
        asked: When the request was made, aware UTC: nothing signed before it answers it.
        given: When the answer was taken down, aware UTC: nothing signed after it is it.

    Raises:
        VerificationFailed: It does not verify; says why.
    """
    where = f"JSON Web Signature, certificate {thumbprint(certificate)}"
    key, allowed = _key(certificate)
    try:
        # `verify_signature` and the algorithms by key: what the header claims selects nothing else (RFC 8725, 3.1).
        decoded = jwt.PyJWS().decode_complete("".join(compact.split()), key, allowed)
        payload = json.loads(decoded["payload"])
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise VerificationFailed(
            "the signature cannot count", where=where, observed=str(error) or type(error).__name__,
            expected=f"a compact JWS by that certificate's key ({' or '.join(allowed)})",
        ) from error  # fmt: skip
    header = decoded["header"]
    if "crit" in header:  # we know no extension, and none may be passed over (RFC 7515 section 4.1.11)
        raise _failed("its header is not one of an approval", where, f"crit: {header['crit']!r}", "no extensions")
    wanted = {"typ": TYP, "x5t#S256": thumbprint(certificate)}
    for name, value in wanted.items():
        if header.get(name) != value:
            raise _failed("its header is not one of an approval", where, f"{name}: {header.get(name)!r}", value)
    fields = statement.fields()
    signed_at = payload.pop("iat", None) if isinstance(payload, dict) else None
    # As text, because to Python a field that is `true` equals one that is 1.
    if _canonical(payload) != _canonical(fields):
        different = [n for n in fields if not isinstance(payload, dict) or payload.get(n) != fields[n]]
        raise _failed(
            "the signature is not over this statement", where, f"another {', '.join(different) or 'set of fields'}",
            "one over the statement",
        )  # fmt: skip
    if not isinstance(signed_at, int) or isinstance(signed_at, bool):
        raise _failed("it does not say when it was signed", where, f"iat: {signed_at!r}", "seconds since 1970")
    _require_in_time(signed_at, where, certificate, asked, given)


def signer(compact: str) -> str:
    """The certificate that a JWS says it was made with, as `ListedKey.id`; nothing is verified.

    Raises:
        VerificationFailed: It is no JWS, or names none.
    """
    try:
        header = jwt.get_unverified_header("".join(compact.split()))
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise _failed(
            "this is no signature", "--signature", str(error), "an SSH signature or a compact JSON Web Signature"
        ) from error
    return f"x5t#S256:{header.get('x5t#S256', '')}"


def _require_in_time(signed_at: int, where: str, certificate: Certificate, asked: datetime, given: datetime) -> None:
    try:
        at = datetime.fromtimestamp(signed_at, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise _failed("it does not say when it was signed", where, f"iat: {signed_at}", "a time") from error
    if not certificate.valid_at(at):
        raise _failed(
            "the certificate was not valid when this was signed", where, f"signed {_utc(at)}",
            f"a time from {_utc(certificate.not_before)} to {_utc(certificate.not_after)}",
        )  # fmt: skip
    if not asked - SKEW <= at <= given + SKEW:
        raise _failed(
            "it was not signed while this was asked", where, f"signed {_utc(at)}",
            f"a time from {_utc(asked)} to {_utc(given)}",
        )  # fmt: skip


def _key(certificate: Certificate) -> tuple[Key, list[str]]:
    """The certificate's key, and the algorithms it may sign with (RFC 7518 section 3.1, RFC 8037)."""
    match certificate.public_key:
        case ed25519.Ed25519PublicKey() as key:
            return key, ["EdDSA"]
        case ec.EllipticCurvePublicKey() as key if key.curve.name in _CURVES:
            return key, [_CURVES[key.curve.name]]
        case rsa.RSAPublicKey() as key:
            return key, ["PS256", "RS256"]
        case other:
            raise VerificationFailed("keys of this kind sign no approvals", observed=type(other).__name__)


def _canonical(payload: object) -> str:
    return json.dumps(payload, sort_keys=True)


def _failed(what: str, where: str, observed: str, expected: str) -> VerificationFailed:
    return VerificationFailed(what, where=where, observed=observed, expected=expected)


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
