"""istio-proxy, as a container program: agent, data plane and the ports an operator reads, of one pod.

The data plane is a light proxy of this process or a real Envoy (annotation `lab.capstan.dev/envoy: "true"`); both hold
exactly what the agent gave them last.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from infra.lab.istio import admin, golog
from infra.lab.istio.agent import Agent, now_utc
from infra.lab.istio.envoy import ANNOTATION, Envoy
from infra.lab.istio.inbound import Inbound
from infra.lab.istio.mounted import CHAIN_FILE, ROOTS_FILE, MountedCertificates
from infra.lab.istio.sidecar import ADMIN_PORT, ENVOY_PROMETHEUS_PORT, HEALTH_PORT, INBOUND_PORT, STATUS_PORT
from infra.lab.linkerd import httpd

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography import x509
    from OpenSSL import SSL

    from infra.lab.istio.material import Material
    from infra.lab.kubelet.runtime import Container

DRAIN_SECONDS = 0.5
LIGHT, ENVOY, GATEWAY = "light", "envoy", "gateway"
ADMIN_SILENT = "lab.capstan.dev/admin-silent"
""""true": nothing listens on the admin port of this pod's light proxy, as after a fault or with other bootstrap."""


class Proxy:
    """One running istio-proxy.

    Args:
        resolve: Turns `host:port` of a cluster service into an address that can be dialled from here.

    Attributes:
        name: Its SPIFFE ID.
        kind: light, envoy or gateway.
        material: What it holds now; None before the first leaf.
    """

    def __init__(self, container: Container, resolve: Callable[[str], str]) -> None:
        env = container.env
        self.container = container
        self.trust_domain = env.get("TRUST_DOMAIN", "cluster.local")
        account = env.get("SERVICE_ACCOUNT") or "default"
        self.name = f"spiffe://{self.trust_domain}/ns/{container.namespace}/sa/{account}"
        self.material: Material | None = None
        router = container.args[1:2] == ["router"]
        notes = container.pod["metadata"].get("annotations") or {}
        wants_envoy = notes.get(ANNOTATION) == "true"
        self._admin_silent = notes.get(ADMIN_SILENT) == "true"
        self.kind = GATEWAY if router else ENVOY if wants_envoy else LIGHT
        self._envoy: Envoy | None = None
        if wants_envoy:
            directory = container.path("/etc/istio/proxy") / "envoy"
            self._envoy = Envoy(directory, container.ip, self.trust_domain, inbound=not router)
        self._mounted = not env.get("CA_ADDR")
        self._agent: Agent | MountedCertificates
        if self._mounted:
            self._agent = MountedCertificates(container, self.name, self._take)
        else:
            self._agent = Agent(container, self.name, resolve, self._take)
        self._inbound = Inbound(container.ip, INBOUND_PORT, self._context)
        self._delivered = asyncio.Event()
        self._log = golog.Log(container.log, now_utc)
        self._updates = 0

    @property
    def uid(self) -> str:
        """The pod's uid."""
        return str(self.container.pod["metadata"]["uid"])

    @property
    def stopping(self) -> bool:
        """Whether it has been asked to end."""
        return self.container.stopping.is_set()

    @property
    def roots(self) -> list[x509.Certificate]:
        """What it trusts now."""
        return [] if self.material is None else list(self.material.roots)

    @property
    def serves(self) -> bool:
        """Whether other proxies connect to it: gateways are clients only."""
        return self.kind != GATEWAY

    async def run(self) -> int:
        """From start to exit code."""
        servers: list[httpd.Server] = []
        signing = asyncio.create_task(self._agent.run())
        try:
            for port, handler in self._handlers().items():
                servers.append(await httpd.start(self.container.ip, port, handler))
            if self.serves and self._envoy is None:
                self._inbound.start()
            return await self._serve()
        except OSError as error:
            self._log.error(f"failed to start: {error}")
            return 1
        finally:
            signing.cancel()
            if self._envoy is not None:
                self._envoy.kill()
            await asyncio.gather(signing, return_exceptions=True)
            await self._inbound.stop()
            for server in servers:
                await server.stop()

    async def _serve(self) -> int:
        """Ready with the first leaf; until SIGTERM, or until Envoy ends. Raises OSError if Envoy cannot start."""
        stopping = asyncio.create_task(self.container.stopping.wait())
        first = asyncio.create_task(self._delivered.wait())
        ended: asyncio.Task[int] | None = None
        try:
            await asyncio.wait((stopping, first), return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                if self._envoy is not None:
                    await self._envoy.start()
                    ended = asyncio.create_task(self._envoy.ended())
                self._log.info("Readiness succeeded")
                self.container.set_ready(True)
            await asyncio.wait({stopping, *([ended] if ended else [])}, return_when=asyncio.FIRST_COMPLETED)
            if ended is not None and ended.done() and self._envoy is not None:
                self._log.error(f"Envoy exited with error {ended.result()}: {self._envoy.last_words()}")
                return 1
            # Peers may still hold this endpoint for a moment: go on serving, as the real proxy drains.
            await asyncio.sleep(DRAIN_SECONDS)
            if self._envoy is not None:
                await self._envoy.stop()
            return 0
        finally:
            tasks = [task for task in (stopping, first, ended) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, material: Material) -> None:
        """New secrets from the agent."""
        if self._envoy is not None:
            self._envoy.update(material)
        self.material = material
        self._updates += 1
        self._delivered.set()

    def _context(self) -> SSL.Context | None:
        return None if self.material is None else self.material.server

    # --- what an operator reads -------------------------------------------------------------------------------------

    def _handlers(self) -> dict[int, httpd.Handler]:
        found: dict[int, httpd.Handler] = {
            STATUS_PORT: self._status,
            HEALTH_PORT: self._status,
            ENVOY_PROMETHEUS_PORT: self._prometheus,
        }
        silent = self._envoy is not None or self._admin_silent
        return found if silent else {ADMIN_PORT: self._admin, **found}

    async def _admin(self, request: httpd.Request) -> httpd.Response:
        version = self.container.image.rpartition(":")[2]
        live = self.material is not None
        if request.path == "/config_dump":
            return admin.config_dump(self.material, request.query, version=version, files=self._mounted)
        if request.path == "/certs":
            paths = {"ca_path": ROOTS_FILE, "chain_path": CHAIN_FILE} if self._mounted else {}
            return admin.json_page(admin.certs(self.material, **paths))
        if request.path == "/ready":
            return httpd.Response.text("LIVE\n") if live else httpd.Response.text("PRE_INITIALIZING\n", 503)
        if request.path == "/server_info":
            return httpd.Response.json({"version": f"lab/{version}", "state": "LIVE" if live else "PRE_INITIALIZING"})
        if request.path == "/stats":
            return httpd.Response.text(admin.statistics_text(self._statistics(), request.query))
        if request.path == "/stats/prometheus":
            return await self._prometheus(request)
        if request.path == "/listeners":
            text = f"virtualInbound::0.0.0.0:{INBOUND_PORT}\n" if self.serves else ""
            return httpd.Response.text(text)
        return httpd.Response.text(f"invalid path. admin commands are: {request.path}\n", 404)

    async def _status(self, request: httpd.Request) -> httpd.Response:
        if request.path == "/healthz/ready":
            return httpd.Response(200 if self.container.ready else 503)
        if request.path == "/stats/prometheus":
            counts = {"csrs": self._agent.csr_count, "failures": self._agent.csr_failures}
            return httpd.Response.text(admin.agent_metrics(self.material, self._statistics(), **counts))
        return httpd.NOT_FOUND

    async def _prometheus(self, request: httpd.Request) -> httpd.Response:
        if request.path != "/stats/prometheus":
            return httpd.NOT_FOUND
        return httpd.Response.text(admin.envoy_prometheus(self._statistics()))

    def _statistics(self) -> dict[str, float]:
        return admin.envoy_statistics(self.material, self._inbound.stats, renewals=self._updates)
