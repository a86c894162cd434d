"""The Azure provider of the secrets-store CSI driver: what a SecretProviderClass asks for, read from Key Vault.

Objects are read one after the other, each with a request of its own: whoever changes several secrets while that goes
on is read torn. Parameters: the provider's documentation, "SecretProviderClass parameters"
(azure.github.io/secrets-store-csi-driver-provider-azure).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
from azure.core.credentials import AccessToken
from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.keyvault.secrets.aio import SecretClient
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON = dict[str, Any]


class ProviderError(Exception):
    """The provider could not bring every object."""


@dataclass(frozen=True)
class WantedObject:
    """One entry of `parameters.objects`.

    Attributes:
        name: Of the Key Vault secret.
        version: "" for the latest.
        file: Its file in the volume: objectAlias, else the name.
        encoding: utf-8, base64 or hex: what the secret's text is.
    """

    name: str
    version: str
    file: str
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Content:
    """What was read.

    Attributes:
        files: File name -> content.
        versions: `secret/NAME` -> version.
    """

    files: dict[str, bytes]
    versions: dict[str, str]


@dataclass
class Delays:
    """What slows the provider down.

    Attributes:
        between_objects: Seconds between two reads of one mount.
    """

    between_objects: float = 0.0


class ManagedIdentity:
    """A token from the App Service form of the managed-identity endpoint, given by `vault.json`.

    azure-identity finds that endpoint in the environment only, and a lab may not change its process's environment.
    """

    def __init__(self, endpoint: str, header: str, ca_file: str) -> None:
        self._endpoint = endpoint
        self._header = header
        self._tls = ssl.create_default_context(cafile=ca_file)

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        """A token for the first scope's resource. Raises ClientAuthenticationError."""
        resource = scopes[0].removesuffix("/.default")
        async with httpx.AsyncClient(verify=self._tls, trust_env=False) as client:
            try:
                answer = await client.get(
                    self._endpoint,
                    params={"api-version": "2019-08-01", "resource": resource},
                    headers={"X-IDENTITY-HEADER": self._header},
                )
            except httpx.HTTPError as error:
                raise ClientAuthenticationError(f"identity endpoint: {error!r}") from error
        if answer.status_code != 200:
            raise ClientAuthenticationError(f"identity endpoint: {answer.status_code} {answer.text}")
        body = answer.json()
        return AccessToken(body["access_token"], min(int(body["expires_on"]), int(time.time()) + 86400))

    async def close(self) -> None:
        """Nothing is kept open."""

    async def __aenter__(self) -> ManagedIdentity:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@dataclass
class AzureProvider:
    """Reads from the vaults it can reach.

    Attributes:
        vaults: keyvaultName -> (URL, CA file). A real provider makes the URL of the name: https://NAME.vault.azure.net.
        identity: Of the add-on.
        delays: What slows it down.
    """

    vaults: Mapping[str, tuple[str, str]]
    identity: ManagedIdentity
    delays: Delays = field(default_factory=Delays)
    _clients: dict[str, SecretClient] = field(default_factory=dict)

    async def mount(self, parameters: Mapping[str, str]) -> Content:
        """Every object that the parameters ask for.

        Raises:
            ProviderError: One cannot be had, or the parameters are wrong; then none is given.
        """
        client = self._client(parameters)
        files: dict[str, bytes] = {}
        versions: dict[str, str] = {}
        for number, wanted in enumerate(parse_objects(parameters)):
            if number and self.delays.between_objects:
                await asyncio.sleep(self.delays.between_objects)
            try:
                secret = await client.get_secret(wanted.name, wanted.version or None)
            except AzureError as error:
                what = f"objectType:secret, objectName:{wanted.name}, objectVersion:{wanted.version}"
                raise ProviderError(f"failed to get {what}: {error}") from error
            files[wanted.file] = _decoded(wanted, secret.value or "")
            versions[f"secret/{wanted.name}"] = secret.properties.version or ""
        return Content(files, versions)

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    def _client(self, parameters: Mapping[str, str]) -> SecretClient:
        name = parameters.get("keyvaultName", "")
        if not name:
            raise ProviderError("keyvaultName is not set")
        if not parameters.get("tenantId") and not parameters.get("tenantID"):
            raise ProviderError("tenantId is not set")
        identities = ("useVMManagedIdentity", "usePodIdentity", "clientID")
        if not any(parameters.get(key, "").lower() not in ("", "false") for key in identities):
            raise ProviderError("nodePublishSecretRef: no identity given and useVMManagedIdentity is not true")
        if name not in self.vaults:
            raise ProviderError(f"dial tcp: lookup {name}.vault.azure.net: no such host")
        if name not in self._clients:
            url, ca_file = self.vaults[name]
            self._clients[name] = SecretClient(url, self.identity, connection_verify=ca_file, retry_total=1)
        return self._clients[name]


def parse_objects(parameters: Mapping[str, str]) -> list[WantedObject]:
    """The entries of `objects`: a YAML text with a list `array`, each of its entries a YAML text again.

    Raises:
        ProviderError: It is no such thing, or asks for keys or certificates (the add-on keeps its CA in secrets).
    """
    text = parameters.get("objects", "")
    if not text:
        raise ProviderError("objects is not set")
    yaml = YAML(typ="safe")
    try:
        entries = [yaml.load(entry) for entry in (yaml.load(text) or {}).get("array") or []]
        found = [_wanted(entry) for entry in entries]
    except (YAMLError, AttributeError, TypeError) as error:
        raise ProviderError(f"failed to yaml unmarshal objects: {error}") from error
    if not found:
        raise ProviderError("objects array is empty")
    files = [wanted.file for wanted in found]
    if len(set(files)) != len(files):
        raise ProviderError(f"two objects have one file name: {sorted(files)}")
    return found


def _wanted(entry: JSON) -> WantedObject:
    name, kind = str(entry.get("objectName") or "").strip(), str(entry.get("objectType") or "").strip()
    if not name:
        raise ProviderError("objectName is not set")
    if kind != "secret":
        raise ProviderError(f"objectName {name}: invalid objectType {kind!r}; this lab's provider knows secret")
    file = str(entry.get("objectAlias") or "").strip() or name
    encoding = str(entry.get("objectEncoding") or "utf-8").strip().lower()
    if encoding not in ("utf-8", "base64", "hex"):
        raise ProviderError(f"objectName {name}: invalid objectEncoding {encoding!r}, should be utf-8, base64 or hex")
    return WantedObject(name, str(entry.get("objectVersion") or "").strip(), file, encoding)


def _decoded(wanted: WantedObject, value: str) -> bytes:
    try:
        match wanted.encoding:
            case "base64":
                return base64.b64decode(value, validate=True)
            case "hex":
                return bytes.fromhex(value)
            case _:
                return value.encode()
    except (ValueError, binascii.Error) as error:
        raise ProviderError(f"objectName {wanted.name}: not {wanted.encoding}: {error}") from error
