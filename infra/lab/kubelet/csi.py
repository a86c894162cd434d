"""What a kubelet asks of a CSI driver: put a volume's files where the pod's containers will see them.

The two calls stand for NodePublishVolume and NodeUnpublishVolume of the CSI specification. How a driver refreshes what
it has published (by a poll of its own, or when the kubelet publishes again) is its own affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from infra.lab.kubelet.environment import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

JSON = dict[str, Any]


class MountError(ConfigError):
    """A volume that its driver cannot publish now; the kubelet tries again."""

    def __init__(self, volume: str, description: str) -> None:
        super().__init__(f'volume "{volume}" : rpc error: code = Unknown desc = {description}')


class CsiDriver(Protocol):
    """A driver, by the name that pods ask for in `volumes[].csi.driver`."""

    async def publish(self, pod: JSON, volume: JSON, target: Path) -> None:
        """Fill `target` for this pod. Raises MountError."""

    async def unpublish(self, pod_uid: str, volume: str) -> None:
        """The pod has ended: stop whatever refreshes this volume. Idempotent."""
