"""What every istiod signs with, asked of each replica."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capstan.cluster.workloads import PodRef
    from capstan.pki.bundle import Bundle
    from capstan.pki.inspect import Certificate
    from capstan.systems.istio.versions import Version
    from capstan.trust.observation import Signer


@dataclass(frozen=True, slots=True)
class Istiod:
    """One live replica.

    Attributes:
        revision: Name of its revision.
        version: Of the pod's own image; None where the tag says nothing.
        env: Literal environment of the pod's container (a pod may be older than its Deployment's template).
        ready: Whether Kubernetes sends it traffic.
        chain: What it signs with: the issuer first, then what it sends along; empty if it was not asked or refused.
        roots: The roots that it hands out with a leaf; None if that could not be read.
        serving: The certificates that it serves its own port 15012 with, leaf first.
        signer: The same as the core of Capstan judges it.
        leaving: Whether the pod is being deleted.
    """

    ref: PodRef
    revision: str
    version: Version | None
    env: dict[str, str]
    ready: bool
    chain: tuple[Certificate, ...]
    roots: Bundle | None
    serving: tuple[Certificate, ...]
    signer: Signer
    leaving: bool
