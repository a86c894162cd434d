"""The secrets-store CSI driver: mounts, rotation by polling, pod statuses and Secrets synced from mounted files.

Each volume is polled on a clock of its own, as each node's driver does: two replicas of a control plane get new
material at different times. Within a volume the files change at once (the driver writes as a kubelet does); what they
hold may still be torn, because the provider reads the vault object by object.

Names, labels, Events and statuses: pkg/secrets-store, pkg/rotation and controllers of
kubernetes-sigs/secrets-store-csi-driver.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.lab.aks import crds
from infra.lab.aks.provider import Content, ProviderError
from infra.lab.aks.synced import sync
from infra.lab.client import ApiError
from infra.lab.events import record
from infra.lab.kubelet import atomic
from infra.lab.kubelet.csi import MountError

if TYPE_CHECKING:
    from pathlib import Path

    from infra.lab.aks.provider import AzureProvider
    from infra.lab.client import KubeClient

JSON = dict[str, Any]

NODE_LABEL = "internal.secrets-store.csi.k8s.io/node-name"
PROVIDER = "azure"
COMPONENT = "csi-secrets-store-rotation"
CONFLICTS = 5
_RANDOM = random.Random()  # own state: a caller's seed of the global one is left alone

log = logging.getLogger(__name__)


@dataclass
class Rotation:
    """The add-on's settings; they may change while it runs.

    Attributes:
        enabled: `enableSecretRotation`; false: what was mounted stays until the pod ends.
        poll_seconds: `rotationPollInterval`, in the lab's time.
    """

    enabled: bool = True
    poll_seconds: float = 1.0


@dataclass
class Mount:
    """One published volume."""

    pod: JSON
    volume: str
    class_name: str
    target: Path
    versions: dict[str, str]
    task: asyncio.Task[None] | None = None

    @property
    def namespace(self) -> str:
        return str(self.pod["metadata"]["namespace"])

    @property
    def target_path(self) -> str:
        uid = self.pod["metadata"]["uid"]
        return f"/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/{self.volume}/mount"


class SecretsStoreDriver:
    """One driver for all nodes of a lab.

    Args:
        client: An administrator's connection.
        provider: Reads the vault.
        rotation: Settings, shared with whoever changes them.
    """

    def __init__(self, client: KubeClient, provider: AzureProvider, rotation: Rotation) -> None:
        self._client = client
        self._provider = provider
        self._rotation = rotation
        self._mounts: dict[tuple[str, str], Mount] = {}

    async def publish(self, pod: JSON, volume: JSON, target: Path) -> None:
        """Read every object, write the files, tell of their versions, and go on polling. Raises MountError."""
        metadata, csi = pod["metadata"], volume["csi"]
        where = f"{metadata['namespace']}/{metadata['name']}"
        name = (csi.get("volumeAttributes") or {}).get("secretProviderClass", "")
        if not name:
            raise MountError(volume["name"], "secretProviderClass is not set")
        if not csi.get("readOnly"):
            raise MountError(volume["name"], "Readonly is not true in request")
        mount = Mount(pod, volume["name"], name, target, {})
        try:
            provider_class = await self._class(mount)
            content = await self._provider.mount(provider_class["spec"].get("parameters") or {})
            _write(target, content)
            mount.versions = content.versions
            await self._tell(mount)
            await sync(self._client, provider_class, pod, content.files)
        except (ApiError, ProviderError) as error:
            raise MountError(
                volume["name"], f"failed to mount secrets store objects for pod {where}, err: {error}"
            ) from error
        mount.task = asyncio.create_task(self._follow(mount), name=f"secrets-store {where}")
        self._mounts[metadata["uid"], volume["name"]] = mount

    async def unpublish(self, pod_uid: str, volume: str) -> None:
        """Stop polling for a volume; its status object goes with the pod that owns it."""
        mount = self._mounts.pop((pod_uid, volume), None)
        if mount is not None and mount.task is not None:
            mount.task.cancel()
            await asyncio.gather(mount.task, return_exceptions=True)

    def mounts(self) -> list[Mount]:
        """What is published now."""
        return list(self._mounts.values())

    async def stop(self) -> None:
        """Stop polling for all volumes."""
        for uid, volume in list(self._mounts):
            await self.unpublish(uid, volume)

    async def _follow(self, mount: Mount) -> None:
        await asyncio.sleep(_RANDOM.uniform(0.0, self._rotation.poll_seconds))  # nodes have not started together
        while True:
            await asyncio.sleep(self._rotation.poll_seconds)
            if not self._rotation.enabled:
                continue
            try:
                await self._rotate(mount)
            except (ApiError, ProviderError) as error:
                log.debug("rotation of %s: %s", mount.target_path, error)
                await self._event(mount, "Warning", "MountRotationFailed", f"provider mount err: {error}")

    async def _rotate(self, mount: Mount) -> None:
        provider_class = await self._class(mount)
        content = await self._provider.mount(provider_class["spec"].get("parameters") or {})
        _write(mount.target, content)
        if content.versions != mount.versions:
            mount.versions = content.versions
            where = f"{mount.namespace}/{mount.class_name}"
            await self._event(
                mount, "Normal", "MountRotationComplete", f"successfully rotated mounted contents for spc {where}"
            )
        await self._tell(mount)
        for name in await sync(self._client, provider_class, mount.pod, content.files):
            await self._event(
                mount,
                "Normal",
                "SecretRotationComplete",
                f"successfully rotated K8s secret {name} for spc {mount.namespace}/{mount.class_name}",
            )

    async def _class(self, mount: Mount) -> JSON:
        found = await self._client.get(f"{crds.classes(mount.namespace)}/{mount.class_name}")
        provider = (found.get("spec") or {}).get("provider")
        if provider != PROVIDER:
            raise ProviderError(f"provider not found: provider {provider!r}")
        return found

    async def _tell(self, mount: Mount) -> None:
        """Bring the volume's SecretProviderClassPodStatus up to date."""
        metadata = mount.pod["metadata"]
        name = f"{metadata['name']}-{mount.namespace}-{mount.class_name}"
        path = crds.pod_statuses(mount.namespace)
        status: JSON = {
            "mounted": True,
            "objects": [{"id": key, "version": value} for key, value in sorted(mount.versions.items())],
            "podName": metadata["name"],
            "secretProviderClassName": mount.class_name,
            "targetPath": mount.target_path,
        }
        wanted: JSON = {
            "name": name,
            "namespace": mount.namespace,
            "labels": {NODE_LABEL: mount.pod["spec"].get("nodeName", "")},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}],
        }
        body: JSON = {
            "apiVersion": crds.API_VERSION,
            "kind": "SecretProviderClassPodStatus",
            "metadata": wanted,
            "status": status,
        }
        for attempt in range(CONFLICTS):
            try:
                try:
                    held = await self._client.get(f"{path}/{name}")
                except ApiError as error:
                    if error.status != 404:
                        raise
                    await self._client.create(path, body)
                    return
                same_pod = held["metadata"].get("ownerReferences") == wanted["ownerReferences"]
                if same_pod and held.get("status") == status:
                    return
                kept = {**held["metadata"], **wanted}
                await self._client.replace(f"{path}/{name}", {**body, "metadata": kept})
            except ApiError as error:
                if error.status != 409 or attempt == CONFLICTS - 1:
                    raise
            else:
                return

    async def _event(self, mount: Mount, kind: str, reason: str, message: str) -> None:
        await record(self._client, mount.pod, kind, reason, message, component=COMPONENT)


def _write(target: Path, content: Content) -> None:
    atomic.write(target, {name: atomic.Entry(data) for name, data in content.files.items()})
