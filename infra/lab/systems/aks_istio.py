"""The AKS Istio add-on, with its Key Vault and Resource Manager."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.lab import workloads
from infra.lab.aks.addon import Addon
from infra.lab.istio import envoy
from infra.lab.istio.mesh import IstioMesh
from infra.lab.systems.istio import OFFLINE, deploy, estate_of, keep_offline

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.aks.install import AksOptions
    from infra.lab.client import KubeClient
    from infra.lab.kubelet.runtime import Programs
    from infra.lab.services import ServiceAddresses

JSON = dict[str, Any]


class AksIstio:
    """An AKS cluster's mesh, as Azure runs it.

    Args:
        envoys: How many pods run a real Envoy.
        enabled: Whether the mesh is there from the start; without it, Resource Manager can be asked for it.
    """

    def __init__(
        self, options: AksOptions, resolve: Callable[[str], str], *, envoys: int = 0, enabled: bool = True
    ) -> None:
        self.mesh = IstioMesh(resolve)
        self._options = options
        self._envoys = envoys
        self._enabled = enabled
        self._addon: Addon | None = None
        self._offline = Path()

    @property
    def addon(self) -> Addon:
        """Its Azure side; once started."""
        if self._addon is None:
            raise RuntimeError("the add-on has not been started")
        return self._addon

    @property
    def leaf_seconds(self) -> int:
        """Life of its leaves."""
        return self._options.leaf_seconds

    async def start(self, client: KubeClient, programs: Programs, directory: Path) -> None:
        """Its images, its CSI driver, its Key Vault; see `System.start`."""
        if self._envoys:
            envoy.program()
        self.mesh.register(programs)
        self._offline = directory / OFFLINE
        self._addon = Addon(self._options, directory, enabled=self._enabled)
        keep_offline(self._offline, self._addon.ca.root)
        await self._addon.start(client, programs)

    async def install(self, client: KubeClient, addresses: ServiceAddresses) -> bool:
        """The control planes; see `System.install`."""
        del client
        await self.addon.install(addresses)
        return True

    async def deploy(self, client: KubeClient, size: str, nodes: int) -> str:
        """The sample workloads, spread over the revisions; see `System.deploy`."""
        injection = workloads.IstioInjection(self._options.revisions)
        return await deploy(client, injection, estate_of(size, envoys=self._envoys), nodes)

    async def stop(self) -> None:
        """Key Vault, Resource Manager, driver."""
        if self._addon is not None:
            await self._addon.stop()

    def describe(self) -> JSON:
        """Where the Key Vault and Resource Manager are."""
        own: JSON = {"namespace": "aks-istio-system", "envoys": self._envoys}
        return {**self.addon.describe(), **own, "offline_ca": str(self._offline.resolve())}

    def __str__(self) -> str:
        return f"the AKS Istio add-on ({', '.join(self._options.revisions)})"
