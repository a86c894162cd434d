"""Who is connected to the istiods: the list against which "every proxy was read" is checked.

It catches what is no pod of this cluster: virtual machines, and proxies of other clusters that these istiods serve.
Source: pilot/pkg/xds/debug.go, `/debug/connections` on the monitoring port; a connection's id is the proxy's id
(`POD.NAMESPACE`), a hyphen, and a running number. Requests from the pod's own loopback need no token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from capstan.cluster.parallel import map_bounded
from capstan.cluster.portforward import http_get
from capstan.errors import CapstanError, InvalidInput, NotFound
from capstan.systems.asking import ask_twice
from capstan.systems.istio.layout import MONITORING_PORT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capstan.cluster.client import Cluster
    from capstan.cluster.workloads import PodRef

PATH: Final = "/debug/connections"
MAX_LIST: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Connected:
    """The proxies that are connected to any istiod.

    Attributes:
        proxies: (namespace, name) of each.
        troubles: Which istiods did not say, and why.
    """

    proxies: frozenset[tuple[str, str]]
    troubles: tuple[str, ...]


def read_connections(
    cluster: Cluster, istiods: Iterable[PodRef], *, timeout: float, concurrency: int
) -> Connected:  # fmt: skip
    """Ask every istiod who is connected to it; nothing is raised."""
    answers = map_bounded(lambda ref: _ask(cluster, ref, timeout), istiods, limit=concurrency)
    proxies = frozenset[tuple[str, str]]().union(*(found for found, _ in answers))
    return Connected(proxies, tuple(problem for _, problem in answers if problem))


def read_list(body: bytes, where: str) -> frozenset[tuple[str, str]]:
    """The proxies in an answer; what names no namespace (istioctl's own debug connections) is left out.

    Raises:
        InvalidInput: This is no such answer.
    """
    try:
        value = json.loads(body)
        clients = value.get("clients") or []
        names = [str(client["connectionId"]).rpartition("-")[0] for client in clients]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise InvalidInput(
            "no list of connections", where=where, observed=type(error).__name__, expected="`clients` with connectionId"
        ) from error
    pairs = (name.rpartition(".") for name in names)
    return frozenset((namespace, pod) for pod, dot, namespace in pairs if dot and pod and namespace)


def _ask(cluster: Cluster, ref: PodRef, timeout: float) -> tuple[frozenset[tuple[str, str]], str]:
    where = f"istiod {ref.namespace}/{ref.name} in cluster {cluster.name}"
    try:
        status, body = ask_twice(
            cluster,
            lambda: http_get(cluster, ref.namespace, ref.name, MONITORING_PORT, PATH, timeout=timeout, limit=MAX_LIST),
        )
        if status != 200:
            raise NotFound("no list of connections", where=where, observed=f"HTTP {status}", expected=PATH)
        return read_list(body, where), ""
    except CapstanError as error:
        return frozenset(), f"{where} does not say who is connected: {error.what}: {error.observed}"
