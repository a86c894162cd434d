"""One vault, served over TLS on loopback."""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING, Any

from infra.lab.keyvault.api import Api
from infra.lab.keyvault.certificates import write_certificates
from infra.lab.keyvault.faults import Faults
from infra.lab.keyvault.persistence import State, load, save
from infra.lab.keyvault.serving import TlsServer
from infra.lab.keyvault.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class KeyVault:
    """A vault: `await start()`, then `.url` works until `await stop()`.

    Killed at any time and started again in the same directory it is the same vault, with every change it has answered.

    Args:
        directory: For its certificates, `vault.json` and state; made if absent.
        host: Loopback address.
        port: 0 takes the one it had in this directory before, else a free one.
        faults: What goes wrong; can be added to while it runs.
        clock: Seconds since the epoch.
        lag: Seconds that deletion and recovery take to show.
    """

    def __init__(
        self,
        directory: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Faults | None = None,
        clock: Callable[[], float] = time.time,
        lag: float = 0.3,
    ) -> None:
        self.faults = faults or Faults()
        self._directory = directory
        known = load(self._state_file)
        self.store = Store(clock, lag, known.secrets, known.backup_key)
        self.identity_header = known.identity_header or secrets.token_urlsafe(32)
        self._api = Api(self.store, self.faults, known.tokens, self.identity_header, clock, self._save)
        self._host = host
        self._port = port or known.port
        self._server = TlsServer(self._api, host)
        self.ca_file = directory / "ca.crt"

    @property
    def url(self) -> str:
        """`https://127.0.0.1:PORT`; once started."""
        return self._api.url

    @property
    def environment(self) -> dict[str, str]:
        """What azure-identity's DefaultAzureCredential and the client's TLS need to find in the environment.

        The credential is a managed identity as App Service offers it; AZURE_TOKEN_CREDENTIALS keeps the other kinds of
        credential from being tried first.
        """
        return {
            "IDENTITY_ENDPOINT": f"{self.url}/identity",
            "IDENTITY_HEADER": self.identity_header,
            "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
            "REQUESTS_CA_BUNDLE": str(self.ca_file),
        }

    def accepts(self, token: str) -> bool:
        """Whether this bearer token is let in; the lab's other Azure endpoints let in the same."""
        return token in self._api.tokens

    def accept_token(self, token: str) -> None:
        """Let this bearer token in, besides those the identity endpoint hands out."""
        self._api.tokens.add(token)
        self._save()

    def move_to_tenant(self, tenant: str) -> None:
        """The vault belongs to another tenant from now on; tokens of the former one are refused."""
        self._api.move_to_tenant(tenant)
        self._save()

    def demand_claims(self, claims: str) -> None:
        """Tokens so far lack these claims (JSON text), as when an administrator has revoked a session."""
        self._api.demand_claims(claims)
        self._save()

    async def start(self) -> None:
        """Serve; returns once the port is open and DIR/vault.json is written."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        _, certificate, key = write_certificates(self._directory, self._host)
        self._port = await self._server.start(self._port, certificate, key)
        self._api.url = f"https://{self._host}:{self._port}"
        self._save()
        self._announce()

    async def stop(self) -> None:
        """Stop serving; connections that clients keep open are cut, as when the process ends."""
        await self._server.stop()

    @property
    def _state_file(self) -> Path:
        return self._directory / "state.json"

    def _save(self) -> None:
        api, store = self._api, self.store
        save(self._state_file, State(self._port, self.identity_header, api.tokens, store.backup_key, store.secrets))

    def _announce(self) -> None:
        """Write DIR/vault.json, in one piece; it holds the identity's secret, so only the owner may read it."""
        content: dict[str, Any] = {"url": self.url, "ca": str(self.ca_file), "environment": self.environment}
        temporary = self._directory / ".vault.json"
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(self._directory / "vault.json")
