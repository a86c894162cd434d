"""istiod as a container program (`docker.io/istio/pilot:VERSION`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infra.lab.kubelet.runtime import Container


async def program(container: Container) -> int:
    """Run istiod until SIGTERM; exit code 255 if it cannot start. The image's tag is its version."""
    raise NotImplementedError
