"""Linkerd's other servers that an API server calls: sp-validator, policy-validator, and viz's tap and tap-injector.

Each is the HTTPS side of its webhook (tap: of its APIService) and judges little: what matters here is the TLS in front.
"""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infra.lab.linkerd import httpd, serving
from infra.lab.linkerd.gotext import log_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from infra.lab.kubelet.runtime import Container

JSON = dict[str, Any]

SP_VALIDATOR_PORT, POLICY_PORT, TAP_PORT, TAP_INJECTOR_PORT = 8443, 9443, 8089, 8443
TAP_GROUP = "tap.linkerd.io"
TAP_VERSION = "v1alpha1"
TAP_SERVICE_ENV = "LINKERD2_PROXY_TAP_SVC_NAME"


@dataclass(frozen=True)
class Server:
    """One such server, as a container program.

    Attributes:
        port: Where it serves TLS.
        answer: One request's answer.
    """

    port: int
    answer: Callable[[httpd.Request], Awaitable[httpd.Response]]

    async def program(self, container: Container) -> int:
        """Serve until SIGTERM; exit code 1 if the pair cannot be read."""
        try:
            tls = serving.load(container)
            server = await httpd.start(container.ip, self.port, self.answer, tls=tls)
        except OSError as error:
            container.log(log_line(datetime.now(UTC), "fatal", f"failed to read TLS secrets: {error}"))
            return 1
        watcher = asyncio.create_task(serving.follow(container, tls))
        container.log(log_line(datetime.now(UTC), "info", f"listening at :{self.port}"))
        container.set_ready(True)
        try:
            await container.stopping.wait()
            # API servers may still be on their way here until the service has forgotten this pod.
            await asyncio.sleep(0.5)
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
            await server.stop()
        return 0


def reviewing(judge: Callable[[JSON], JSON]) -> Callable[[httpd.Request], Awaitable[httpd.Response]]:
    """An answer to AdmissionReviews (admission.k8s.io/v1).

    Args:
        judge: From the review's request to what its response says beside the uid.
    """

    async def answer(request: httpd.Request) -> httpd.Response:
        try:
            review: JSON = json.loads(request.body)
            admission: JSON = review["request"]
            response = {"uid": admission["uid"], **judge(admission)}
        except (ValueError, KeyError, TypeError):
            return httpd.Response.text("body is no AdmissionReview\n", 400)
        body = {"apiVersion": review.get("apiVersion"), "kind": "AdmissionReview", "response": response}
        return httpd.Response.json(body)

    return answer


def judge_profile(admission: JSON) -> JSON:
    """A ServiceProfile's routes need a name and a condition (pkg/profiles of linkerd2)."""
    spec = (admission.get("object") or {}).get("spec") or {}
    for route in spec.get("routes") or []:
        if not route.get("name"):
            return _denied("ServiceProfile has a route with no name")
        if not route.get("condition"):
            return _denied("ServiceProfile has a route with no condition")
    return {"allowed": True}


def judge_policy(admission: JSON) -> JSON:
    """A Server selects pods or external workloads, not both (policy-controller/runtime of linkerd2)."""
    if (admission.get("kind") or {}).get("kind") != "Server":
        return {"allowed": True}
    spec = (admission.get("object") or {}).get("spec") or {}
    if ("podSelector" in spec) == ("externalWorkloadSelector" in spec):
        return _denied("exactly one of podSelector and externalWorkloadSelector must be set")
    return {"allowed": True}


def add_tap(admission: JSON) -> JSON:
    """The tap service's name for an injected proxy (viz/tap/injector of linkerd2); other pods are left alone."""
    if (admission.get("kind") or {}).get("kind") != "Pod":
        return {"allowed": True}
    spec = admission["object"]["spec"]
    for where in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(where) or []):
            named = [entry["name"] for entry in container.get("env") or []]
            if container.get("name") == "linkerd-proxy" and named and TAP_SERVICE_ENV not in named:
                value = {
                    "name": TAP_SERVICE_ENV,
                    "value": "tap.linkerd-viz.serviceaccount.identity.linkerd.cluster.local",
                }
                operations = [{"op": "add", "path": f"/spec/{where}/{index}/env/-", "value": value}]
                patch = base64.b64encode(json.dumps(operations).encode()).decode()
                return {"allowed": True, "patchType": "JSONPatch", "patch": patch}
    return {"allowed": True}


async def serve_tap(request: httpd.Request) -> httpd.Response:
    """The discovery of tap's group version; nothing can be tapped here."""
    if request.path.rstrip("/") == f"/apis/{TAP_GROUP}/{TAP_VERSION}":
        resources = [
            {"name": name, "singularName": "", "namespaced": True, "kind": "Tap", "verbs": ["watch"]}
            for name in ("deployments/tap", "pods/tap")
        ]
        group_version = f"{TAP_GROUP}/{TAP_VERSION}"
        body = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}
        return httpd.Response.json(body)
    if request.path in ("/healthz", "/readyz", "/livez"):
        return httpd.Response.text("ok")
    return httpd.NOT_FOUND


def _denied(message: str) -> JSON:
    return {"allowed": False, "status": {"message": message}}


SP_VALIDATOR = Server(SP_VALIDATOR_PORT, reviewing(judge_profile))
POLICY_VALIDATOR = Server(POLICY_PORT, reviewing(judge_policy))
TAP = Server(TAP_PORT, serve_tap)
TAP_INJECTOR = Server(TAP_INJECTOR_PORT, reviewing(add_tap))
