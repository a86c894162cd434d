"""From a URL to a vault."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from capstan.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstan.vaults.base import Vault

_EXPECTED = "local:/absolute/path or https://NAME.vault.azure.net"
_NEXT = "--vault URL, $CAPSTAN_VAULT, or `vault` in the inventory"


def open_vault(url: str, environment: Mapping[str, str] | None = None) -> Vault:
    """Open the vault that `url` names; a local one is made if absent.

    Args:
        url: `local:/path`, or the URL of an Azure Key Vault (any cloud).
        environment: Where the secrets of access come from; default: the process's. For a local vault one of
            `CAPSTAN_VAULT_PASSPHRASE`, `CAPSTAN_VAULT_PASSPHRASE_FILE`, `CAPSTAN_VAULT_KEY_FILE`; with none of them, a
            random key in the file beside the directory. For Key Vault, what azure-identity's DefaultAzureCredential
            and `REQUESTS_CA_BUNDLE` read (those always from the process's environment).

    Raises:
        InvalidInput: No such kind of vault, or what the vault itself refuses.
        Denied: No access.
        Retryable: Somebody else holds the local vault's lock.
    """
    environment = os.environ if environment is None else environment
    require_url(url)
    if url.startswith("local:"):
        return _open_local(Path(url.removeprefix("local:")), environment)
    # Imported here: `check` and `plan` must start quickly, and most users of the local vault have no Azure.
    from capstan.vaults.azure_key_vault import AzureKeyVault

    return AzureKeyVault(url)


def require_url(url: str) -> None:
    """Refuse what names no vault, without opening any.

    Raises:
        InvalidInput: No such kind of vault, or a local one by a relative path.
    """
    parts = urlsplit(url)
    if parts.scheme == "local" and not url.removeprefix("local:").startswith("/"):
        raise InvalidInput(
            "a local vault's path must be absolute", observed=url, expected=_EXPECTED, next_command=_NEXT
        )
    if parts.scheme != "local" and not (parts.scheme == "https" and parts.hostname):
        raise InvalidInput("no such kind of vault", observed=url, expected=_EXPECTED, next_command=_NEXT)


def _open_local(path: Path, environment: Mapping[str, str]) -> Vault:
    from capstan.vaults.local import LocalVault

    passphrase = environment.get("CAPSTAN_VAULT_PASSPHRASE")
    passphrase_file = environment.get("CAPSTAN_VAULT_PASSPHRASE_FILE")
    key_file = environment.get("CAPSTAN_VAULT_KEY_FILE")
    given = [
        name
        for name in ("CAPSTAN_VAULT_PASSPHRASE", "CAPSTAN_VAULT_PASSPHRASE_FILE", "CAPSTAN_VAULT_KEY_FILE")
        if environment.get(name)
    ]
    if len(given) > 1:
        raise InvalidInput(
            "more than one way to the vault's key", where=f"local:{path}", observed=", ".join(given), expected="one"
        )
    if passphrase_file:
        try:
            passphrase = Path(passphrase_file).read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeError) as error:
            raise InvalidInput(
                "the passphrase file cannot be read", where=passphrase_file, observed=str(error)
            ) from error
    return LocalVault(path, passphrase=passphrase or None, key_file=Path(key_file) if key_file else None)
