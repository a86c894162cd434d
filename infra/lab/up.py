"""A whole lab in one process: API server, controllers, kubelets, a trust system, sample workloads, prober.

`Lab` is what `python -m infra.lab up` runs and what tests start in their own event loop. With a foreign kubeconfig it
starts no API server of its own and is only a client of that cluster.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from infra.lab.aks.install import AksOptions
from infra.lab.apiserver import ApiServer
from infra.lab.client import KubeClient
from infra.lab.control import Control
from infra.lab.controllers import Cluster, start_cluster
from infra.lab.istio import manifests as istio
from infra.lab.kubelet.runtime import Programs
from infra.lab.linkerd import httpd, manifests
from infra.lab.outage import Outages
from infra.lab.prober import DEFAULT_RATE, Prober
from infra.lab.services import ServiceAddresses, ServiceProxy
from infra.lab.systems.aks_istio import AksIstio
from infra.lab.systems.istio import Istio
from infra.lab.systems.linkerd import Linkerd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infra.lab.prober import Mesh
    from infra.lab.systems import System

SYSTEMS = ("linkerd", "istio", "aks-istio", "none")
FIRST_HANDSHAKES = 20
READY_SECONDS = 60.0


@dataclass(frozen=True)
class Options:
    """What to start.

    Attributes:
        directory: Receives kubeconfig and lab.json when the lab is ready, and everything the lab keeps on disk.
        system: linkerd, istio, aks-istio or none.
        kubeconfig: A cluster to run against; None starts one.
        size: Of the sample workloads: demo (45 meshed pods) or small.
        nodes: Number of kubelets.
        probes_per_second: New handshakes the prober makes.
        linkerd, istio, aks: Choices of the installation that `system` names, leaf lifetime among them.
        aks_envoys: How many of the AKS add-on's sample pods run a real Envoy.
        aks_enabled: Whether the AKS add-on is enabled from the start.
    """

    directory: Path
    system: str = "linkerd"
    kubeconfig: Path | None = None
    size: str = "demo"
    nodes: int = 3
    port: int = 0
    probes_per_second: float = DEFAULT_RATE
    linkerd: manifests.Options = field(default_factory=manifests.Options)
    istio: istio.Options = field(default_factory=istio.Options)
    aks: AksOptions = field(default_factory=AksOptions)
    aks_envoys: int = 0
    aks_enabled: bool = True


def _silent(_: str) -> None:
    return


class Lab:
    """A running lab: `await Lab(options).start()`, then `stop()`.

    Attributes:
        mesh: What every proxy holds (only with a mesh).
        prober: The judge (only with a mesh).
    """

    def __init__(self, options: Options, *, progress: Callable[[str], None] = _silent) -> None:
        self.options = options
        self.system: System = self._choose()
        self.mesh: Mesh | None = None
        self.prober: Prober | None = None
        self.api: ApiServer | None = None
        self.control_url = ""
        self._progress = progress
        self._began = time.monotonic()
        self._client: KubeClient | None = None
        self._cluster: Cluster | None = None
        self._addresses: ServiceAddresses | None = None
        self._services: ServiceProxy | None = None
        self._lock: int | None = None
        self._control: httpd.Server | None = None
        self._outages: Outages | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; exists once the lab is ready."""
        return self.options.directory / "kubeconfig"

    @property
    def client(self) -> KubeClient:
        """The lab's own connection, as administrator."""
        if self._client is None:
            raise RuntimeError("the lab has not been started")
        return self._client

    async def start(self) -> Self:
        """Start everything and return when every pod is ready and the first handshakes have been made.

        Raises:
            ApiError, OSError, TimeoutError: What could not be started; what was started is stopped again.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def stop(self) -> None:
        """Stop everything. Containers are killed; the objects stay in a foreign cluster."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._control is not None:
            await self._control.stop()
        if self._outages is not None:
            await self._outages.stop()
        if self._cluster is not None:
            await self._cluster.stop()
        await self.system.stop()
        if self._client is not None:
            await self._client.close()
        if self.api is not None:
            await self.api.stop()
        if self._addresses is not None:
            self._addresses.close()
        if self._lock is not None:
            (self.options.directory / "lab.json").unlink(missing_ok=True)
            self._remove_state()
            os.close(self._lock)
            self._lock = None

    def describe(self) -> dict[str, Any]:
        """The content of lab.json."""
        return {
            "pid": os.getpid(),
            "dir": str(self.options.directory.resolve()),
            "kubeconfig": str(self.kubeconfig.resolve()),
            "server": self.client.endpoint.server,
            "control": self.control_url,
            "prober": f"{self.control_url}/prober",
            "system": self.options.system,
            "size": self.options.size,
            "nodes": self.options.nodes,
            "leaf_seconds": self.system.leaf_seconds,
            "ready_seconds": round(time.monotonic() - self._began, 1),
            **(self.system.describe() if self.options.system != "none" else {}),
        }

    async def _start(self) -> None:
        # (1) An API server, and a way to speak to it.
        directory = self.options.directory
        self._lock = lock(directory)
        self._remove_state()
        for leftover in ("kubeconfig", "lab.json"):
            (directory / leftover).unlink(missing_ok=True)
        admin = await self._api_server()
        self._client = KubeClient.from_kubeconfig(admin, user_agent="lab-up")
        # (2) Controllers and kubelets; the kubelets know the trust system's images.
        programs = Programs()
        await self.system.start(self._client, programs, directory)
        self.mesh = self.system.mesh
        self._cluster = await start_cluster(
            admin,
            nodes=self.options.nodes,
            directory=directory / "cluster",
            programs=programs,
            ca_files=None if self.api is None else (self.api.pki.ca_certificate, self.api.pki.ca_key),
        )
        self._say(f"{self.options.nodes} nodes and their controllers")
        # (3) Services on loopback.
        informers = self._cluster.informers
        services, pods = informers.of("/api/v1/services"), informers.of("/api/v1/pods")
        self._services = ServiceProxy(services, pods)
        self._spawn(self._services.run(), "services")
        # (4) The trust system and its workloads.
        if self.options.system != "none":
            await self._install()
        # (5) The judge, and what others can ask.
        self.prober = Prober(self.mesh, pods, rate=self.options.probes_per_second)
        self._outages = Outages(self.api)
        await self._serve_control(Control(self.mesh, self.prober, self._outages))
        if self.options.system != "none":
            self._spawn(self.prober.run(), "prober")
            if self.options.system != "aks-istio" or self.options.aks_enabled:
                await self._first_handshakes(self.prober)
        # (6) Tell the world, last.
        write_atomically(self.kubeconfig, admin.read_bytes(), mode=0o600)
        write_atomically(directory / "lab.json", json.dumps(self.describe(), indent=2).encode() + b"\n")
        self._say("ready")

    def _remove_state(self) -> None:
        """Certificates, volumes and container layers, keys among them: of no use without the server's memory."""
        for name in ("apiserver", "cluster"):
            shutil.rmtree(self.options.directory / name, ignore_errors=True)

    async def _api_server(self) -> Path:
        if self.options.kubeconfig is not None:
            return self.options.kubeconfig
        self.api = ApiServer(self.options.directory / "apiserver", port=self.options.port)
        await self.api.start()
        self._say(f"API server on {self.api.url}")
        return self.api.kubeconfig

    def _choose(self) -> System:
        """The trust system; a lab with none still has kubelets that know Linkerd's images."""
        match self.options.system:
            case "istio":
                return Istio(self.options.istio, self._resolve)
            case "aks-istio":
                return AksIstio(
                    self.options.aks,
                    self._resolve,
                    envoys=self.options.aks_envoys,
                    enabled=self.options.aks_enabled,
                )
            case _:
                by_url = self.options.kubeconfig is not None
                return Linkerd(dataclasses.replace(self.options.linkerd, by_url=by_url), self._resolve)

    async def _install(self) -> None:
        self._addresses = ServiceAddresses()
        if not await self.system.install(self.client, self._addresses):
            self._say(f"{self.system} is installed already; left as it is")
            return
        self._say(f"{self.system} with leaves of {self.system.leaf_seconds} s")
        self._say(await self.system.deploy(self.client, self.options.size, self.options.nodes))

    async def _serve_control(self, control: Control) -> None:
        self._control = await httpd.start("127.0.0.1", 0, control.handle)
        host, port = self._control.address
        self.control_url = f"http://{host}:{port}"

    async def _first_handshakes(self, prober: Prober) -> None:
        """Whatever fails while things start is a broken lab, not a verdict: the count begins once it works."""
        async with asyncio.timeout(READY_SECONDS):
            while prober.counts.attempted - prober.counts.failed < FIRST_HANDSHAKES:
                await prober.next_result()
        if prober.counts.failed:
            failure = prober.counts.failures[0]
            raise OSError(f"handshakes fail in a lab that has just started: {failure.error}")
        prober.reset()

    def _resolve(self, address: str) -> str:
        if self._services is None:
            raise LookupError("the lab's services are not up yet")
        return self._services.resolve(address)

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_report_end)
        self._tasks.append(task)

    def _say(self, text: str) -> None:
        self._progress(f"lab: {time.monotonic() - self._began:5.1f} s  {text}")


def lock(directory: Path) -> int:
    """Claim a directory for this process; the claim ends when the descriptor is closed or the process dies.

    Raises:
        BlockingIOError: If another lab runs there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BlockingIOError(f"another lab runs in {directory}; stop it or choose another --dir") from None
    return descriptor


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    temporary.chmod(mode)
    temporary.replace(path)


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        sys.stderr.write(f"lab: {task.get_name()} has failed: {type(error).__name__}: {error}\n")
