"""PEM as linkerd-identity reads it: Go's decoder under Linkerd's own loop, with their error texts.

Known on the real controller (golden traces 04 and 06): text between and before certificates is skipped, text or a blank
line after the last one is fatal, and a block that is not a certificate ends the parsing silently.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from infra.lab.linkerd import goasn1

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_BEGIN = re.compile(rb"(?:^|(?<=\n))-----BEGIN ([^\n]*?)-----[ \t]*\r?(?:\n|$)")
_HEADER = re.compile(rb"^[^:\n]+:[^\n]*(?:\n|$)")
_KEY_BLOCKS = (b"EC PRIVATE KEY", b"RSA PRIVATE KEY", b"PRIVATE KEY")
_OCTET_STRING, _SEQUENCE = 0x04, 0x30


class PemError(ValueError):
    """Material that Linkerd refuses; the text is what the real one prints."""


@dataclass(frozen=True)
class Block:
    """One decoded PEM block."""

    type: bytes
    der: bytes


def decode(data: bytes) -> tuple[Block | None, bytes]:
    """The first PEM block of `data` and what follows it; (None, data) if there is none (RFC 7468, Go's leniency).

    Blocks that do not decode are skipped, as garbage before a block is.
    """
    for begin in _BEGIN.finditer(data):
        kind = begin.group(1)
        end = re.compile(rb"(?:^|\n)-----END " + re.escape(kind) + rb"-----[ \t]*\r?(?:\n|$)").search(
            data, begin.end() - 1
        )
        if end is None:
            continue
        body = data[begin.end() : end.start() + 1]
        if b"-----BEGIN " in body:
            continue  # this one was cut off; a later one may be whole
        while header := _HEADER.match(body):
            body = body[header.end() :]
        try:
            der = base64.b64decode(re.sub(rb"\s+", b"", body), validate=True)
        except binascii.Error:
            continue
        return Block(kind, der), data[end.end() :]
    return None, data


def certificates(data: bytes) -> list[x509.Certificate]:
    """All certificates in `data`, in order.

    Raises:
        PemError: "not a PEM certificate" if anything follows that is no PEM block; "x509: malformed certificate" if a
            block holds no certificate.
    """
    found: list[x509.Certificate] = []
    while data:
        block, data = decode(data)
        if block is None:
            raise PemError("not a PEM certificate")
        if block.type != b"CERTIFICATE":
            break
        try:
            found.append(x509.load_der_x509_certificate(block.der))
        except ValueError as error:
            raise PemError("x509: malformed certificate") from error
    return found


def trust_anchors(data: bytes) -> list[x509.Certificate]:
    """The roots of a ca-bundle.crt.

    Raises:
        PemError: As `certificates`, and "no certificates found" for an empty bundle.
    """
    found = certificates(data)
    if not found:
        raise PemError("no certificates found")
    return found


def issuer_chain(data: bytes) -> list[x509.Certificate]:
    """The certificates of an issuer's crt file, the issuer first.

    Raises:
        PemError: As `certificates`, and "No certificates found" (capital N, as the real one) for an empty file.
    """
    found = certificates(data)
    if not found:
        raise PemError("No certificates found")
    return found


def private_key(data: bytes) -> PrivateKey:
    """The private key of an issuer: PKCS 8, SEC 1 or PKCS 1.

    Raises:
        PemError: "not PEM-encoded", or an unsupported or malformed block, or one whose content is of another format
            than its name says (Go does not look at the name then, and says which parser would have done).
    """
    block, _ = decode(data)
    if block is None:
        raise PemError("not PEM-encoded")
    if block.type not in _KEY_BLOCKS:
        raise PemError(f"unsupported block type: '{block.type.decode(errors='replace')}'")
    try:
        key = serialization.load_der_private_key(block.der, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PemError(_malformed(block)) from error
    if (found := _format(block.der)) != block.type:
        parser = {b"PRIVATE KEY": "PKCS8", b"EC PRIVATE KEY": "EC", b"RSA PRIVATE KEY": "PKCS1"}[found]
        raise PemError(f"x509: failed to parse private key (use Parse{parser}PrivateKey instead for this key format)")
    if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        return key
    kind = "ed25519.PrivateKey" if isinstance(key, ed25519.Ed25519PrivateKey) else "*ecdh.PrivateKey"
    raise PemError(
        f"unsupported PKCS#8 encoded private key type: '{kind}', linkerd2 only supports ECDSA and RSA private keys"
    )


def _format(der: bytes) -> bytes:
    """The block name that fits a private key in DER: the three differ in their version and what follows it.

    SEC 1 (RFC 5915) is `1, OCTET STRING`; PKCS 8 `0, SEQUENCE`; PKCS 1 (RFC 8017) `0, INTEGER`.
    """
    header = 2 + (der[1] & 0x7F if der[1] & 0x80 else 0)
    version, following = der[header + 2], der[header + 3]
    if version == 1 and following == _OCTET_STRING:
        return b"EC PRIVATE KEY"
    return b"PRIVATE KEY" if following == _SEQUENCE else b"RSA PRIVATE KEY"


def _malformed(block: Block) -> str:
    name = {b"EC PRIVATE KEY": "ecPrivateKey", b"RSA PRIVATE KEY": "pkcs1PrivateKey"}.get(block.type, "pkcs8")
    why = goasn1.sequence_error(block.der, name) or "asn1: structure error"
    return f"x509: failed to parse EC private key: {why}" if block.type == b"EC PRIVATE KEY" else why
