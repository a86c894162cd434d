"""Encryption of the local vault: which master key, and what is done with it.

The master key is 32 random bytes in a file of its own, or derived from a passphrase with scrypt (RFC 7914). From it,
HKDF-SHA256 (RFC 5869) with the vault's id as salt makes two keys: one seals values (AES-256-GCM, NIST SP 800-38D,
random 96-bit nonces), one authenticates metadata (HMAC-SHA256), so that listing needs to decrypt nothing.
"""

from __future__ import annotations

import hmac
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from capstan.errors import Denied, InvalidInput
from capstan.vaults._files import create_atomically, private_directory, refuse_if_open_to_others, remove_incomplete

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_KEY_BYTES = 32
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class ScryptCost:
    """Cost of deriving the key from a passphrase (RFC 7914 section 2). Memory is 128 * n * r bytes.

    The default takes 128 MiB and about half a second: the first choice of the OWASP Password Storage Cheat Sheet.
    """

    n: int = 2**17
    r: int = 8
    p: int = 1


class Sealer:
    """Seals and authenticates for one vault. Holds keys: never shown, never pickled."""

    __slots__ = ("_aead", "_mac_key")

    def __init__(self, master: bytes, vault_id: str) -> None:
        def derived(purpose: bytes) -> bytes:
            return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=vault_id.encode(), info=purpose).derive(master)

        self._aead = AESGCM(derived(b"capstan local vault: seal values"))
        self._mac_key = derived(b"capstan local vault: authenticate metadata")

    def seal(self, plain: bytes, metadata: Mapping[str, Any]) -> bytes:
        """Nonce and ciphertext of `plain`, bound to `metadata`."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, canonical(metadata))

    def open(self, sealed: bytes, metadata: Mapping[str, Any], where: str) -> bytes:
        """The inverse of `seal`.

        Raises:
            InvalidInput: The value or its metadata was changed, or another key sealed it.
        """
        try:
            return self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], canonical(metadata))
        except (InvalidTag, ValueError):
            raise damaged(where) from None

    def mac(self, metadata: Mapping[str, Any]) -> str:
        """HMAC-SHA256 (hex) over the metadata."""
        return hmac.digest(self._mac_key, canonical(metadata), "sha256").hex()

    def check_mac(self, metadata: Mapping[str, Any], mac: str, where: str) -> None:
        """Refuse metadata that was changed.

        Raises:
            InvalidInput: It was.
        """
        if not hmac.compare_digest(self.mac(metadata).encode(), mac.encode()):
            raise damaged(where)

    def __repr__(self) -> str:
        return "<Sealer: keys not shown>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise InvalidInput("a sealer holds keys and is never pickled", observed=f"pickle protocol {protocol}")


def canonical(value: Mapping[str, Any]) -> bytes:
    """One byte string per value: JSON with sorted names and no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def damaged(where: str) -> InvalidInput:
    """The error for anything that does not authenticate."""
    return InvalidInput(
        "this vault entry is not what was stored",
        where=where,
        observed="authentication failed: the file was changed, damaged, or moved from another entry",
        expected="a file exactly as the vault wrote it",
        next_command="restore this one file from a backup; do not delete it, or a new key would be minted",
    )


def master_from_passphrase(passphrase: str, salt: bytes, cost: ScryptCost) -> bytes:
    """32 bytes from a passphrase.

    Raises:
        InvalidInput: The passphrase is empty, or the recorded cost is not credible.
    """
    if not passphrase:
        raise InvalidInput("the vault's passphrase is empty", expected="a passphrase")
    # The cost is read from a file an attacker might have changed: bound it, so that opening cannot eat the machine.
    if not (2 <= cost.n <= 2**20 and 1 <= cost.r <= 32 and 1 <= cost.p <= 16 and cost.n & (cost.n - 1) == 0):
        raise InvalidInput("the recorded cost of the passphrase is not credible", observed=str(cost))
    return Scrypt(salt=salt, length=_KEY_BYTES, n=cost.n, r=cost.r, p=cost.p).derive(passphrase.encode())


def master_from_file(path: Path, *, create: bool) -> bytes:
    """The 32 bytes in the key file; made at random if absent and `create`.

    Raises:
        Denied: The file is open to others.
        InvalidInput: It is missing or not 32 bytes, as hex.
    """
    if not path.exists():
        if not create:
            raise InvalidInput(
                "the vault's key file is missing",
                where=str(path),
                expected="the file that was made with the vault",
                next_command="restore it from its backup, or name its place with CAPSTAN_VAULT_KEY_FILE",
            )
        if not path.parent.exists():
            private_directory(path.parent)
        create_atomically(path, os.urandom(_KEY_BYTES).hex().encode() + b"\n")
    remove_incomplete(path.parent, path.name)
    try:
        refuse_if_open_to_others(path, path.stat(), 0o600)
        key = bytes.fromhex(path.read_text("ascii").strip())
    except OSError as error:
        raise Denied("the vault's key file cannot be read", where=str(path), observed=str(error)) from error
    except ValueError:
        key = b""  # reported below, without quoting what may be half a key
    if len(key) != _KEY_BYTES:
        raise InvalidInput(
            "this is no key file of a vault", where=str(path), observed="something else", expected="64 hex digits"
        )
    return key
