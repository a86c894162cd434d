"""The last line of defence: evidence that would carry a private key is refused."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_private_key

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARKER = b"PRIVATE KEY-----"


def _inside_base64(plain: bytes) -> Iterator[bytes]:
    """What base64 text contains if `plain` begins at any of the three byte offsets; partial characters cut off."""
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + plain)
        start = -(-offset * 8 // 6)  # first character that holds bits of `plain` only
        end = (offset + len(plain)) * 8 // 6
        yield encoded[start:end]


_ENCODED_MARKERS = tuple(marker.decode() for marker in _inside_base64(_MARKER))
# Shorter than any private key in DER (Ed25519 PKCS#8, RFC 8410: 48 bytes, 64 characters).
_BASE64_RUN = re.compile(r"[A-Za-z0-9+/_-]{60,}={0,2}")


def holds_private_key(value: object) -> bool:
    """Whether a JSON value holds, anywhere, private key text: PEM, PEM in base64, or DER in base64."""
    if isinstance(value, dict):
        return any(holds_private_key(key) or holds_private_key(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return any(holds_private_key(item) for item in value)
    if not isinstance(value, str):
        return False
    if _MARKER.decode() in value or any(marker in value for marker in _ENCODED_MARKERS):
        return True
    joined = re.sub(r"\s+", "", value)  # base64 is often wrapped
    return any(marker in joined for marker in _ENCODED_MARKERS) or any(
        _is_der_key(run[0]) for run in _BASE64_RUN.finditer(joined)
    )


def _is_der_key(text: str) -> bool:
    try:
        der = base64.b64decode(text.translate(str.maketrans("-_", "+/")) + "=" * (-len(text) % 4), validate=True)
        load_der_private_key(der, password=None)
    except (binascii.Error, ValueError, UnsupportedAlgorithm):
        return False
    except TypeError:  # encrypted: needs a password, so it is a private key all the same
        return True
    return True
