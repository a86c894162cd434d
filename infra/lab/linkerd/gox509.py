"""Certificate verification with the rules and the error texts of Go's crypto/x509, which linkerd-identity uses.

Only what a chain of a handful of certificates needs: candidates by subject, those whose key identifier matches first;
signature, validity, basic constraints, path length, extended key usage (serverAuth unless said otherwise). Written from
the published behaviour (RFC 5280 section 6 and the golden traces 02, 03, 06 and 07), as the lab's own judge: it shares
no code with the product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from infra.lab.linkerd.gotext import quote, rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

Chain = list[x509.Certificate]
T = TypeVar("T", bound=x509.ExtensionType)

_MAX_CHAIN = 10
# What crypto/x509 knows how to judge; any other critical extension makes a certificate unusable.
_HANDLED = frozenset(
    {
        ExtensionOID.KEY_USAGE,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.CERTIFICATE_POLICIES,
        ExtensionOID.POLICY_MAPPINGS,
        ExtensionOID.POLICY_CONSTRAINTS,
        ExtensionOID.INHIBIT_ANY_POLICY,
    }
)


class VerifyError(ValueError):
    """A chain that does not verify; the text is Go's."""


class UnknownAuthorityError(VerifyError):
    """No chain to a root was found."""


class ExpiredError(VerifyError):
    """A certificate of the only candidate chain is outside its validity."""


class _SignatureError(Exception):
    """A candidate did not sign the child, or may not sign certificates."""


def verify(
    certificate: x509.Certificate,
    *,
    roots: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate],
    now: datetime,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    anchors_expire: bool = True,
) -> list[Chain]:
    """All chains from `certificate` to one of `roots`.

    Args:
        anchors_expire: Go demands that the root is inside its validity; the proxies' verifier (webpki) does not look.

    Raises:
        VerifyError: With Go's text.
    """
    _check_extensions(certificate)
    _check_time(certificate, now)
    search = _Search(roots, intermediates, now, anchors_expire)
    chains = [[certificate]] if certificate in roots else search.chains([certificate])
    usable = [chain for chain in chains if _usage_allowed(chain, usage)]
    if not usable:
        raise VerifyError("x509: certificate specifies an incompatible key usage")
    return usable


class _Search:
    """Depth-first search for chains, remembering why candidates failed as Go does."""

    def __init__(
        self,
        roots: Sequence[x509.Certificate],
        intermediates: Sequence[x509.Certificate],
        now: datetime,
        anchors_expire: bool,
    ) -> None:
        self._roots = roots
        self._intermediates = intermediates
        self._now = now
        self._anchors_expire = anchors_expire

    def chains(self, current: Chain) -> list[Chain]:
        """Chains that continue `current`; raises VerifyError if there is none."""
        child = current[-1]
        found: list[Chain] = []
        hint: tuple[Exception, x509.Certificate] | None = None
        failure: VerifyError | None = None
        candidates = [(root, True) for root in _by_subject(child, self._roots)]
        candidates += [(other, False) for other in _by_subject(child, self._intermediates)]
        for candidate, is_root in candidates:
            if any(_same_entity(candidate, known) for known in current) or len(current) >= _MAX_CHAIN:
                continue
            try:
                _check_signature(child, candidate)
            except _SignatureError as error:
                hint = hint or (error, candidate)
                continue
            try:
                self._check_authority(candidate, current, is_root=is_root)
                found += [[*current, candidate]] if is_root else self.chains([*current, candidate])
            except VerifyError as error:
                # Go keeps the last such error as the result, and the first as the hint.
                failure, hint = error, hint or (error, candidate)
        if found:
            return found
        raise failure or _unknown_authority(hint)

    def _check_authority(self, candidate: x509.Certificate, current: Chain, *, is_root: bool) -> None:
        _check_extensions(candidate)
        if self._anchors_expire or not is_root:
            _check_time(candidate, self._now)
        constraints = _extension(candidate, x509.BasicConstraints)
        if not is_root and (constraints is None or not constraints.ca):
            raise VerifyError("x509: certificate is not authorized to sign other certificates")
        length = None if constraints is None else constraints.path_length
        if length is not None and len(current) - 1 > length:
            raise VerifyError("x509: too many intermediates for path length constraint")


def _check_time(certificate: x509.Certificate, now: datetime) -> None:
    prefix = f"x509: certificate has expired or is not yet valid: current time {rfc3339(now)} is"
    if now < certificate.not_valid_before_utc:
        raise ExpiredError(f"{prefix} before {rfc3339(certificate.not_valid_before_utc)}")
    if now > certificate.not_valid_after_utc:
        raise ExpiredError(f"{prefix} after {rfc3339(certificate.not_valid_after_utc)}")


def _check_extensions(certificate: x509.Certificate) -> None:
    if any(extension.critical and extension.oid not in _HANDLED for extension in certificate.extensions):
        raise VerifyError("x509: unhandled critical extension")


