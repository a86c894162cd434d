"""All proxies of one lab, and the programs that stand for Istio's images."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from cryptography import x509

from infra.lab import pki
from infra.lab.istio import injector, ztunnel
from infra.lab.istio.citadel.program import program as citadel
from infra.lab.istio.istiod.program import program as istiod
from infra.lab.istio.material import uris
from infra.lab.istio.proxy import Proxy
from infra.lab.istio.sidecar import AGENT_SINCE, INBOUND_PORT, minor
from infra.lab.kubelet.runtime import PROGRAMS, Container, Programs
from infra.lab.prober import issuer_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.istio.material import Material

HUBS = ("docker.io/istio", "mcr.microsoft.com/oss/istio", "mcr.microsoft.com/oss/v2/istio")
_CLOSE_SECONDS = 1.0


class IstioMesh:
    """The data plane: which pod's proxy holds what, at this instant.

    Attributes:
        proxies: Running proxies by pod uid.
        ztunnels: Running ztunnels by pod uid.
    """

    def __init__(self, resolve: Callable[[str], str]) -> None:
        self.proxies: dict[str, Proxy] = {}
        self.ztunnels: dict[str, ztunnel.Ztunnel] = {}
        self._resolve = resolve

    def register(self, programs: Programs = PROGRAMS) -> None:
        """Make the kubelets of this process run Istio's containers, from each registry that has its images."""
        for hub in HUBS:
            programs.register(f"{hub}/pilot", _pilot)
            programs.register(f"{hub}/sidecar_injector", injector.program)
            programs.register(f"{hub}/citadel", citadel)
            programs.register(f"{hub}/proxyv2", self._run_proxy, first_arg="proxy")
            programs.register(f"{hub}/proxyv2", _exit_at_once, first_arg="istio-iptables")
            programs.register(f"{hub}/ztunnel", self._run_ztunnel)

    async def handshake(self, material: Material, server: Proxy) -> None:
        """One new mutual-TLS connection to a proxy's inbound port, and one byte there and back.

        Raises:
            OSError, EOFError: It is refused, by either side, or answers with another SPIFFE ID or byte.
        """
        reader, writer = await asyncio.open_connection(
            server.container.ip,
            INBOUND_PORT,
            ssl=material.client,
            server_hostname=f"outbound_.80_._.app.{server.container.namespace}.svc.cluster.local",
        )
        try:
            presented = uris(x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(True)))
            if presented != [server.name]:
                raise ConnectionError(f"the server is {', '.join(presented) or 'nobody'}, not {server.name}")
            writer.write(b"?")
            await writer.drain()
            if await reader.readexactly(1) != b"?":
                raise ConnectionError("the echoed byte is another one")
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await writer.wait_closed()

    def others(self) -> list[dict[str, Any]]:
        """What the ztunnels hold, one entry for each identity on each node."""
        return [
            {
                "namespace": tunnel.container.namespace,
                "pod": tunnel.container.pod_name,
                "uid": uid,
                "kind": "ztunnel",
                "ip": tunnel.container.ip,
                "node": tunnel.container.node,
                "identity": identity,
                "stopping": tunnel.container.stopping.is_set(),
                "roots": [pki.fingerprint(root) for root in held.roots],
                "leaf": _leaf(held),
            }
            for uid, tunnel in self.ztunnels.items()
            for identity, held in tunnel.held.items()
        ]

    async def _run_proxy(self, container: Container) -> int:
        try:
            proxy = Proxy(container, self._resolve)
        except ValueError as error:
            container.log(f"Error: {error}")
            return 255
        self.proxies[proxy.uid] = proxy
        try:
            return await proxy.run()
        finally:
            if self.proxies.get(proxy.uid) is proxy:
                del self.proxies[proxy.uid]

    async def _run_ztunnel(self, container: Container) -> int:
        running = ztunnel.Ztunnel(container, self._resolve)
        self.ztunnels[running.uid] = running
        try:
            return await running.run()
        finally:
            if self.ztunnels.get(running.uid) is running:
                del self.ztunnels[running.uid]


def _leaf(held: ztunnel.Held) -> dict[str, Any] | None:
    if not held.chain:
        return None
    leaf = held.chain[0]
    return {
        "fingerprint": pki.fingerprint(leaf),
        "issuer": issuer_fingerprint(leaf, [*held.chain[1:], *held.roots]),
        "serial": leaf.serial_number,
        "not_before": leaf.not_valid_before_utc.isoformat(),
        "not_after": leaf.not_valid_after_utc.isoformat(),
    }


async def _pilot(container: Container) -> int:
    """istiod; before 1.5 Pilot, which has no part in trust and only has to be there."""
    try:
        before_istiod = minor(container.image.rpartition(":")[2]) < AGENT_SINCE
    except ValueError as error:
        container.log(f"Error: {error}")
        return 255
    if not before_istiod:
        return await istiod(container)
    container.set_ready(True)
    await container.stopping.wait()
    return 0


async def _exit_at_once(container: Container) -> int:
    """istio-init sets up packet filter rules; the lab's proxies are dialled directly."""
    container.log("no packet filter in this lab: nothing to set up")
    await asyncio.sleep(0)
    return 0
