"""An AKS cluster's Azure side, as one thing a lab starts: Key Vault, Resource Manager, CSI driver, Istio add-on.

    addon = Addon(options, directory)
    await addon.start(client, programs)      # before the kubelets: it gives them a CSI driver
    await addon.install(addresses)           # when services are up: control planes until they are ready
    await addon.stop()

In `directory` appear `keyvault/vault.json` and `keyvault/arm.json`: URL, CA, and the environment in which Azure's
clients find both.
"""

from __future__ import annotations

import dataclasses
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from azure.keyvault.secrets.aio import SecretClient

from infra.lab.aks import azure, crds, hierarchy, validator
from infra.lab.aks.arm.errors import not_supported
from infra.lab.aks.arm.validation import MESH, SECRETS_PROVIDER, duration_seconds, mesh_enabled, plugin_of
from infra.lab.aks.azure import CLUSTER_ID, FIELDS, REAL_POLL, SECRET_NAMES, TENANT, VAULT
from infra.lab.aks.driver import Rotation, SecretsStoreDriver
from infra.lab.aks.install import NAMESPACE, AksOptions, CaObjects, add_revision, install, provider_class
from infra.lab.aks.provider import AzureProvider, Delays, ManagedIdentity
from infra.lab.keyvault import KeyVault

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from infra.lab.aks.arm import ResourceManager
    from infra.lab.client import KubeClient
    from infra.lab.kubelet.runtime import Programs
    from infra.lab.services import ServiceAddresses

JSON = dict[str, Any]


class Addon:
    """See the module.

    Args:
        options: What to install.
        directory: The lab's own.
        enabled: Whether the mesh is there from the start; without it the ARM call that enables it installs it.

    Attributes:
        ca: The root and intermediate with which the add-on began.
        rotation: Settings of the CSI driver; the ARM call changes them.
        delays: Of the provider.
    """

    def __init__(self, options: AksOptions, directory: Path, *, enabled: bool = True) -> None:
        self.options = options
        self.enabled = enabled
        self.directory = directory / "keyvault"
        self.ca = hierarchy.mint("A", now=datetime.now(UTC), identifiers=options.identifiers)
        self.rotation = Rotation(options.rotation, options.poll_seconds)
        self.delays = Delays(options.between_objects)
        if (self.directory / "state.json").exists():  # a former lab's: its cluster is gone
            shutil.rmtree(self.directory)
        self.vault = KeyVault(self.directory)
        self.arm: ResourceManager | None = None
        self._client: KubeClient | None = None
        self._addresses: ServiceAddresses | None = None
        self._provider: AzureProvider | None = None
        self._driver: SecretsStoreDriver | None = None

    @property
    def client(self) -> KubeClient:
        """An administrator's connection; once started."""
        if self._client is None:
            raise RuntimeError("the add-on has not been started")
        return self._client

    async def start(self, client: KubeClient, programs: Programs) -> None:
        """Serve the vault and Resource Manager, and give the nodes their CSI driver.

        Raises:
            RuntimeError: A port cannot be opened.
        """
        self._client = client
        await self.vault.start()
        environment = self.vault.environment
        identity = ManagedIdentity(
            environment["IDENTITY_ENDPOINT"], environment["IDENTITY_HEADER"], str(self.vault.ca_file)
        )
        self._provider = AzureProvider({VAULT: (self.vault.url, str(self.vault.ca_file))}, identity, self.delays)
        self._driver = SecretsStoreDriver(client, self._provider, self.rotation)
        programs.drivers[crds.DRIVER] = self._driver
        validator.register(programs)
        revisions = self.options.revisions if self.enabled else ()
        body = azure.cluster_body(revisions, rotation=self.options.rotation)
        self.arm = azure.resource_manager(self.directory, self.vault, self._apply, body)
        await self.arm.start()
        async with SecretClient(self.vault.url, identity, connection_verify=str(self.vault.ca_file)) as secrets:
            for file, text in self.ca.texts().items():
                await secrets.set_secret(SECRET_NAMES[file], text, content_type="application/x-pem-file")

    async def install(self, addresses: ServiceAddresses) -> None:
        """Install the mesh, unless Resource Manager shall be asked for it; raises as `install`."""
        self._addresses = addresses
        if self.enabled:
            await install(self.client, self.options, self._ca_objects(SECRET_NAMES), addresses)
        else:
            await crds.install(self.client)

    async def stop(self) -> None:
        """Stop everything; the objects in the cluster stay."""
        if self._driver is not None:
            await self._driver.stop()
        if self._provider is not None:
            await self._provider.close()
        if self.arm is not None:
            await self.arm.stop()
        await self.vault.stop()

    def describe(self) -> JSON:
        """What lab.json tells of it."""
        return {
            "vault": str(self.directory / "vault.json"),
            "arm": str(self.directory / "arm.json"),
            "cluster_id": CLUSTER_ID,
            "key_vault": self.vault.url,
            "revisions": list(self.options.revisions),
            "ca_delivery": self.options.ca_delivery,
        }

    def _ca_objects(self, names: Mapping[str, str]) -> CaObjects:
        return CaObjects(VAULT, TENANT, names)

    async def _apply(self, new: JSON, old: JSON | None) -> None:
        """Carry out a managed cluster's new body, as far as the add-ons go. Raises ArmError."""
        config = ((new.get("addonProfiles") or {}).get(SECRETS_PROVIDER) or {}).get("config") or {}
        self.rotation.enabled = str(config.get("enableSecretRotation", "false")).lower() == "true"
        scale = self.options.poll_seconds / duration_seconds(REAL_POLL)
        self.rotation.poll_seconds = duration_seconds(str(config.get("rotationPollInterval", REAL_POLL))) * scale
        if old is not None and mesh_enabled(old) and not mesh_enabled(new):
            raise not_supported("This lab does not take its service mesh away.", MESH)
        if not mesh_enabled(new) or self._addresses is None:
            return
        plugin = plugin_of(new)
        if plugin is None:
            raise not_supported("This lab's add-on has a plug-in certificate authority.", MESH)
        names = {file: plugin[field] for file, field in FIELDS.items()}
        asked = tuple((new["serviceMeshProfile"].get("istio") or {}).get("revisions") or self.options.revisions)
        if old is None or not mesh_enabled(old):
            self.options = dataclasses.replace(self.options, revisions=asked)
            await install(self.client, self.options, self._ca_objects(names), self._addresses)
            return
        await self._change(asked, names, self._addresses)

    async def _change(self, asked: tuple[str, ...], names: Mapping[str, str], addresses: ServiceAddresses) -> None:
        """Other secrets, or a further revision, for a mesh that runs. Raises ArmError."""
        if missing := set(self.options.revisions) - set(asked):
            raise not_supported(
                f"This lab does not take revisions away: {', '.join(sorted(missing))}.", f"{MESH}.istio.revisions"
            )
        ca = self._ca_objects(names)
        path = crds.classes(NAMESPACE)
        for revision in self.options.revisions:
            wanted = provider_class(self.options, revision, ca)
            await self.client.patch(f"{path}/{wanted['metadata']['name']}", {"spec": wanted["spec"]})
        for revision in asked:
            if revision not in self.options.revisions:
                await self.client.create(path, provider_class(self.options, revision, ca))
                await add_revision(self.client, self.options, revision, addresses)
        self.options = dataclasses.replace(self.options, revisions=asked)
