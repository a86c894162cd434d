"""The server's life: certificates, bootstrap objects, the TLS port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import uvicorn

from . import access
from .aggregation import ApiServices
from .api import Api
from .app import App
from .bootstrap import create_defaults, ensure_client_ca
from .certificates import ClusterPki, write_kubeconfig
from .crds import CustomResources
from .faults import Faults
from .protocol import https_protocol
from .tls import server_context

if TYPE_CHECKING:
    from pathlib import Path

    from .tls import TlsProtocol

START_SECONDS = 10.0


class ApiServer:
    """A Kubernetes API server in this process's event loop, on a loopback TLS port.

    `directory` receives certificates (``pki/``) and the administrator's kubeconfig. `port` 0 takes a free one. After
    `stop` or `kill`, `start` serves the same objects again on the same port.
    """

    def __init__(self, directory: Path, host: str = "127.0.0.1", port: int = 0, faults: Faults | None = None) -> None:
        self.directory = directory
        self.host = host
        self.port = port
        self.api = Api()
        self.faults = faults or Faults()
        self.faults.store = self.api.store
        directory.mkdir(parents=True, exist_ok=True)
        self.pki = ClusterPki(directory, host)
        files = access.AccessFiles(self.pki.ca_certificate, self.pki.directory / "sa.key", *self.pki.kubelet_client)
        self.access = access.build(self.api, files)
        self.faults.asked = self.access.authorizer.asked
        self.faults.calls = self.access.calls
        self.app = App(self.api, self.access.authenticator, self.access.authorizer, self.faults)
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._connections: set[TlsProtocol] = set()
        self._reserved: socket.socket | None = None
        self.custom_resources = CustomResources(self.api)
        self.api_services = ApiServices(self.api)
        self.api_services.create_local()
        create_defaults(self.api)
        ensure_client_ca(self.api, self.pki.ca_pem, self.pki.front_proxy_ca.read_text())
        # What came before the first request is nobody's history.
        self.api.store.compact()

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's (group system:masters); written by `start`."""
        return self.directory / "admin.conf"

    @property
    def ca_pem(self) -> str:
        return self.pki.ca_pem

    async def start(self) -> None:
        """Serve. Raises OSError when the port is taken, TimeoutError when the server does not come up."""
        listener, self._reserved = self._reserved or self._bound(), None
        listener.listen(1024)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        certificate, key = self.pki.serving
        context = server_context(certificate, key, self.pki.ca_certificate)
        config = uvicorn.Config(
            self.app,
            http=https_protocol(context, self._connections),  # type: ignore[arg-type]  # uvicorn takes any protocol factory
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=3600,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        write_kubeconfig(self.kubeconfig, self.url, self.pki, self.pki.admin, "kubernetes-admin")
        self._task = asyncio.create_task(self._serve(self._server, listener), name="apiserver")
        self.api_services.start()
        async with asyncio.timeout(START_SECONDS):
            while not self._server.started:
                if self._task.done():
                    await self._task
                await asyncio.sleep(0.005)

    def _bound(self) -> socket.socket:
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((self.host, self.port))
        return bound

    @staticmethod
    async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
        # The process's signals are not this server's business; uvicorn would take them over.
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]  # see above
        try:
            await server.serve(sockets=[listener])
        finally:
            listener.close()

    async def stop(self) -> None:
        """End all watches and connections and stop listening. The objects stay."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        self.api.store.close_watches()
        try:
            await asyncio.wait_for(self._task, START_SECONDS)
        except TimeoutError:
            self._server.force_exit = True
        await self.api_services.stop()
        await self.access.close()
        self._server = self._task = None

    async def kill(self) -> None:
        """Die as kube-apiserver dies of SIGKILL while etcd lives on; `start` brings it back.

        Every connection is reset, requests under way get no answer (what they have committed stays), and new
        connections are refused. After the start no watch can go on from before: kube-apiserver's watch cache begins
        with the list it is filled from ("too old resource version"), so clients must list again.
        """
        if self._server is None or self._task is None:
            return
        server, task = self._server, self._task
        self._server = self._task = None
        for listening in server.servers:
            listening.close()
        # Bound and not listening: connections are refused, and nobody else gets the port.
        self._reserved = self._bound()
        for connection in list(self._connections):
            connection.reset()
        for request in list(server.server_state.tasks):
            request.cancel()
        server.should_exit = server.force_exit = True
        self.api.store.close_watches()
        await asyncio.wait({task}, timeout=START_SECONDS)
        await self.api_services.stop()
        await self.access.close()
        self.api.store.compact()
