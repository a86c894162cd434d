"""A server (and, on demand, a cluster around it) on an event loop in a thread of its own, for synchronous tests."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self

from infra.lab.apiserver import ApiServer, Faults
from infra.lab.controllers import start_cluster

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path


class LabServer:
    """Context manager: `with LabServer(directory) as lab: lab.server.url`."""

    def __init__(self, directory: Path, nodes: int = 0, controllers: bool = False) -> None:
        self._directory = directory
        self._nodes = nodes
        self._controllers = controllers
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lab", daemon=True)
        self._cluster: Any = None
        self.server: ApiServer
        self.faults = Faults()

    def run(self, work: Coroutine[Any, Any, Any], timeout: float = 30) -> Any:
        """Run a coroutine on the server's loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    async def _start(self) -> None:
        self.server = ApiServer(self._directory, faults=self.faults)
        await self.server.start()
        if self._controllers or self._nodes:
            pki = self.server.pki
            self._cluster = await start_cluster(
                self.server.kubeconfig,
                nodes=self._nodes,
                controllers=self._controllers,
                scheduler=self._controllers,
                ca_files=(pki.ca_certificate, pki.ca_key),
            )

    async def _stop(self) -> None:
        if self._cluster is not None:
            await self._cluster.stop()
        await self.server.stop()

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._start())
        return self

    def __exit__(self, *_exc: object) -> None:
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
