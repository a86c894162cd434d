"""An API server of the lab in a thread of its own: a Kubernetes API without nodes, up in a fraction of a second."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from capstan.cluster.client import Cluster
from infra.lab.apiserver import ApiServer

if TYPE_CHECKING:
    from pathlib import Path


class Running:
    """The server, and the faults a test may ask of it."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="lab api server", daemon=True)
        self.thread.start()
        self.server = self.call(self._start(directory))

    async def _start(self, directory: Path) -> ApiServer:
        server = ApiServer(directory)
        await server.start()
        return server

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def connect(self, **options) -> Cluster:
        return Cluster.connect(kubeconfig=self.server.kubeconfig, name="test", **options)

    def stop(self) -> None:
        self.call(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()
