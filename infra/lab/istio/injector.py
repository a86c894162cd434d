"""The sidecar injector of Citadel's days, a Deployment of its own (`docker.io/istio/sidecar_injector`), as a program.

Its certificate is the Secret that Citadel makes for its service account, with the names of its Service; the root beside
it is written into its webhook's caBundle: at the start, whenever the files change, and when somebody else changes it.
istiod took all of this over in 1.5. Source: release 1.4, sidecar-injector/cmd/sidecar-injector/main.go and
pkg/kube/inject/webhook.go.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, Informer
from infra.lab.istio import golog
from infra.lab.istio.agent import now_utc
from infra.lab.istio.injection import mutate
from infra.lab.linkerd import httpd
from infra.lab.linkerd.flags import parse_flags

if TYPE_CHECKING:
    from pathlib import Path

    from infra.lab.client import KubeClient
    from infra.lab.kubelet.runtime import Container

JSON = dict[str, Any]

PORT = 9443
CERTIFICATES = "/etc/istio/certs"
CONFIGURATION, WEBHOOK = "istio-sidecar-injector", "sidecar-injector.istio.io"
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
POLL_SECONDS = 0.1
"""Between two looks at the files: the real one is told of a change, and waits so long for the next before it reads."""
RETRY_SECONDS = 1.0


async def program(container: Container) -> int:
    """Serve until SIGTERM; exit code 1 if its certificate cannot be read."""
    injector = Injector(container)
    files, out = injector.files, injector.out
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        files.load(tls)
        server = await httpd.start(container.ip, PORT, injector.handle, tls=tls)
    except OSError as error:
        out.error(f"failed to create injection webhook: {error}")
        return 1
    tasks = [asyncio.create_task(injector.reload(tls))]
    if parse_flags(container.args).get("reconcileWebhookConfig", "true") == "true":
        tasks.append(asyncio.create_task(injector.keep_patched()))
    container.set_ready(True)
    try:
        await container.stopping.wait()
        # API servers may still be on their way here until the service has forgotten this pod.
        await asyncio.sleep(0.5)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop()
    return 0


class Files:
    """The three mounted files of its certificate."""

    def __init__(self, container: Container) -> None:
        flags = parse_flags(container.args)
        self._chain, self._key, self._root = (
            container.path(flags.get(flag, f"{CERTIFICATES}/{name}"))
            for flag, name in (
                ("tlsCertFile", "cert-chain.pem"),
                ("tlsKeyFile", "key.pem"),
                ("caCertFile", "root-cert.pem"),
            )
        )

    def load(self, tls: ssl.SSLContext) -> None:
        """New connections are served with what the files hold now; raises OSError, which ssl.SSLError is."""
        tls.load_cert_chain(self._chain, self._key)

    def root(self) -> str:
        """The caBundle they make; raises OSError."""
        return base64.b64encode(self._root.read_bytes()).decode()

    def now(self) -> tuple[bytes, ...]:
        """All that they hold, to be compared; nothing while one cannot be read."""
        try:
            return tuple(path.read_bytes() for path in self._paths())
        except OSError:
            return ()

    def _paths(self) -> tuple[Path, ...]:
        return self._chain, self._key, self._root


class Injector:
    """Answers AdmissionReviews; `mutate` finds here what it needs."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.client: KubeClient = container.client(user_agent="sidecar-injector")
        self.files = Files(container)
        self.out = golog.Log(container.log, now_utc)

    async def handle(self, request: httpd.Request) -> httpd.Response:
        """POST /inject."""
        if request.path != "/inject":
            return httpd.NOT_FOUND
        try:
            return httpd.Response.json(await mutate(json.loads(request.body), self))
        except (ValueError, KeyError, TypeError) as error:
            return httpd.Response.text(f"no AdmissionReview of a pod: {error!r}\n", 400)

    async def reload(self, tls: ssl.SSLContext) -> None:
        """Serve with the files' certificate whenever they have changed, until cancelled."""
        seen = self.files.now()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            found = self.files.now()
            if not found or found == seen:
                continue
            seen = found
            try:
                self.files.load(tls)
            except OSError as error:
                self.out.error(f"reload cert error: {error}")

    async def keep_patched(self) -> None:
        """Keep the root in its webhook's caBundle, until cancelled. A patch that fails is tried again each second."""
        known = Informer(self.client, CONFIGURATIONS, fieldSelector=f"metadata.name={CONFIGURATION}")
        root, patched = "", False
        try:
            await known.synced()
            while True:
                try:
                    found = self.files.root()
                except OSError as error:
                    self.out.error(f"CA bundle file read error: {error}")
                    found = root
                if root and found != root:
                    self.out.info(
                        "Detected a change in CABundle (via secret), patching MutatingWebhookConfiguration again"
                    )
                elif patched and self._held(known) not in (None, found):
                    self.out.info("Detected a change in CABundle, patching MutatingWebhookConfiguration again")
                root = found
                if self._held(known) != root:
                    patched = await self._patch(known, root)
                await asyncio.sleep(POLL_SECONDS if patched else RETRY_SECONDS)
        finally:
            await known.stop()

    def _held(self, known: Informer) -> str | None:
        """The caBundle as it is in the cluster; None without its webhook."""
        item = known.get("", CONFIGURATION) or {}
        hook = next((each for each in item.get("webhooks") or [] if each["name"] == WEBHOOK), None)
        return None if hook is None else str(hook["clientConfig"].get("caBundle") or "")

    async def _patch(self, known: Informer, root: str) -> bool:
        """Write the caBundle, as a strategic merge patch of the one entry; False if that failed."""
        if self._held(known) is None:
            self.out.error(f'Patch webhook failed: webhook entry "{WEBHOOK}" not found in config "{CONFIGURATION}"')
            return False
        body = {"webhooks": [{"name": WEBHOOK, "clientConfig": {"caBundle": root}}]}
        try:
            known.observe(await self.client.patch(f"{CONFIGURATIONS}/{CONFIGURATION}", body, "strategic"))
        except ApiError as error:
            self.out.error(f"Patch webhook failed: {error.message}")
            return False
        return True
