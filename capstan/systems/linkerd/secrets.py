"""Entries of Secrets: base64 in and out, without ever quoting them."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from capstan.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from capstan.cluster.values import Object


def decoded(secret: Object, key: str) -> bytes:
    """One entry of a Secret.

    Raises:
        NotFound: There is no such entry. InvalidInput: It is not base64.
    """
    metadata = secret["metadata"]
    where = f"secret {metadata.get('namespace', '')}/{metadata['name']}"
    text = (secret.get("data") or {}).get(key)
    if text is None:
        raise NotFound(
            "the secret lacks an entry", where=where, expected=f"a key {key}",
            next_command=f"kubectl describe secret {metadata['name']} -n {metadata.get('namespace', '')}",
        )  # fmt: skip
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("the secret's entry is not base64", where=where, observed=f"key {key}") from None


def encoded(data: bytes | str) -> str:
    """As a Secret carries it."""
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode("ascii")
