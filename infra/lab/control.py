"""What others can ask a lab: its judge's counts, what every proxy truly holds, an outage of the API server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab import pki
from infra.lab.linkerd import httpd
from infra.lab.prober import issuer_fingerprint, issuers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509

    from infra.lab.outage import Outages
    from infra.lab.prober import Mesh, Prober, Proxy


class Control:
    """The lab's control endpoint, apart from its API server and alive while that is not (loopback, no authentication).

    GET /healthz; GET /prober; POST /prober/reset; GET /pods; POST /outage (`infra.lab.outage`).
    """

    def __init__(self, mesh: Mesh, prober: Prober, outages: Outages) -> None:
        self._mesh = mesh
        self._prober = prober
        self._outages = outages

    async def handle(self, request: httpd.Request) -> httpd.Response:
        """Answer one request."""
        match request.method, request.path:
            case "GET", "/healthz":
                return httpd.Response.text("ok\n")
            case "GET", "/prober":
                return httpd.Response.json(self._prober.counts.to_json())
            case "POST", "/prober/reset":
                before = self._prober.counts.to_json()
                self._prober.reset()
                return httpd.Response.json(before)
            case "GET", "/pods":
                known = issuers(self._mesh)
                found = [_describe(proxy, known) for proxy in self._mesh.proxies.values()]
                return httpd.Response.json(found + self._mesh.others())
            case "POST", "/outage":
                return self._outages.begin(request.body)
            case _:
                return httpd.NOT_FOUND


def _describe(proxy: Proxy, known: Sequence[x509.Certificate]) -> dict[str, Any]:
    """What a proxy truly holds; full fingerprints."""
    found: dict[str, Any] = {
        "namespace": proxy.container.namespace,
        "pod": proxy.container.pod_name,
        "uid": proxy.uid,
        "kind": proxy.kind,
        "ip": proxy.container.ip,
        "node": proxy.container.node,
        "identity": proxy.name,
        "stopping": proxy.stopping,
        "roots": [pki.fingerprint(root) for root in proxy.roots],
        "leaf": None,
    }
    if proxy.material is not None:
        leaf = proxy.material.leaf
        found["leaf"] = {
            "fingerprint": pki.fingerprint(leaf),
            "issuer": issuer_fingerprint(leaf, known),
            "serial": leaf.serial_number,
            "not_before": leaf.not_valid_before_utc.isoformat(),
            "not_after": leaf.not_valid_after_utc.isoformat(),
        }
    return found
