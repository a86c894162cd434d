"""Microsoft's two clients of Key Vault secrets, unmodified, behind one way of calling them."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from azure.core.credentials import AccessToken
from azure.keyvault.secrets import SecretClient
from azure.keyvault.secrets.aio import SecretClient as AsyncSecretClient

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from infra.lab.keyvault import KeyVault

POLLING_SECONDS = 0.02


@dataclass
class Credential:
    """Gets tokens straight from the vault, and remembers what it was asked for. `get` makes the next token."""

    get: Callable[[], str]
    asked: list[dict[str, Any]] = field(default_factory=list)

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        self.asked.append({"scopes": scopes, **options})
        return AccessToken(self.get(), int(time.time()) + 3600)


class AsyncCredential(Credential):
    """The same for the asynchronous client."""

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:  # type: ignore[override]
        return super().get_token(*scopes, **options)

    async def close(self) -> None:
        return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return


class Calls:
    """What both clients can do, each call waiting until it is done."""

    credential: Credential

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Any method that answers with one thing."""
        raise NotImplementedError

    def listed(self, method: str, *arguments: Any, **options: Any) -> list[Any]:
        """Any method that lists."""
        raise NotImplementedError

    def pages(self, method: str, *arguments: Any, **options: Any) -> list[list[Any]]:
        """The same, page by page."""
        raise NotImplementedError

    def delete(self, name: str) -> Any:
        """Delete, and wait until the deletion shows."""
        raise NotImplementedError

    def recover(self, name: str) -> Any:
        """Recover, and wait until the recovery shows."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the client's connections."""
        raise NotImplementedError


class SyncCalls(Calls):
    """azure.keyvault.secrets.SecretClient."""

    def __init__(self, vault: KeyVault, get: Callable[[], str], **options: Any) -> None:
        self.credential = Credential(get)
        self.client = SecretClient(
            vault.url, self.credential, connection_verify=str(vault.ca_file), retry_backoff_factor=0.01, **options
        )

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self.client, method)(*arguments, **options)

    def listed(self, method: str, *arguments: Any, **options: Any) -> list[Any]:
        return list(getattr(self.client, method)(*arguments, **options))

    def pages(self, method: str, *arguments: Any, **options: Any) -> list[list[Any]]:
        return [list(page) for page in getattr(self.client, method)(*arguments, **options).by_page()]

    def delete(self, name: str) -> Any:
        poller = self.client.begin_delete_secret(name, _polling_interval=POLLING_SECONDS)
        poller.wait()
        return poller.result()

    def recover(self, name: str) -> Any:
        poller = self.client.begin_recover_deleted_secret(name, _polling_interval=POLLING_SECONDS)
        poller.wait()
        return poller.result()

    def close(self) -> None:
        self.client.close()


class AsyncCalls(Calls):
    """azure.keyvault.secrets.aio.SecretClient, on a loop in a thread of its own."""

    def __init__(self, vault: KeyVault, get: Callable[[], str], **options: Any) -> None:
        self.credential = AsyncCredential(get)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        async def made() -> AsyncSecretClient:
            return AsyncSecretClient(
                vault.url,
                self.credential,  # type: ignore[arg-type]  # it has all that the protocol asks for
                connection_verify=str(vault.ca_file),
                retry_backoff_factor=0.01,
                **options,
            )

        self.client = self._run(made())

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._run(getattr(self.client, method)(*arguments, **options))

    def listed(self, method: str, *arguments: Any, **options: Any) -> list[Any]:
        async def collected() -> list[Any]:
            return [item async for item in getattr(self.client, method)(*arguments, **options)]

        return list(self._run(collected()))

    def pages(self, method: str, *arguments: Any, **options: Any) -> list[list[Any]]:
        async def collected() -> list[list[Any]]:
            pages = getattr(self.client, method)(*arguments, **options).by_page()
            return [[item async for item in page] async for page in pages]

        return list(self._run(collected()))

    def delete(self, name: str) -> Any:
        return self.call("delete_secret", name, _polling_interval=POLLING_SECONDS)

    def recover(self, name: str) -> Any:
        return self.call("recover_deleted_secret", name, _polling_interval=POLLING_SECONDS)

    def close(self) -> None:
        self._run(self.client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)
