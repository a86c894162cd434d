"""Presenting a certificate to live proxies, to see whom they let in.

That a root is gone from a list proves less than that its leaf is refused. Linkerd's proxy asks every TLS client of its
admin port for a certificate (optional) and ends the connection when it does not verify.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from capstan.cluster.parallel import map_bounded
from capstan.cluster.peer_tls import ClientCertificate, TlsRefused, tls_peer
from capstan.errors import CapstanError
from capstan.systems.base import Probe, ProbeReport, Verdict
from capstan.systems.linkerd.observe import CONCURRENCY, PEER_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from capstan.cluster.client import Cluster
    from capstan.systems.linkerd.observe import Proxy, View


def probe(
    cluster: Cluster,
    view: View,
    certificate: ClientCertificate,
    *,
    limit: int | None = None,
    wanted: Collection[str] = (),
    concurrency: int = CONCURRENCY,
    timeout: float = PEER_TIMEOUT,
) -> ProbeReport:
    """Present the certificate to the proxies of a view.

    Args:
        limit: Ask at most so many, taken in turn from every namespace.
        wanted: Ask only these peers (by name).
    """
    chosen = [proxy for proxy in view.proxies if proxy.sni and (not wanted or proxy.peer.name in wanted)]
    if limit is not None:
        chosen = spread(chosen)[:limit]

    def one(proxy: Proxy) -> Probe:
        try:
            answer = tls_peer(
                cluster, proxy.peer.namespace, proxy.peer.pod, proxy.port, proxy.sni,
                client_certificate=certificate, timeout=timeout,
            )  # fmt: skip
        except CapstanError as error:
            return Probe(proxy.peer.name, Verdict.NO_ANSWER, f"{error.what}: {error.observed}")
        if isinstance(answer, TlsRefused):
            return Probe(proxy.peer.name, Verdict.REFUSED, answer.alert)
        return Probe(proxy.peer.name, Verdict.ACCEPTED, answer.protocol)

    return ProbeReport(tuple(map_bounded(one, chosen, limit=concurrency)))


def spread(proxies: Sequence[Proxy]) -> list[Proxy]:
    """The proxies in an order that takes one of each namespace in turn."""
    groups: dict[str, list[Proxy]] = {}
    for proxy in sorted(proxies, key=lambda proxy: proxy.peer.name):
        groups.setdefault(proxy.peer.namespace, []).append(proxy)
    return [proxy for row in zip_longest(*groups.values()) for proxy in row if proxy is not None]
