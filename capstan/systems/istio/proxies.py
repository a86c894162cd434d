"""What every sidecar and gateway really holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from capstan.cluster.workloads import PodRef
    from capstan.systems.istio.versions import Version
    from capstan.trust.observation import Peer


@dataclass(frozen=True, slots=True)
class Proxy:
    """One live proxy, as Kubernetes describes its pod and as it was read.

    Attributes:
        kind: `sidecar`, `gateway`, `waypoint` or `ztunnel`.
        revision: The revision that it was injected by; empty where its pod does not say.
        version: Of its image; None where the tag says nothing.
        env: Literal environment of its container, ProxyConfig's proxyMetadata included.
        updated: When it last took a certificate or roots; None if it does not say.
        leaving: Whether the pod is being deleted; it may still serve for a while.
    """

    peer: Peer
    ref: PodRef
    kind: str
    revision: str
    version: Version | None
    env: dict[str, str]
    updated: datetime | None
    leaving: bool
