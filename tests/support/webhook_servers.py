"""Linkerd's webhook servers to be rotated in a test: TLS on pods of a small mesh, called by the lab's API server.

Each server presents what it was told to read last; a test says when it reads its Secret again, as a kubelet and a
reload do in their own time. The objects are those that the lab's installation makes.
"""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capstan.cluster.resources import (
    API_SERVICES,
    MUTATING_WEBHOOKS,
    NAMESPACES,
    SECRETS,
    VALIDATING_WEBHOOKS,
    Resource,
)
from infra.lab import pki
from infra.lab.linkerd import hook_manifests, manifests
from infra.lab.linkerd.hooks import TAP_GROUP, TAP_VERSION
from infra.lab.objects import collection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster
    from tests.support.mesh import Mesh

PROFILES = Resource("linkerd.io", "v1alpha2", "serviceprofiles", "ServiceProfile")
INJECTOR_SECRET = manifests.INJECTOR_TLS_SECRET


@dataclass
class Server:
    """One process's port; `chain` is what it serves."""

    secret: str
    namespace: str
    address: str
    port: int
    context: ssl.SSLContext = field(default_factory=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    reloads: bool = True

    def start(self) -> ThreadingHTTPServer:
        held = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                self.request = held.context.wrap_socket(self.request, server_side=True)
                super().setup()

            def do_GET(self) -> None:
                kind = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{TAP_GROUP}/{TAP_VERSION}"}
                self._answer({**kind, "resources": []})

            def do_POST(self) -> None:
                review = json.loads(self.rfile.read(int(self.headers["content-length"])))
                response = {"uid": review["request"]["uid"], "allowed": True}
                self._answer({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response})

            def _answer(self, body: dict[str, Any]) -> None:
                text = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # a client that refuses our certificate is what is tested

        server = Quiet((self.address, self.port), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server


class WebhookServers:
    """A control plane's five servers (three without viz), each with so many replicas, and what belongs to them."""

    def __init__(self, mesh: Mesh, cluster: Cluster, *, viz: bool = True, replicas: int = 2) -> None:
        self.cluster = cluster
        self.options = manifests.Options(viz=viz, failure_policy="Fail")
        self.servers: list[Server] = []
        self._running: list[ThreadingHTTPServer] = []
        now = datetime.now(UTC)
        names = {INJECTOR_SECRET: "linkerd-proxy-injector.linkerd.svc", **hook_manifests.serving_names(self.options)}
        pairs = {secret: pki.mint_serving([name], now=now) for secret, name in names.items()}
        labels = {"config.linkerd.io/admission-webhooks": "disabled"}
        cluster.create(NAMESPACES, _namespace("linkerd", labels))
        mesh.account("linkerd", "default")
        self._create(hook_manifests.control_plane(self.options, pairs))
        self._create([_injector_secret(pairs[INJECTOR_SECRET]), _injector_service()])
        if viz:
            wanted = [item for item in hook_manifests.viz(self.options, pairs) if item["kind"] != "Deployment"]
            self._create(wanted)
            mesh.account("linkerd-viz", "default")
        component = "linkerd.io/control-plane-component"
        spread: list[tuple[str, str, dict[str, str], list[tuple[str, str, str, int]]]] = [
            ("linkerd", "linkerd-proxy-injector", {component: "proxy-injector"},
             [("proxy-injector", "proxy-injector", INJECTOR_SECRET, 8443)]),
            ("linkerd", "linkerd-destination", {component: "destination"},
             [("sp-validator", "sp-validator", hook_manifests.SP_SECRET, 8443),
              ("policy", "policy-https", hook_manifests.POLICY_SECRET, 9443)]),
        ]  # fmt: skip
        if viz:
            extension = {"linkerd.io/extension": "viz"}
            spread += [
                ("linkerd-viz", "tap", {**extension, "component": "tap"},
                 [("tap", "apiserver", hook_manifests.TAP_SECRET, 8089)]),
                ("linkerd-viz", "tap-injector", {**extension, "component": "tap-injector"},
                 [("tap-injector", "tap-injector", hook_manifests.TAP_INJECTOR_SECRET, 8443)]),
            ]  # fmt: skip
        for namespace, name, labels, containers in spread:
            spec = {
                "containers": [
                    {"name": container, "image": "x", "ports": [{"name": port_name, "containerPort": port}]}
                    for container, port_name, _, port in containers
                ]
            }
            template = {"metadata": {"labels": labels}, "spec": spec}
            owner = mesh.deployment(namespace, name, template, replicas=replicas)
            for number in range(1, replicas + 1):
                address = mesh.pod(namespace, f"{name}-{number}", spec, labels=labels, owner=owner)
                for _, _, secret, port in containers:
                    self.servers.append(Server(secret, namespace, address, port))
        self.reload()
        self._running = [server.start() for server in self.servers]
        # As an installation does it: what calls them comes last.
        self._create([manifests.webhook(self.options, _material(pairs[INJECTOR_SECRET]))])
        self._create(hook_manifests.configurations(self.options, pairs))
        if viz:
            self._create(hook_manifests.viz_configurations(self.options, pairs))

    def reload(self, *, everybody: bool = False) -> None:
        """Let each server read its Secret, but those that never do (unless it is everybody's start)."""
        for server in self.servers:
            if server.reloads or everybody:
                self._read(server)

    @contextmanager
    def following(self, seconds: float = 0.5) -> Iterator[None]:
        """Let the servers read their Secrets by themselves, each so long after the one before it."""
        ending = threading.Event()

        def follow() -> None:
            while not ending.is_set():
                for server in self.servers:
                    if not ending.wait(seconds / len(self.servers)):
                        self._read(server)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join(10)

    def _read(self, server: Server) -> None:
        found = self.cluster.find(SECRETS, server.secret, server.namespace)
        if found is not None:
            data = [base64.b64decode(found["data"][key]) for key in ("tls.crt", "tls.key")]
            server.context = _context(*data)

    def ca_bundles(self) -> dict[str, int]:
        """How many certificates each caBundle holds."""
        found = {}
        for resource in (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS):
            for item in self.cluster.list(resource).items:
                found[item["metadata"]["name"]] = item["webhooks"][0]["clientConfig"]["caBundle"]
        if self.options.viz:
            item = self.cluster.get(API_SERVICES, f"{TAP_VERSION}.{TAP_GROUP}")
            found[item["metadata"]["name"]] = item["spec"]["caBundle"]
        return {name: base64.b64decode(text).count(b"BEGIN CERTIFICATE") for name, text in found.items()}

    def call_each(self) -> None:
        """Have the API server call what admits pods and profiles, and tap; a refusal raises."""
        profile = {"apiVersion": "linkerd.io/v1alpha2", "kind": "ServiceProfile", "spec": {"routes": []}}
        profile["metadata"] = {"generateName": "called-", "namespace": "default"}
        self.cluster.create(PROFILES, profile, dry_run=True)
        if self.options.viz:
            self.cluster.get_path(f"/apis/{TAP_GROUP}/{TAP_VERSION}")

    def close(self) -> None:
        """Stop every server."""
        for server in self._running:
            server.shutdown()
            server.server_close()

    def _create(self, items: list[dict[str, Any]]) -> None:
        for item in items:
            group, _, version = str(item["apiVersion"]).rpartition("/")
            plural = collection(item).rpartition("/")[2]
            namespaced = "namespace" in item["metadata"]
            self.cluster.create(Resource(group, version, plural, item["kind"], namespaced), item)


def _context(chain: bytes, key: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pair.pem"
        path.write_bytes(key + chain)
        context.load_cert_chain(path)
    return context


def _namespace(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _material(pair: pki.KeyPair) -> manifests.Material:
    return manifests.Material(pair, pair, pair, "", "")


def _injector_secret(pair: pki.KeyPair) -> dict[str, Any]:
    return hook_manifests._secret(INJECTOR_SECRET, "linkerd", pair, {})


def _injector_service() -> dict[str, Any]:
    name = "linkerd-proxy-injector"
    selector = {"linkerd.io/control-plane-component": "proxy-injector"}
    return hook_manifests._service(name, "linkerd", selector, "proxy-injector", "proxy-injector", {})
