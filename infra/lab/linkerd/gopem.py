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
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_BEGIN = re.compile(rb"(?:^|(?<=\n))-----BEGIN ([^\n]*?)-----[ \t]*\r?(?:\n|$)")
_HEADER = re.compile(rb"^[^:\n]+:[^\n]*(?:\n|$)")
_KEY_BLOCKS = (b"EC PRIVATE KEY", b"RSA PRIVATE KEY", b"PRIVATE KEY")


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
        PemError: "not PEM-encoded", or an unsupported or malformed block.
    """
    block, _ = decode(data)
    if block is None:
        raise PemError("not PEM-encoded")
    if block.type not in _KEY_BLOCKS:
        raise PemError(f"unsupported block type: '{block.type.decode(errors='replace')}'")
    try:
        key = serialization.load_der_private_key(block.der, password=None)
    except (ValueError, TypeError) as error:
        raise PemError("x509: failed to parse private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise PemError("unsupported private key type")
    return key