def _check_signature(child: x509.Certificate, parent: x509.Certificate) -> None:
    constraints, usage = _extension(parent, x509.BasicConstraints), _extension(parent, x509.KeyUsage)
    # A certificate of version 1 has no extensions and may sign all the same.
    not_a_ca = parent.version is x509.Version.v3 if constraints is None else not constraints.ca
    if not_a_ca or (usage is not None and not usage.key_cert_sign):
        raise _SignatureError("x509: invalid signature: parent certificate cannot sign this kind of certificate")
    key, signed_with = parent.public_key(), child.signature_algorithm_oid
    try:
        algorithm = child.signature_hash_algorithm
    except UnsupportedAlgorithm:
        algorithm = None
    if isinstance(algorithm, hashes.SHA1 | hashes.MD5):
        name = algorithm.name.upper()
        kind = f"ECDSA-{name}" if signed_with == x509.SignatureAlgorithmOID.ECDSA_WITH_SHA1 else f"{name}-RSA"
        raise _SignatureError(f"x509: cannot verify signature: insecure algorithm {kind}")
    if (expected := _key_kind(signed_with)) is None:
        raise _SignatureError("x509: cannot verify signature: algorithm unimplemented")
    if expected != _kind_of(key):
        text = f"x509: signature algorithm specifies an {expected} public key, but have public key of type"
        raise _SignatureError(f"{text} {_GO_TYPES.get(_kind_of(key), type(key).__name__)}")
    try:
        child.verify_directly_issued_by(parent)
    except InvalidSignature as error:
        raise _SignatureError(_BAD_SIGNATURE[expected]) from error
    except (TypeError, ValueError) as error:
        raise _SignatureError("x509: cannot verify signature: algorithm unimplemented") from error


_BAD_SIGNATURE = {
    "ECDSA": "x509: ECDSA verification failure",
    "RSA": "crypto/rsa: verification error",
    "Ed25519": "x509: Ed25519 verification failure",
}
_GO_TYPES = {
    "ECDSA": "*ecdsa.PublicKey",
    "RSA": "*rsa.PublicKey",
    "Ed25519": "ed25519.PublicKey",
    "DSA": "*dsa.PublicKey",
}
_RSA_SIGNATURES = (
    x509.SignatureAlgorithmOID.RSA_WITH_SHA256,
    x509.SignatureAlgorithmOID.RSA_WITH_SHA384,
    x509.SignatureAlgorithmOID.RSA_WITH_SHA512,
    x509.SignatureAlgorithmOID.RSASSA_PSS,
)
_ECDSA_SIGNATURES = (
    x509.SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    x509.SignatureAlgorithmOID.ECDSA_WITH_SHA384,
    x509.SignatureAlgorithmOID.ECDSA_WITH_SHA512,
)


def _key_kind(algorithm: x509.ObjectIdentifier) -> str | None:
    """What key a signature algorithm takes; None for one that Go does not verify."""
    if algorithm in _ECDSA_SIGNATURES:
        return "ECDSA"
    if algorithm in _RSA_SIGNATURES:
        return "RSA"
    return "Ed25519" if algorithm == x509.SignatureAlgorithmOID.ED25519 else None


def _kind_of(key: object) -> str:
    kinds = {
        ec.EllipticCurvePublicKey: "ECDSA",
        rsa.RSAPublicKey: "RSA",
        ed25519.Ed25519PublicKey: "Ed25519",
        dsa.DSAPublicKey: "DSA",
    }
    return next((name for kind, name in kinds.items() if isinstance(key, kind)), "")


def _same_entity(one: x509.Certificate, other: x509.Certificate) -> bool:
    """Whether a chain would hold the same subject, key and names twice: Go never goes through one again."""
    names = [_extension(certificate, x509.SubjectAlternativeName) for certificate in (one, other)]
    return (
        one.subject.public_bytes() == other.subject.public_bytes()
        and _spki(one) == _spki(other)
        and names[0] == names[1]
    )


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _by_subject(child: x509.Certificate, pool: Sequence[x509.Certificate]) -> Chain:
    """Candidates with the right name: matching key identifiers first, then those without one, then the rest."""
    aki = _extension(child, x509.AuthorityKeyIdentifier)
    wanted = None if aki is None else aki.key_identifier

    def rank(candidate: x509.Certificate) -> int:
        ski = _extension(candidate, x509.SubjectKeyIdentifier)
        has = None if ski is None else ski.digest
        if has == wanted:
            return 0
        return 1 if has is None or wanted is None else 2

    named = [candidate for candidate in pool if candidate.subject.public_bytes() == child.issuer.public_bytes()]
    return sorted(dict.fromkeys(named), key=rank)


def _usage_allowed(chain: Chain, usage: x509.ObjectIdentifier) -> bool:
    for certificate in chain:
        allowed = _extension(certificate, x509.ExtendedKeyUsage)
        if allowed is not None and usage not in allowed and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in allowed:
            return False
    return True


def _unknown_authority(hint: tuple[Exception, x509.Certificate] | None) -> UnknownAuthorityError:
    text = "x509: certificate signed by unknown authority"
    if hint is not None:
        error, candidate = hint
        why = f"possibly because of {quote(str(error))} while trying to verify candidate authority certificate"
        text += f" ({why} {quote(_display_name(candidate))})"
    return UnknownAuthorityError(text)


def _display_name(certificate: x509.Certificate) -> str:
    if (found := certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)) and found[-1].value:
        return str(found[-1].value)
    if found := certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME):
        return str(found[0].value)
    return f"serial:{certificate.serial_number}"


def _extension(certificate: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
