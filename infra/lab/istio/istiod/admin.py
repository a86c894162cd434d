"""istiod's plain HTTP ports: 8080 (/ready) and 15014 (/metrics, /version, /debug/…); and its webhooks on 15017."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from infra.lab.istio import injection
from infra.lab.istio.istiod.ca_service import PROXY_NOTE
from infra.lab.linkerd import httpd

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.istio.istiod.program import Istiod

JSON = dict[str, Any]


class Admin:
    """The handlers of one istiod."""

    def __init__(self, istiod: Istiod, ready: Callable[[], bool]) -> None:
        self._istiod = istiod
        self._ready = ready

    async def handle(self, request: httpd.Request) -> httpd.Response:
        """What both plain ports answer."""
        if request.path == "/ready":
            return httpd.Response(200 if self._ready() else 503)
        if request.path == "/metrics":
            lines = self._istiod.metrics.lines(self._istiod.authority)
            return httpd.Response.text("".join(f"{line}\n" for line in lines))
        if request.path == "/version":
            tag = self._istiod.settings.tag
            return httpd.Response.text(f"{tag}-lab-Clean")
        if request.path == "/debug/syncz":
            return httpd.Response.json(self.synced())
        if request.path == "/debug/connections":
            return httpd.Response.json(self.connections())
        return httpd.NOT_FOUND

    def synced(self) -> list[JSON]:
        """One entry per connected proxy, as /debug/syncz has it; no configuration is served, none acknowledged."""
        settings = self._istiod.settings
        return [
            {"cluster_id": settings.cluster_id, "proxy": proxy, "istio_version": settings.tag}
            for proxy in sorted(set(self._proxies()))
        ]

    def connections(self) -> JSON:
        """The list of /debug/connections."""
        clients = [
            {"connectionId": f"{connection.notes[PROXY_NOTE]}-{number}", "address": connection.peer}
            for number, connection in enumerate(self._istiod.grpc.connections, start=1)
            if PROXY_NOTE in connection.notes
        ]
        return {"totalClients": len(clients), "clients": clients}

    async def webhook(self, request: httpd.Request) -> httpd.Response:
        """/inject…: one AdmissionReview; /validate…: every object is valid here."""
        try:
            review: JSON = json.loads(request.body)
            uid = review["request"]["uid"]
            if request.path.startswith("/inject"):
                return httpd.Response.json(await injection.mutate(review, self._istiod))
        except (ValueError, KeyError, TypeError):
            return httpd.Response.text("body is no AdmissionReview\n", 400)
        if request.path.startswith("/validate"):
            answer = {"uid": uid, "allowed": True}
            return httpd.Response.json(
                {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer}
            )
        return httpd.NOT_FOUND

    def _proxies(self) -> list[str]:
        found = (connection.notes.get(PROXY_NOTE) for connection in self._istiod.grpc.connections)
        return [proxy for proxy in found if proxy]
