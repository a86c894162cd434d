"""Who signs the evidence: an Ed25519 key that lives in the vault."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, SupportsIndex

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from capstan.errors import InvalidInput
from capstan.vaults.material import Material

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstan.vaults.base import Vault


class Signer:
    """Signs entries. Holds the private key: never shown, never pickled.

    Args:
        material: An Ed25519 private key.

    Raises:
        InvalidInput: It is another kind of key, or none.
    """

    __slots__ = ("_key",)

    def __init__(self, material: Material) -> None:
        key = (
            load_pem_private_key(material.unsafe_private_key_pem().encode(), password=None)
            if material.has_private_key
            else None
        )
        if not isinstance(key, Ed25519PrivateKey):
            raise InvalidInput(
                "evidence cannot be signed with this key",
                observed=f"{type(key).__name__} (fingerprint {material.fingerprint})",
                expected="an Ed25519 private key",
            )
        self._key = key

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key that verifies."""
        return self._key.public_key()

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature (RFC 8032), 64 bytes."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return "<Signer: key not shown>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise InvalidInput(
            "a signer holds a private key and is never pickled",
            where=repr(self),
            observed=f"pickle protocol {protocol}",
            expected="the name of its key in the vault",
        )


def mint_signing_key() -> Material:
    """A new Ed25519 key."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Material(private_key_pem=pem.decode("ascii"))


def signer_from_vault(
    vault: Vault, name: str = "capstan-evidence-signing-key", tags: Mapping[str, str] | None = None
) -> Signer:
    """The signer whose key is in the vault under `name`; minted there the first time.

    Raises:
        As `Vault.ensure` and `Vault.get`.
    """
    return Signer(vault.get(vault.ensure(name, mint_signing_key, tags or {})))
