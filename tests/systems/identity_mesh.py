"""Replicas of linkerd-identity to be read: pods whose logs and answers are the test's, behind the lab's API server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from capstan.cluster.resources import CONFIG_MAPS, PODS, SECRETS
from infra.lab.kubelet.logs import ContainerLog
from infra.lab.linkerd.gotext import log_line
from tests.support.mesh import Mesh
from tests.systems.linkerd_evidence import encoded

if TYPE_CHECKING:
    from tests.pki.ca import Pair

LABELS = {"linkerd.io/control-plane-ns": "linkerd", "linkerd.io/control-plane-component": "identity"}
CERTIFY = 'grpc_method="Certify",grpc_service="io.linkerd.proxy.identity.Identity",grpc_type="unary"'
UPDATED = "Updated identity issuer"


def skipping(why: str) -> str:
    return f"Skipping issuer update as certs could not be read from disk: {why}"


class Replicas(Mesh):
    """A node with pods of linkerd-identity.

    Attributes:
        metrics: Pod name -> text of /metrics.
        ahead: Pod name -> seconds by which its clock is ahead.
        forgotten: Names of pods whose log is gone.
    """

    def __init__(self, *arguments: Any) -> None:
        self.logs: dict[str, ContainerLog] = {}
        self.previous: dict[str, ContainerLog] = {}
        self.metrics: dict[str, str] = {}
        self.ahead: dict[str, float] = {}
        self.forgotten: list[str] = []
        self._servers: list[ThreadingHTTPServer] = []
        super().__init__(*arguments)

    def replica(self, name: str, *, port: int = 9990, port_name: str = "ident-admin", started: str = "") -> str:
        """A running one; its name."""
        ports = [{"containerPort": 8080, "name": "ident-grpc"}, {"containerPort": port, "name": port_name}]
        spec = {
            "containers": [{"name": "identity", "image": "cr.l5d.io/linkerd/controller:edge-26.8.3", "ports": ports}]
        }
        spec["containers"].append({"name": "linkerd-proxy", "image": "cr.l5d.io/linkerd/proxy:edge-26.8.3"})
        address = self.pod("linkerd", name, spec, labels=LABELS)
        self.set_status("linkerd", name, spec, started=started)
        self.logs[name], self.metrics[name], self.ahead[name] = ContainerLog(), "", 0.0
        self._serve(name, address, port)
        return name

    def says(self, name: str, level: str, message: str) -> None:
        """One line of its log."""
        self.logs[name].write(log_line(datetime.now(UTC), level, message))

    def crashes(self, name: str, message: str) -> None:
        """It ended over its start, and waits for the next one."""
        self.says(name, "fatal", message)
        ended = {
            "exitCode": 1,
            "reason": "Error",
            "startedAt": "2026-11-22T05:00:00Z",
            "finishedAt": "2026-11-22T05:00:01Z",
        }
        entry = {
            "name": "identity", "image": "i", "imageID": "", "ready": False, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}},
            "lastState": {"terminated": ended},
        }  # fmt: skip
        status = {"status": {"containerStatuses": [entry]}}
        self.cluster.patch(PODS, name, status, "linkerd", subresource="status")

    def trust_roots(self, text: str) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"ca-bundle.crt": text}}
        self._put(CONFIG_MAPS, "linkerd-identity-trust-roots", body)

    def issuer(self, pair: Pair, key: Pair | None = None) -> dict[str, Any]:
        """The issuer's Secret, with the key of another pair if one is given."""
        from tests.systems.linkerd_evidence import key_pem

        data = {"crt.pem": encoded(pair.certificate.pem() + "\n"), "key.pem": encoded(key_pem(key or pair))}
        return self._put(SECRETS, "linkerd-identity-issuer", {"apiVersion": "v1", "kind": "Secret", "data": data})

    def _put(self, resource: Any, name: str, body: dict[str, Any]) -> dict[str, Any]:
        self.namespace("linkerd")
        present = self.cluster.find(resource, name, "linkerd")
        if present is not None:
            return self.cluster.replace(resource, {**present, "data": body["data"]})
        return self.cluster.create(resource, {**body, "metadata": {"name": name, "namespace": "linkerd"}})

    def _worker(self, namespace: str, name: str, uid: str | None = None) -> SimpleNamespace | None:
        worker = super()._worker(namespace, name, uid)
        if worker is not None:
            worker.containers = {}
        if worker is not None and name in self.logs:
            state = SimpleNamespace(state={}, spec={})
            own = SimpleNamespace(log=self.logs[name], previous_log=self.previous.get(name), state=state)
            worker.containers = {"identity": own}
        return worker

    def _serve(self, name: str, address: str, port: int) -> None:
        replicas = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = replicas.metrics[name].encode()
                self.send_response_only(200)
                at = datetime.now(UTC) + timedelta(seconds=replicas.ahead[name])
                self.send_header("Date", format_datetime(at, usegmt=True))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer((address, port), Handler)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self._servers.append(server)

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        super().close()
