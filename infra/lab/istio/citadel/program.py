"""Citadel as a container program (`docker.io/istio/citadel:VERSION`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infra.lab.kubelet.runtime import Container


async def program(container: Container) -> int:
    """Run Citadel until it is killed; the image's tag is its version."""
    raise NotImplementedError
