"""All proxies of one lab, and the programs that stand for Linkerd's images."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from infra.lab.kubelet.runtime import PROGRAMS, Container, Programs
from infra.lab.linkerd import hooks, identity, injector
from infra.lab.linkerd.proxy import INBOUND_PORT, LOCAL_NAME, TRUST_ANCHORS, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.linkerd.material import Material

CONTROLLER_IMAGE = "cr.l5d.io/linkerd/controller"
POLICY_IMAGE = "cr.l5d.io/linkerd/policy-controller"
TAP_IMAGE = "cr.l5d.io/linkerd/tap"
PROXY_IMAGE = "cr.l5d.io/linkerd/proxy"
INIT_IMAGE = "cr.l5d.io/linkerd/proxy-init"


class Mesh:
    """The data plane: which pod's proxy holds what, at this instant.

    Attributes:
        proxies: Running proxies by pod uid.
    """

    def __init__(self, resolve: Callable[[str], str]) -> None:
        self.proxies: dict[str, Proxy] = {}
        self._resolve = resolve

    def register(self, programs: Programs = PROGRAMS) -> None:
        """Make the kubelets of this process run Linkerd's containers."""
        programs.register(CONTROLLER_IMAGE, identity.program, first_arg="identity")
        programs.register(CONTROLLER_IMAGE, injector.program, first_arg="proxy-injector")
        programs.register(CONTROLLER_IMAGE, hooks.SP_VALIDATOR.program, first_arg="sp-validator")
        programs.register(POLICY_IMAGE, hooks.POLICY_VALIDATOR.program)
        programs.register(TAP_IMAGE, hooks.TAP.program, first_arg="api")
        programs.register(TAP_IMAGE, hooks.TAP_INJECTOR.program, first_arg="injector")
        programs.register(CONTROLLER_IMAGE, _serve_nothing)
        programs.register(INIT_IMAGE, _exit_at_once)
        programs.register(PROXY_IMAGE, self._run_proxy)

    async def handshake(self, material: Material, server: Proxy) -> None:
        """One new mutual-TLS connection to a proxy's inbound port, its name verified, and one byte there and back.

        Raises:
            OSError, EOFError: It is refused, by either side, or answers with another byte.
        """
        reader, writer = await asyncio.open_connection(
            server.container.ip, INBOUND_PORT, ssl=material.client, server_hostname=server.name
        )
        try:
            writer.write(b"?")
            await writer.drain()
            if await reader.readexactly(1) != b"?":
                raise ConnectionError("the echoed byte is another one")
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()

    def others(self) -> list[dict[str, Any]]:
        """Holders of certificates that are no pod's own proxy: none."""
        return []

    async def _run_proxy(self, container: Container) -> int:
        missing = [name for name in (LOCAL_NAME, TRUST_ANCHORS) if not container.env.get(name)]
        if missing:
            container.log(f"Invalid configuration: {', '.join(missing)} must be set")
            return 64
        proxy = Proxy(container, self._resolve)
        self.proxies[proxy.uid] = proxy
        try:
            return await proxy.run()
        finally:
            if self.proxies.get(proxy.uid) is proxy:
                del self.proxies[proxy.uid]


async def _serve_nothing(container: Container) -> int:
    """linkerd-destination only has to be there."""
    container.set_ready(True)
    await container.stopping.wait()
    return 0


async def _exit_at_once(container: Container) -> int:
    """proxy-init sets up packet filter rules; the lab's proxies are dialled directly."""
    container.log("no packet filter in this lab: nothing to set up")
    await asyncio.sleep(0)
    return 0
