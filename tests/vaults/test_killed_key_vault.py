"""The lab's Key Vault is killed and started again: for its clients it is the same vault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from capstan.errors import Unreachable
from capstan.vaults.azure_key_vault import AzureKeyVault
from capstan.vaults.base import ROTATION_TAG
from tests.support.key_vaults import KeyVaultProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.vaults.harness import Minting

pytestmark = pytest.mark.slow


@pytest.fixture
def process(tmp_path: Path) -> Iterator[KeyVaultProcess]:
    with KeyVaultProcess(tmp_path / "vault") as running:
        yield running


def test_a_client_with_its_token_goes_on_where_it_was(
    process: KeyVaultProcess, mint: Minting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in process.environment.items():
        monkeypatch.setenv(name, value)
    url, environment = process.url, process.environment
    vault = AzureKeyVault(url)
    tags = {ROTATION_TAG: "r1", "purpose": "root"}
    stored = vault.ensure("capstan-root", mint, tags)

    process.kill()
    with pytest.raises(Unreachable):
        vault.list()
    process.start()

    # 1. The same address and identity: nobody has to be told anything new.
    assert (process.url, process.environment) == (url, environment)
    # 2. Names, versions, tags and contents are there, for the old client and for a new one.
    assert vault.find({}, "capstan-root") == AzureKeyVault(url).find({}, "capstan-root") != []
    assert vault.get(stored) == mint.made[0]
    assert stored.tag[ROTATION_TAG] == "r1"
    # 3. Minting for the same rotation finds the first.
    assert vault.ensure("capstan-root", mint, tags) == stored
    assert len(mint.made) == 1


def test_what_is_deleted_stays_deleted_and_recoverable(process: KeyVaultProcess) -> None:
    from azure.identity import ManagedIdentityCredential
    from azure.keyvault.secrets import SecretClient

    with pytest.MonkeyPatch.context() as patch:
        for name, value in process.environment.items():
            patch.setenv(name, value)
        client = SecretClient(process.url, ManagedIdentityCredential())
        first = client.set_secret("a", "1", tags={"t": "1"})
        second = client.set_secret("a", "2")
        client.begin_delete_secret("a").wait()
        process.kill()
        process.start()
        client.begin_recover_deleted_secret("a").wait()
        versions = {found.version: found.tags for found in client.list_properties_of_secret_versions("a")}
        assert versions == {first.properties.version: {"t": "1"}, second.properties.version: None}
        assert client.get_secret("a").value == "2"
        client.close()


def test_its_state_is_readable_by_its_owner_only(process: KeyVaultProcess) -> None:
    assert (process.directory / "state.json").stat().st_mode & 0o077 == 0
