"""Where private keys live. One protocol, one conformance suite; see `base`."""

from capstan.vaults.base import (
    ROTATION_TAG,
    Description,
    Fate,
    Reference,
    State,
    Vault,
    put_group,
)
from capstan.vaults.material import Material
from capstan.vaults.opening import open_vault

__all__ = [
    "ROTATION_TAG",
    "Description",
    "Fate",
    "Material",
    "Reference",
    "State",
    "Vault",
    "open_vault",
    "put_group",
]
