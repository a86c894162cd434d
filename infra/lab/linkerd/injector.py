"""linkerd-proxy-injector, as a container program: the HTTPS side of a MutatingWebhookConfiguration.

Roots and configuration are read from their mounts for every request, as the real one does: a pod created while the
mount lags behind the ConfigMap is born with the old bundle.
"""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, Informer, KubeClient
from infra.lab.linkerd import httpd, inject, serving
from infra.lab.linkerd.flags import parse_flags
from infra.lab.linkerd.gotext import log_line

if TYPE_CHECKING:
    from infra.lab.kubelet.runtime import Container

ROOTS_FILE = "/var/run/linkerd/identity/trust-roots/ca-bundle.crt"
VALUES_FILE = "/var/run/linkerd/config/values"
PORT = 8443
ADMIN_PORT = 9995

JSON = dict[str, Any]


async def program(container: Container) -> int:
    """Run the injector until SIGTERM; exit code 1 if it cannot start."""
    client = container.client(user_agent="proxy-injector")
    namespaces = Informer(client, "/api/v1/namespaces")
    try:
        injector = Injector(container, client, namespaces)
        tls = serving.load(container)
        await namespaces.synced()
        webhook = await httpd.start(container.ip, PORT, injector.handle, tls=tls)
        admin = await httpd.start(container.ip, ADMIN_PORT, injector.admin)
    except OSError as error:
        container.log(log_line(datetime.now(UTC), "fatal", f"failed to read TLS secrets: {error}"))
        await namespaces.stop()
        return 1
    watcher = asyncio.create_task(serving.follow(container, tls))
    container.log(log_line(datetime.now(UTC), "info", f"listening at :{PORT}"))
    container.set_ready(True)
    try:
        await container.stopping.wait()
        # API servers may still be on their way here until the service has forgotten this pod.
        await asyncio.sleep(0.5)
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        await webhook.stop()
        await admin.stop()
        await namespaces.stop()
    return 0


class Injector:
    """Answers AdmissionReviews (admission.k8s.io/v1)."""

    def __init__(self, container: Container, client: KubeClient, namespaces: Informer) -> None:
        self._container = container
        self._client = client
        self._namespaces = namespaces
        self._owners: dict[tuple[str, str], tuple[str, str]] = {}
        flags = parse_flags(container.args[1:])
        self._namespace = flags.get("linkerd-namespace", container.namespace)

    async def admin(self, request: httpd.Request) -> httpd.Response:
        """/ready and /ping."""
        answers = {"/ready": "ok\n", "/ping": "pong\n"}
        return httpd.Response.text(answers[request.path]) if request.path in answers else httpd.NOT_FOUND

    async def handle(self, request: httpd.Request) -> httpd.Response:
        """One AdmissionReview."""
        try:
            review: JSON = json.loads(request.body)
            admission: JSON = review["request"]
        except (ValueError, KeyError, TypeError):
            return httpd.Response.text("body is no AdmissionReview\n", 400)
        response: JSON = {"uid": admission["uid"], "allowed": True}
        try:
            operations = await self._patch(admission)
        except (OSError, ApiError, ValueError) as error:
            text = f"failed to inject sidecar. Reason: {error}"
            self._log("error", text)
            response = {"uid": admission["uid"], "allowed": False, "status": {"message": text}}
        else:
            if operations:
                encoded = base64.b64encode(json.dumps(operations).encode()).decode()
                response |= {"patchType": "JSONPatch", "patch": encoded}
        return httpd.Response.json(
            {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
        )

    async def _patch(self, admission: JSON) -> list[JSON]:
        if (admission.get("kind") or {}).get("kind") != "Pod":
            return []
        pod, namespace = admission["object"], admission["namespace"]
        annotations = await self._namespace_annotations(namespace)
        reason = inject.skip_reason(pod, annotations)
        name = pod["metadata"].get("name") or pod["metadata"].get("generateName", "")
        if reason:
            self._log("info", f"skipped {namespace}/{name}: {reason}")
            return []
        return inject.patch(
            pod,
            namespace=namespace,
            roots_pem=self._container.path(ROOTS_FILE).read_text(),
            config=inject.config_from_values(self._container.path(VALUES_FILE).read_text(), self._namespace),
            owner=await self._owner(pod, namespace),
            namespace_annotations=annotations,
        )

    async def _namespace_annotations(self, name: str) -> dict[str, str]:
        found = self._namespaces.get("", name)
        if found is None:  # younger than the watch
            found = await self._client.get(f"/api/v1/namespaces/{name}")
        annotations: dict[str, str] = found["metadata"].get("annotations") or {}
        return annotations

    async def _owner(self, pod: JSON, namespace: str) -> tuple[str, str]:
        """The workload at the top: a ReplicaSet's Deployment, a Job's CronJob, else the direct owner."""
        references = pod["metadata"].get("ownerReferences") or []
        if len(references) != 1:
            return "Pod", pod["metadata"].get("name", "")
        kind, name, uid = (references[0][key] for key in ("kind", "name", "uid"))
        plurals = {"ReplicaSet": "apps/v1/{}/replicasets", "Job": "batch/v1/{}/jobs"}
        if kind not in plurals:
            return kind, name
        if (kind, uid) not in self._owners:
            path = "/apis/" + plurals[kind].format(f"namespaces/{namespace}") + f"/{name}"
            above = (await self._client.get(path))["metadata"].get("ownerReferences") or []
            self._owners[kind, uid] = (above[0]["kind"], above[0]["name"]) if len(above) == 1 else (kind, name)
        return self._owners[kind, uid]

    def _log(self, level: str, message: str) -> None:
        self._container.log(log_line(datetime.now(UTC), level, message))
