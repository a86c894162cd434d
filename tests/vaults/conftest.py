"""Vaults under test: the local one, and the Azure adapter on the lab's endpoint."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from capstan.vaults.azure_key_vault import AzureKeyVault
from capstan.vaults.local import LocalVault
from infra.lab.keyvault import KeyVault
from tests.vaults.harness import SPEED, Harness, Minting, StaticCredential, lab_clock, lab_sleep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def key_vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyVault]:
    """The lab's endpoint, in a thread of its own; empty it with the `azure` fixture."""
    vault = KeyVault(tmp_path_factory.mktemp("keyvault"), clock=lab_clock, lag=0.05 * SPEED)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(vault.start(), loop).result(10)
    vault.accept_token("lab-token")
    yield vault
    asyncio.run_coroutine_threadsafe(vault.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


@pytest.fixture
def open_azure(key_vault: KeyVault) -> Callable[[], AzureKeyVault]:
    """Opens the product's adapter on an endpoint that is empty and free of faults."""
    key_vault.store.secrets.clear()
    key_vault.faults.clear()
    key_vault.faults.requests.clear()

    def opened() -> AzureKeyVault:
        return AzureKeyVault(
            key_vault.url, StaticCredential(), sleep=lab_sleep, connection_verify=str(key_vault.ca_file)
        )

    return opened


@pytest.fixture(params=["local", "azure"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    """Every kind of vault in turn."""
    if request.param == "local":
        return Harness(lambda: LocalVault(tmp_path / "vault"))
    return Harness(request.getfixturevalue("open_azure"))


@pytest.fixture
def mint() -> Minting:
    """A counting mint."""
    return Minting()
