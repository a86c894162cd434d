"""Presenting a certificate to live peers, to see whom they let in.

Two kinds of peers verify client certificates and can be reached by a port-forward:

- istiod on 15012, with the roots it had at its start (ClientCAs are built once): it verifies a certificate if one is
  given, which is how machines outside the cluster come by their leaves;
- sidecars on the inbound port 15006, with the roots of their last certificate, where that port answers. Istio's own
  configuration of it serves connections that were redirected to it, and closes those that were made to the port
  itself (filter chain virtualInbound-blackhole) without a byte. Such a sidecar cannot be asked: it is not in the
  report, and whom it trusts is what was read from it.

A ztunnel and a waypoint take mTLS on 15008 for others, a gateway has no inbound port of the mesh at all: their roots
are read, too, not tried. A peer that was asked and says nothing is never proof of anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from capstan.cluster.parallel import map_bounded
from capstan.cluster.peer_tls import PING, ClientCertificate, SpeaksNoTls, TlsRefused, tls_peer
from capstan.errors import CapstanError
from capstan.systems.base import Probe, ProbeReport, Verdict
from capstan.systems.istio.ca_client import server_name
from capstan.systems.istio.layout import GRPC_TLS_PORT
from capstan.systems.istio.observe import CONCURRENCY, PEER_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from capstan.cluster.client import Cluster
    from capstan.systems.istio.observe import View

INBOUND_PORT: Final = 15006
INBOUND_ALPN: Final = (b"istio-http/1.1", b"istio")
"""How one sidecar asks another for mTLS (pilot/pkg/networking/core: `istio`, and `istio-http/1.1` for HTTP)."""
HTTP2_ALPN: Final = (b"h2",)
_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""An HTTP/2 client's preface and empty SETTINGS (RFC 9113 section 3.4), which every HTTP/2 server answers."""


@dataclass(frozen=True, slots=True)
class _Target:
    """One port to try."""

    name: str
    namespace: str
    pod: str
    port: int
    sni: str
    alpn: tuple[bytes, ...]
    ping: bytes


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
    """Present the certificate to the peers of a view that can be asked.

    Args:
        limit: Ask at most so many, taken in turn from every namespace.
        wanted: Ask only these peers (by name).
    """
    chosen = [target for target in _targets(cluster, view) if not wanted or target.name in wanted]
    if limit is not None:
        chosen = _spread(chosen)[:limit]

    def one(target: _Target) -> Probe | None:
        try:
            answer = tls_peer(
                cluster, target.namespace, target.pod, target.port, target.sni, client_certificate=certificate,
                alpn=target.alpn, ping=target.ping, timeout=timeout,
            )  # fmt: skip
        except SpeaksNoTls:
            return None if target.port == INBOUND_PORT else Probe(target.name, Verdict.NO_ANSWER, "it speaks no TLS")
        except CapstanError as error:
            return Probe(target.name, Verdict.NO_ANSWER, f"{error.what}: {error.observed}")
        if isinstance(answer, TlsRefused):
            return Probe(target.name, Verdict.REFUSED, answer.alert)
        return Probe(target.name, Verdict.ACCEPTED, answer.protocol)

    probes = map_bounded(one, chosen, limit=concurrency)
    return ProbeReport(tuple(found for found in probes if found is not None))


def _targets(cluster: Cluster, view: View) -> list[_Target]:
    found = [
        _Target(
            proxy.peer.name, proxy.ref.namespace, proxy.ref.name, INBOUND_PORT,
            f"outbound_.80_._.{proxy.peer.owner.name}.{proxy.ref.namespace}.svc.cluster.local", INBOUND_ALPN, PING,
        )
        for proxy in view.proxies
        if proxy.kind == "sidecar" and not proxy.leaving
    ]  # fmt: skip
    found += [
        _Target(
            f"{cluster.name}/{istiod.ref.namespace}/{istiod.ref.name}", istiod.ref.namespace, istiod.ref.name,
            GRPC_TLS_PORT, server_name(istiod.ref.namespace), HTTP2_ALPN, _HTTP2_PREFACE,
        )
        for istiod in view.istiods
        if istiod.ready and not istiod.leaving
    ]  # fmt: skip
    return found


def _spread(targets: Sequence[_Target]) -> list[_Target]:
    """The targets in an order that takes one of each namespace in turn."""
    groups: dict[str, list[_Target]] = {}
    for target in sorted(targets, key=lambda target: target.name):
        groups.setdefault(target.namespace, []).append(target)
    return [target for row in zip_longest(*groups.values()) for target in row if target is not None]
