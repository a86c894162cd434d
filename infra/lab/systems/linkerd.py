"""Linkerd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab import workloads
from infra.lab.linkerd import install, manifests
from infra.lab.linkerd.mesh import Mesh

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infra.lab.client import KubeClient
    from infra.lab.kubelet.runtime import Programs
    from infra.lab.services import ServiceAddresses

JSON = dict[str, Any]


class Linkerd:
    """A Linkerd whose keys the lab makes."""

    def __init__(self, options: manifests.Options, resolve: Callable[[str], str]) -> None:
        self.mesh = Mesh(resolve)
        self._options = options

    @property
    def leaf_seconds(self) -> int:
        """Life of its leaves."""
        return self._options.leaf_seconds

    async def start(self, client: KubeClient, programs: Programs, directory: Path) -> None:
        """Its images."""
        del client, directory
        self.mesh.register(programs)

    async def install(self, client: KubeClient, addresses: ServiceAddresses) -> bool:
        """The control plane; see `System.install`."""
        if await install.is_installed(client, self._options.namespace):
            return False
        material = install.mint(addresses, self._options)
        await install.install(client, self._options, material)
        return True

    async def deploy(self, client: KubeClient, size: str, nodes: int) -> str:
        """The sample workloads; see `System.deploy`."""
        estate = workloads.SIZES[size]
        await workloads.deploy(client, estate, workloads.LinkerdInjection())
        return f"{estate.meshed_pods(nodes)} meshed pods in {len(estate.namespaces)} namespaces"

    async def stop(self) -> None:
        """Nothing runs outside the cluster."""

    def describe(self) -> JSON:
        """Nothing more to tell."""
        return {}

    def __str__(self) -> str:
        return f"Linkerd {self._options.version}"
