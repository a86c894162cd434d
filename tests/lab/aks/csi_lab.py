"""A cluster whose nodes have the secrets-store driver, and the Key Vault it reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from infra.lab.aks import crds
from infra.lab.aks.driver import Rotation, SecretsStoreDriver
from infra.lab.aks.provider import AzureProvider, Delays, ManagedIdentity
from infra.lab.keyvault import KeyVault
from tests.lab.cluster.cluster_lab import ClusterLab

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infra.lab.client import KubeClient
    from infra.lab.kubelet.runtime import Container

JSON = dict[str, Any]
VAULT = "example-vault"
CLASSES = crds.classes("default")
STATUSES = crds.pod_statuses("default")
SECRETS = "/api/v1/namespaces/default/secrets"
POLL_SECONDS = 0.1


class CsiLab:
    """Context manager; `run` runs a coroutine on its loop."""

    def __init__(self, directory: Path) -> None:
        self.cluster = ClusterLab(directory / "cluster")
        self.vault = KeyVault(directory / "vault", lag=0.0)
        self.rotation = Rotation(enabled=True, poll_seconds=POLL_SECONDS)
        self.delays = Delays()
        self.run = self.cluster.run

    @property
    def client(self) -> KubeClient:
        return self.cluster.client

    def __enter__(self) -> Self:
        self.cluster.__enter__()
        self.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stop())
        self.cluster.__exit__()

    async def _start(self) -> None:
        await self.vault.start()
        found = self.vault.environment
        ca = str(self.vault.ca_file)
        identity = ManagedIdentity(found["IDENTITY_ENDPOINT"], found["IDENTITY_HEADER"], ca)
        self.provider = AzureProvider({VAULT: (self.vault.url, ca)}, identity, self.delays)
        self.driver = SecretsStoreDriver(self.client, self.provider, self.rotation)
        self.cluster.programs.drivers[crds.DRIVER] = self.driver
        await crds.install(self.client)

    async def _stop(self) -> None:
        await self.driver.stop()
        await self.provider.close()
        await self.vault.stop()

    # Steps of tests ------------------------------------------------------------------------------------------------

    def put(self, name: str, value: str) -> str:
        """A new version of a secret; its id."""
        _, version = self.vault.store.set(name, {"value": value})
        return version.id

    async def add_class(self, name: str, *objects: str, secret_objects: list[JSON] | None = None, **more: str) -> None:
        """A SecretProviderClass for `secret` or `secret=file`."""
        spec: JSON = {"provider": "azure", "parameters": {**parameters(*objects), **more}}
        if secret_objects:
            spec["secretObjects"] = secret_objects
        body = {"apiVersion": crds.API_VERSION, "kind": "SecretProviderClass", "metadata": {"name": name}, "spec": spec}
        await self.client.create(CLASSES, body)

    async def instance(self, pod: str) -> Container:
        return await self.cluster.instance(pod)

    async def status(self, pod: str, name: str, condition: Callable[[JSON], bool] = bool, seconds: float = 10) -> JSON:
        """The pod's SecretProviderClassPodStatus once it satisfies a condition."""
        key = ("default", f"{pod}-default-{name}")
        found = await self.cluster.until(STATUSES, lambda o: key in o and condition(o[key]), seconds)
        return found[key]


def parameters(*objects: str) -> dict[str, str]:
    """What a class of this vault needs."""
    entries = [entry.partition("=") for entry in objects]
    lines = [
        f'  - |\n    objectName: {name}\n    objectType: secret\n    objectAlias: "{file}"\n'
        for name, _, file in entries
    ]
    return {
        "keyvaultName": VAULT,
        "tenantId": "00000000-0000-0000-0000-000000000001",
        "useVMManagedIdentity": "true",
        "objects": "array:\n" + "".join(lines),
    }


def csi(name: str) -> JSON:
    """The volume "certs" of a pod that mounts a class, and its place in the container."""
    attributes = {"secretProviderClass": name}
    volume = {"driver": crds.DRIVER, "readOnly": True, "volumeAttributes": attributes}
    return {
        "volumes": [{"name": "certs", "csi": volume}],
        "containers": [
            {"name": "main", "image": "watched", "volumeMounts": [{"name": "certs", "mountPath": "/certs"}]}
        ],
    }


def mounting(pod: str, name: str) -> JSON:
    """A pod that mounts a class at /certs."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": csi(name)}


def versions(status: JSON) -> dict[str, str]:
    """Object id -> version of a SecretProviderClassPodStatus."""
    return {item["id"]: item["version"] for item in status["status"]["objects"]}


async def eventually(check: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.02)
