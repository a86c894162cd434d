"""What a lab can install: a trust system with its sample workloads, as the lab starts and stops it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from infra.lab import prober
    from infra.lab.client import KubeClient
    from infra.lab.kubelet.runtime import Programs
    from infra.lab.services import ServiceAddresses

JSON = dict[str, Any]


class System(Protocol):
    """A trust system of a lab.

    Attributes:
        mesh: Its data plane, for the prober.
        leaf_seconds: Life of its leaves.
    """

    @property
    def mesh(self) -> prober.Mesh:
        """Its data plane, for the prober."""

    @property
    def leaf_seconds(self) -> int:
        """Life of its leaves."""

    async def start(self, client: KubeClient, programs: Programs, directory: Path) -> None:
        """Before the kubelets: give them its programs, and start what is not in the cluster.

        Raises:
            OSError, RuntimeError: Something cannot be started.
        """

    async def install(self, client: KubeClient, addresses: ServiceAddresses) -> bool:
        """Install it, unless it is there already; True if it was installed now.

        Raises:
            ApiError: The cluster refuses an object.
            TimeoutError: It is not ready in time.
        """

    async def deploy(self, client: KubeClient, size: str, nodes: int) -> str:
        """Deploy the sample workloads; what they are, in words. Raises as `install`."""

    async def stop(self) -> None:
        """Stop what `start` started; the objects in the cluster stay."""

    def describe(self) -> JSON:
        """What lab.json tells of it besides what it tells of every lab."""
