"""One look at a live Istio: what its CA is configured with, what every istiod signs with, what every proxy holds.

Declared places and live processes are never taken for each other. What cannot be read is reported as unreadable, with
the reason. A connection that is kept alive proves nothing here: only certificates that were seen count.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from capstan.systems.istio.layout import read_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from capstan.cluster.client import Cluster
    from capstan.pki.bundle import Bundle
    from capstan.pki.inspect import Certificate
    from capstan.systems.istio.istiods import Istiod
    from capstan.systems.istio.layout import Layout
    from capstan.systems.istio.proxies import Proxy
    from capstan.systems.istio.source import CaFiles, CaSource
    from capstan.trust.observation import ClusterObservation, Fingerprint

CONCURRENCY: Final = 16
PEER_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class View:
    """Everything that one look at a cluster brought.

    Attributes:
        files: The public texts at the CA's source; None if there is no source to read, or it could not be read.
        bundle: The roots at the source; where there is none, those of the control plane's own ConfigMap.
        issuer: The configured signing CA's certificate; None if it cannot be read.
        istiods: Every live replica of every revision.
        proxies: Every sidecar, gateway and waypoint, and one entry per certificate of every ztunnel.
        certificates: Every root and issuer met, and the `known` ones.
        troubles: What could not be read of the declared places, for a person.
    """

    layout: Layout
    files: CaFiles | None
    bundle: Bundle
    issuer: Certificate | None
    istiods: tuple[Istiod, ...]
    proxies: tuple[Proxy, ...]
    certificates: dict[Fingerprint, Certificate]
    observation: ClusterObservation
    troubles: tuple[str, ...] = ()


def observe(
    cluster: Cluster,
    namespace: str,
    source: CaSource | None,
    known: Iterable[Certificate] = (),
    *,
    concurrency: int = CONCURRENCY,
    timeout: float = PEER_TIMEOUT,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> View:
    """Read one cluster's Istio.

    Args:
        source: Where its CA is kept; None if that is not to be read.
        known: Roots and issuers to recognise besides those found.
        concurrency: Proxies read at a time.
        timeout: Seconds for each question to a proxy or an istiod.

    Raises:
        NotFound: No Istio in that namespace. Other CapstanErrors: the API cannot be read at all.
    """
    layout = read_layout(cluster, namespace)
    raise NotImplementedError(layout)
