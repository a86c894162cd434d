"""istiod as a container program (`docker.io/istio/pilot:VERSION`).

Order and wording of what it logs, and what it writes when, are those of the recorded 1.14
(tests/vectors/controllers/istiod) and of the sources of each version.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from infra.lab.istio import wire
from infra.lab.istio.golog import Log
from infra.lab.istio.istiod import bundle as bundles
from infra.lab.istio.istiod import plugin
from infra.lab.istio.istiod.admin import Admin
from infra.lab.istio.istiod.authority import Authority
from infra.lab.istio.istiod.ca_service import CaService
from infra.lab.istio.istiod.distribution import NamespaceController
from infra.lab.istio.istiod.grpcserver import GrpcServer
from infra.lab.istio.istiod.leaves import SignerExpiredError
from infra.lab.istio.istiod.metrics import Metrics
from infra.lab.istio.istiod.plugin import Reloader, StartError
from infra.lab.istio.istiod.rotator import Rotator
from infra.lab.istio.istiod.selfsigned import SelfSigned
from infra.lab.istio.istiod.serving import Serving
from infra.lab.istio.istiod.settings import Settings
from infra.lab.istio.istiod.webhooks import WebhookPatcher
from infra.lab.linkerd import httpd
from infra.lab.linkerd.listener import Listener, RefusedError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

    from infra.lab.client import KubeClient
    from infra.lab.istio.istiod.bundle import Bundle
    from infra.lab.istio.istiod.plugin import CaFiles
    from infra.lab.kubelet.runtime import Container
    from infra.lab.linkerd.tlsstream import Writer

SECURE_PORT, PLAIN_PORT, WEBHOOK_PORT, ADMIN_PORT, HTTP_PORT = 15012, 15010, 15017, 15014, 8080
FAILED = 255


async def program(container: Container) -> int:
    """Run istiod until SIGTERM; exit code 255 if it cannot start. The image's tag is its version."""
    try:
        istiod = Istiod(container)
    except ValueError as error:
        container.log(f"Error: {error}")
        return FAILED
    return await istiod.run()


