"""The sidecar injector of Citadel's days, a Deployment of its own (`docker.io/istio/sidecar_injector`), as a program.

Its serving certificate is mounted from a Secret; istiod took all of this over in 1.5.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import TYPE_CHECKING

from infra.lab.istio import golog
from infra.lab.istio.agent import now_utc
from infra.lab.istio.injection import mutate
from infra.lab.linkerd import httpd

if TYPE_CHECKING:
    from infra.lab.client import KubeClient
    from infra.lab.kubelet.runtime import Container

PORT = 9443
CERTIFICATES = "/etc/istio/certs"


async def program(container: Container) -> int:
    """Serve until SIGTERM; exit code 1 if its certificate cannot be read."""
    injector = Injector(container)
    out = golog.Log(container.log, now_utc)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    mount = container.path(CERTIFICATES)
    try:
        tls.load_cert_chain(mount / "cert-chain.pem", mount / "key.pem")
        server = await httpd.start(container.ip, PORT, injector.handle, tls=tls)
    except OSError as error:
        out.error(f"failed to create injection webhook: {error}")
        return 1
    container.set_ready(True)
    try:
        await container.stopping.wait()
        # API servers may still be on their way here until the service has forgotten this pod.
        await asyncio.sleep(0.5)
    finally:
        await server.stop()
    return 0


class Injector:
    """Answers AdmissionReviews; `mutate` finds here what it needs."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.client: KubeClient = container.client(user_agent="sidecar-injector")

    async def handle(self, request: httpd.Request) -> httpd.Response:
        """POST /inject."""
        if request.path != "/inject":
            return httpd.NOT_FOUND
        try:
            return httpd.Response.json(await mutate(json.loads(request.body), self))
        except (ValueError, KeyError, TypeError) as error:
            return httpd.Response.text(f"no AdmissionReview of a pod: {error!r}\n", 400)
