"""The container runtime's contract: a container's program is a coroutine in this process.

A program sees what a real process in a container would: its arguments and environment as they were at start, its
mounted files at their real paths (through `Container.path`), its own IP address, a log, a SIGTERM
(`Container.stopping`). What it returns is its exit code; an exception is written to its log and is exit code 1; being
cancelled is SIGKILL (137).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from infra.lab.client import KubeClient
from infra.lab.kubeconfig import Endpoint
from infra.lab.kubelet.logs import ContainerLog

if TYPE_CHECKING:
    from infra.lab.kubelet.csi import CsiDriver

SERVICE_ACCOUNT_DIRECTORY = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(eq=False)
class Container:
    """One running instance of a container: what its program can see and do.

    Attributes:
        pod: The Pod as it was when this instance started.
        name: The container's name in the pod.
        image: Its image reference.
        root: The directory that stands for the container's own writable layer.
        args: `args` of the container, with $(VAR) expanded.
        command: `command` of the container, with $(VAR) expanded.
        env: Environment, resolved once at start (valueFrom, envFrom, $(VAR)); later changes of a source do not show.
        ip: The pod's own loopback address; programs bind their ports on it.
        node: Name of the Node.
        api: URL of the API server, for `client`.
        mounts: Mount path -> host path.
        stopping: Set when the container is asked to end (SIGTERM).
    """

    pod: dict[str, Any]
    name: str
    image: str
    root: Path
    args: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    ip: str = "127.0.0.1"
    node: str = ""
    api: str = ""
    mounts: dict[str, Path] = field(default_factory=dict)
    logs: ContainerLog = field(default_factory=ContainerLog)
    on_ready: Callable[[bool], None] | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    ready: bool = False
    _clients: list[KubeClient] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        return str(self.pod["metadata"]["namespace"])

    @property
    def pod_name(self) -> str:
        """The pod's name."""
        return str(self.pod["metadata"]["name"])

    def path(self, container_path: str) -> Path:
        """The host path behind a path in the container: inside the volume mounted there (longest match), else in its
        own layer.
        """
        wanted = PurePosixPath("/") / container_path
        best = max((m for m in self.mounts if wanted.is_relative_to(m)), key=len, default=None)
        if best is None:
            return self.root / wanted.relative_to("/")
        rest = wanted.relative_to(best)
        return self.mounts[best] if str(rest) == "." else self.mounts[best] / rest

    def log(self, line: str) -> None:
        """Write a line to the container's log (what `kubectl logs` shows)."""
        self.logs.write(line)

    def set_ready(self, ready: bool) -> None:
        """What the readiness probe would say from now on. A registered program starts unready; call this once it
        serves.
        """
        if ready != self.ready:
            self.ready = ready
            if self.on_ready is not None:
                self.on_ready(ready)

    async def sleep(self, seconds: float) -> bool:
        """Sleep, but not beyond SIGTERM; True when the container is stopping."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            return False
        return True

    def client(self, user_agent: str | None = None) -> KubeClient:
        """A client to the API server with the pod's own service-account token and CA, as an in-cluster configuration
        gives it.

        Raises FileNotFoundError when the pod has no token mounted. The kubelet closes the client when the container
        ends.
        """
        mounted = self.path(SERVICE_ACCOUNT_DIRECTORY)
        endpoint = Endpoint(self.api, ca_pem=(mounted / "ca.crt").read_text(), token_file=mounted / "token")
        client = KubeClient(endpoint, user_agent=user_agent or f"{self.name}/{self.pod_name}")
        self._clients.append(client)
        return client

    async def close(self) -> None:
        """Release what the program left open. Called by the kubelet."""
        for client in self._clients:
            await client.close()
        self._clients.clear()


Program = Callable[[Container], Awaitable[int]]


@dataclass(frozen=True)
class _Entry:
    prefix: str
    container_name: str | None
    first_arg: str | None
    program: Program

    def fits(self, image: str, name: str, args: list[str]) -> bool:
        return (
            image.startswith(self.prefix)
            and self.container_name in (None, name)
            and (self.first_arg is None or args[:1] == [self.first_arg])
        )


class Programs:
    """Which program stands for which image, and what else is installed on the nodes.

    Attributes:
        drivers: CSI drivers by name.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self.drivers: dict[str, CsiDriver] = {}

    def register(
        self, image_prefix: str, program: Program, *, container: str | None = None, first_arg: str | None = None
    ) -> None:
        """Run `program` for images that start with `image_prefix`; the longest prefix wins.

        One image often holds several commands: `first_arg` and `container` narrow an entry to containers whose first
        argument or whose name is that. Registering the same triple again replaces it.
        """
        entry = _Entry(image_prefix, container, first_arg, program)
        self._entries = [
            e
            for e in self._entries
            if (e.prefix, e.container_name, e.first_arg) != (image_prefix, container, first_arg)
        ]
        self._entries.append(entry)

    def lookup(self, image: str, name: str = "", args: list[str] | None = None) -> Program | None:
        """The program for a container, or None: the kubelet then runs its generic one."""
        fitting = [entry for entry in self._entries if entry.fits(image, name, args or [])]
        best = max(
            fitting,
            key=lambda e: (len(e.prefix), e.first_arg is not None, e.container_name is not None),
            default=None,
        )
        return best.program if best else None


PROGRAMS = Programs()
register = PROGRAMS.register
lookup = PROGRAMS.lookup