class Istiod:
    """One running istiod.

    Attributes:
        container: Its container.
        settings: What it was told.
        client: Its client of the API server.
        authority: Its CA, once it has started.
    """

    authority: Authority

    def __init__(self, container: Container, *, chance: random.Random | None = None) -> None:
        self.container = container
        self.settings = Settings.of(container)
        self.client: KubeClient = container.client(user_agent=f"pilot-discovery/{self.settings.tag}")
        self.metrics = Metrics(_now)
        self.out = Log(container.log, _now)
        self.grpc = GrpcServer({}, {})
        self._chance = chance or random.Random()
        self._self_signed: SelfSigned | None = None
        self._ready = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def _directory(self) -> Path:
        return self.container.path(f"/{self.settings.ca_directory.lstrip('/')}")

    async def run(self) -> int:
        """The process from start to exit code."""
        out = self.out
        out.info("creating CA and initializing public key")
        try:
            bundle = await self._create()
            self.authority = Authority(self.settings, bundle, out, _now)
        except StartError as error:
            out.error(f"failed to create discovery service: failed to create CA: {error}")
            return FAILED
        except bundles.BundleError as error:
            text = f"failed to create discovery service: failed to create CA: failed to create an istiod CA: {error}"
            out.error(text)
            return FAILED
        scratch = self.container.root / "tmp"
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        serving = Serving(self.authority, scratch, out)
        self._start_rotator()
        try:
            try:
                await self._first_certificate(serving)
            except SignerExpiredError as error:
                out.error(f"failed to create discovery service: failed generating istiod key cert {error}")
                return FAILED
            return await self._serve(serving)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- the CA -----------------------------------------------------------------------------------------------------

    async def _create(self) -> Bundle:
        settings, out = self.settings, self.out
        files = plugin.detect(settings, self._directory, out)
        plugged = plugin.plugged_in(files, settings.rules)
        if plugged and settings.rules.cacerts_for_self_signed and files.exists(plugin.ISTIO_GENERATED):
            out.info("IstioGenerated cacerts secret found, use it as the CA certificate")
            plugged = False
        if plugged:
            bundle = plugin.start(files, settings, out, _now())
            if settings.rules.reloads:
                out.info(f"Added cacerts files watcher at {settings.ca_directory_given}")
            return bundle
        out.info("Use self-signed certificate as the CA certificate")
        self._self_signed = SelfSigned(settings, self.client, out, _now, lambda: _roots_of(files))
        return await self._self_signed.start()

    def _start_rotator(self) -> None:
        if self._self_signed is None or self.settings.check_interval.total_seconds() <= 0:
            return
        authority = self.authority

        async def updated() -> None:
            with contextlib.suppress(SignerExpiredError):  # the rotator does not look at the outcome
                await plugin.renew(authority, self.out)

        notify = updated if self.settings.rules.notifies_of_self_signed_roots else None
        self._spawn(Rotator(self._self_signed, authority, self.out, _now, self._chance, notify).run())

    async def _first_certificate(self, serving: Serving) -> None:
        settings, out, authority = self.settings, self.out, self.authority
        version = settings.rules.version
        served = await authority.serving()
        out.info(f"Generating istiod-signed cert for [{' '.join(settings.dns_names)}]:\n {served.chain_pem.decode()}")
        files = plugin.detect(settings, self._directory, out)
        where = f"{files.shown}/{files.key}"
        plugged = self._self_signed is None
        if version < (1, 20, 0):
            text = f"Use plugged-in cert at {where}"
            out.info(text if plugged else f"No plugged-in cert at {where}; self-signed cert is used")
        elif version >= (1, 23, 0):
            text = f"Use root cert from {files.shown}/{files.root}"
            if not plugged and files.exists(files.key):
                text = f"Use roots from {files.shown}/{files.root} and watch"
            elif not plugged:
                text = "Use roots from istio-ca-secret"
            out.info(text)
        authority.announce(served)
        serving.load()
        if version < (1, 18, 0):
            out.info("No certificates specified, skipping K8S DNS certificate controller")
        serving.announce_clients()
        loop = asyncio.get_running_loop()

        def reload() -> None:
            # Asynchronous there too: the reloading lines come after those of whoever caused them.
            loop.call_soon(serving.load)

        authority.on_served(reload)
        if settings.rules.pushes_bundles:
            authority.push()
        if plugged and settings.rules.reloads:
            reloader = Reloader(authority, self._directory, out, _now, dead=settings.watcher_dead)
            self._spawn(reloader.run())
        if not plugged:
            self._spawn(self._poll())

    async def _poll(self) -> None:
        """Every 60 s: a self-signed root that has changed since is served with and distributed."""
        authority = self.authority
        known = authority.bundle.root_pem
        while True:
            await asyncio.sleep(self.settings.poll.total_seconds())
            if authority.bundle.root_pem == known:
                continue
            known = authority.bundle.root_pem
            try:
                served = await authority.serving()
            except SignerExpiredError as error:
                self.out.error(f"failed generating istiod key cert {error}")
                continue
            authority.announce(served)
            self.out.info(f"regenerated istiod dns cert: {served.chain_pem.decode()}")

    # --- serving ----------------------------------------------------------------------------------------------------

    async def _serve(self, serving: Serving) -> int:
        out, ip = self.out, self.container.ip
        out.info("initializing secure webhook server for istiod webhooks")
        service = CaService(self.authority, self.client, self.metrics, out)
        self.grpc = GrpcServer(
            {wire.CREATE_CERTIFICATE: service.create_certificate}, {wire.TRUST_BUNDLES: service.watch_bundles}
        )
        plain = GrpcServer({}, {})  # the CA is served with TLS only: here it is an unknown service
        admin = Admin(self, lambda: self._ready)

        async def webhook(reader: asyncio.StreamReader, writer: Writer) -> None:
            await httpd.serve_connection(reader, writer, admin.webhook)

        listeners = [
            Listener(ip, SECURE_PORT, _tls_only(lambda: serving.grpc), self.grpc.serve),
            Listener(ip, PLAIN_PORT, lambda _: None, plain.serve),
            Listener(ip, WEBHOOK_PORT, _tls_only(lambda: serving.webhook), webhook),
        ]
        started: list[Listener | httpd.Server] = []
        try:
            for port in (ADMIN_PORT, HTTP_PORT):
                started.append(await httpd.start(ip, port, admin.handle))
            out.info("Starting IstioD CA" if self.settings.rules.version < (1, 22, 0) else "starting CA server")
            for listener in listeners:
                listener.start()
                started.append(listener)
        except OSError as error:
            out.error(f"failed to start: {error}")
            await asyncio.gather(*(server.stop() for server in started))
            return FAILED
        for problem in self.authority.expiry_problems():
            out.error(problem, "serverca")
        out.info("Istiod CA has started")
        self._spawn(WebhookPatcher(self.authority, self.client, self.metrics, out).run())
        self._spawn(NamespaceController(self.authority, self.client, out, _now).run())
        out.info(f"starting webhook service at [::]:{WEBHOOK_PORT}")
        self._ready = True
        self.container.set_ready(True)
        try:
            await self.container.stopping.wait()
            if self._self_signed is not None and self.settings.check_interval.total_seconds() > 0:
                out.info("Received stop signal, so stop the root cert rotator.", "rootcertrotator")
        finally:
            await asyncio.gather(*(server.stop() for server in started))
        return 0

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.out.error(f"a part of the lab's istiod has ended: {error!r}")


def _tls_only(context: Callable[[], ssl.SSLContext | None]) -> Callable[[bool], ssl.SSLContext]:
    def choose(begins_tls: bool) -> ssl.SSLContext:
        chosen = context()
        if not begins_tls or chosen is None:
            raise RefusedError("this port speaks TLS")
        return chosen

    return choose


def _roots_of(files: CaFiles) -> bytes:
    """root-cert.pem beside a self-signed CA: up to 1.26.0 its roots are added to the CA's own."""
    return files.read(files.root) if files.exists(files.root) else b""


def _now() -> datetime:
    return datetime.now(UTC)
