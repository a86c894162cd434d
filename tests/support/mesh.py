"""A mesh to be read: pods whose ports are served by the test, behind the lab's API server and a kubelet's port-forward.

Every pod has a loopback address of its own. What its ports answer is up to the test: JSON as Envoy, ztunnel and istiod
give it, and a gRPC service that signs certificate requests.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from capstan.cluster.resources import DEPLOYMENTS, NAMESPACES, NODES, PODS, REPLICA_SETS, SERVICE_ACCOUNTS
from capstan.errors import Conflict
from capstan.pki.inspect import Certificate
from capstan.pki.mint import IssuerPolicy, Minted, RootPolicy, mint_issuer, mint_root
from infra.lab.kubelet.addresses import AddressPool
from infra.lab.kubelet.server import KubeletServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from capstan.cluster.client import Cluster
    from tests.support.apiserver import Running

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
Answer = tuple[int, bytes]


def root(name: str, now: datetime | None = None, **policy: Any) -> Minted:
    """A self-signed CA called `O=name`'s like."""
    return mint_root(RootPolicy(common_name=name, **policy), 1, now or datetime.now(UTC))


def intermediate(name: str, above: Minted, now: datetime | None = None, **policy: Any) -> Minted:
    """A CA below a root."""
    return mint_issuer(IssuerPolicy(common_name=name, **policy), above, now or datetime.now(UTC))


def leaf(
    issuer: Minted,
    identity: str = "spiffe://cluster.local/ns/default/sa/web",
    *,
    now: datetime | None = None,
    life: timedelta = timedelta(hours=24),
    key: Any = None,
) -> Certificate:
    """A workload's certificate as istiod makes it: no subject, the identity as URI, dated back by two minutes."""
    at = now or datetime.now(UTC)
    public = key if key is not None else ec.generate_private_key(ec.SECP256R1()).public_key()
    usages = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.certificate.raw.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(minutes=2))
        .not_valid_after(at - timedelta(minutes=2) + life)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuer.certificate.extension(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
    )
    return Certificate(issuer.key.sign(builder))


def pem(*certificates: Minted | Certificate) -> str:
    """PEM, one after the other, each ended by a newline."""
    plain = (item.certificate if isinstance(item, Minted) else item for item in certificates)
    return "".join(item.pem() + "\n" for item in plain)


def inline(text: str) -> dict[str, str]:
    """Envoy's DataSource with bytes in it."""
    return {"inline_bytes": base64.b64encode(text.encode()).decode()}


def secrets_dump(chain: str, roots: str, *, updated: str = "2026-11-22T05:00:00.123Z") -> dict[str, Any]:
    """`/config_dump?resource=dynamic_active_secrets` of an Envoy with Istio's two secrets."""
    kind = "type.googleapis.com/envoy.admin.v3.SecretsConfigDump.DynamicSecret"
    secret = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    key = {"inline_bytes": base64.b64encode(b"[redacted]").decode()}
    entries = []
    if chain:
        certificate = {"certificate_chain": inline(chain), "private_key": key}
        held = {"@type": secret, "name": "default", "tls_certificate": certificate}
        entries.append({"@type": kind, "name": "default", "last_updated": updated, "secret": held})
    if roots:
        held = {"@type": secret, "name": "ROOTCA", "validation_context": {"trusted_ca": inline(roots)}}
        entries.append({"@type": kind, "name": "ROOTCA", "last_updated": updated, "secret": held})
    return {"configs": entries} if entries else {}


def envoy(chain: str, roots: str) -> dict[str, Answer]:
    """The admin port of an Envoy that knows the filter."""
    active = json.dumps(secrets_dump(chain, roots)).encode()
    return {"/config_dump?resource=dynamic_active_secrets": (200, active)} | {
        "/config_dump?resource=dynamic_warming_secrets": (200, b"{}"),
        "/config_dump": (200, b'{"configs": []}'),
    }


class Ports:
    """Servers on loopback addresses, all closed together."""

    def __init__(self) -> None:
        self._closers: list[Callable[[], object]] = []

    def http(self, address: str, port: int, answers: dict[str, Answer] | Callable[[str], Answer]) -> None:
        """Plain HTTP GET: an answer per path with its query."""
        ask = answers if callable(answers) else lambda path: answers.get(path, (404, b"not found"))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = ask(self.path)
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer((address, port), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self._closers += [server.server_close, server.shutdown]

    def grpc_ca(self, address: str, ca: SigningService, port: int = 15012) -> None:
        """istiod's certificate service, by Google's own gRPC library."""
        server = grpc.server(ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers((ca,))
        chain, key = ca.serving()
        server.add_secure_port(f"{address}:{port}", grpc.ssl_server_credentials([(key, chain)]))
        server.start()
        self._closers.append(lambda: server.stop(0).wait())

    def close(self) -> None:
        """Stop all of them."""
        while self._closers:
            self._closers.pop()()


class SigningService(grpc.GenericRpcHandler):
    """What istiod signs with, to be changed while it runs.

    Attributes:
        chain: Elements between the leaf and the roots, as istiod sends cert-chain.pem.
        roots: Text of the last element.
        refuse: A gRPC status to answer with instead.
    """

    def __init__(self, issuer: Minted, *, chain: str, roots: str, dns: str = "istiod.istio-system.svc") -> None:
        self.issuer = issuer
        self.chain = chain
        self.roots = roots
        self.dns = dns
        self.refuse: tuple[grpc.StatusCode, str] | None = None
        self.tokens: list[str] = []
        self.lifetimes: list[int] = []
        self.identity = "spiffe://cluster.local/ns/capstan-system/sa/capstan"

    def serving(self) -> tuple[bytes, bytes]:
        """Certificate chain and key of its port."""
        key = ec.generate_private_key(ec.SECP256R1())
        own = leaf(self.issuer, f"spiffe://cluster.local/{self.dns}", key=key.public_key())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return (pem(own) + (self.chain or pem(self.issuer))).encode(), private

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != METHOD:
            return None
        self.tokens += [value for key, value in details.invocation_metadata or () if key == "authorization"]
        return grpc.unary_unary_rpc_method_handler(self._sign)

    def _sign(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if self.refuse is not None:
            context.abort(*self.refuse)
        csr, lifetime = _fields(request)
        self.lifetimes.append(lifetime)
        asked = x509.load_pem_x509_csr(csr)
        assert asked.is_signature_valid
        made = leaf(self.issuer, self.identity, key=asked.public_key(), life=timedelta(seconds=lifetime))
        return encode_elements(pem(made), *([self.chain] if self.chain else []), self.roots)


def _fields(message: bytes) -> tuple[bytes, int]:
    """The CSR's text (field 1, below 16 KiB) and the lifetime (field 3) of a request."""
    assert message[0] == 0x0A
    length, start = (message[1], 2) if message[1] < 0x80 else ((message[1] & 0x7F) | message[2] << 7, 3)
    rest = message[start + length :]
    assert rest[0] == 0x18
    return message[start : start + length], sum((byte & 0x7F) << 7 * index for index, byte in enumerate(rest[1:]))


def encode_elements(*texts: str) -> bytes:
    """A response with these elements."""
    out = b""
    for text in texts:
        size = len(text.encode())
        assert size < 1 << 14
        out += b"\x0a" + (bytes([size & 0x7F | 0x80, size >> 7]) if size > 0x7F else bytes([size])) + text.encode()
    return out


class Mesh:
    """A node, and pods on it."""

    def __init__(self, running: Running, cluster: Cluster) -> None:
        self.cluster = cluster
        self.ports = Ports()
        self._pool = AddressPool()
        self._running = running
        self._addresses: dict[tuple[str, str], str] = {}
        kubelet: Any = SimpleNamespace(name="node-1", worker=self._worker, workers={})
        configmaps: Any = SimpleNamespace(get=lambda *_: None)
        self._kubelet = KubeletServer(kubelet, configmaps)
        running.call(self._kubelet.start("127.0.0.1", 0))
        port = self._kubelet._server.sockets[0].getsockname()[1]
        self._register(port)

    def _register(self, port: int) -> None:
        addresses = [{"type": "InternalIP", "address": "127.0.0.1"}]
        status = {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "status": status}
        self.cluster.delete(NODES, "node-1")
        self.cluster.create(NODES, body)

    def _worker(self, namespace: str, name: str, _uid: str | None) -> SimpleNamespace | None:
        address = self._addresses.get((namespace, name))
        return SimpleNamespace(ip=address) if address else None

    def namespace(self, name: str) -> None:
        """With its default service account; unless it is there."""
        with contextlib.suppress(Conflict):
            self.cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
            self._account(name, "default")

    def account(self, namespace: str, name: str) -> None:
        """A service account, with its namespace."""
        self.namespace(namespace)
        self._account(namespace, name)

    def _account(self, namespace: str, name: str) -> None:
        body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
        with contextlib.suppress(Conflict):
            self.cluster.create(SERVICE_ACCOUNTS, body)

    def pod(
        self,
        namespace: str,
        name: str,
        spec: dict[str, Any],
        *,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        owner: dict[str, Any] | None = None,
        running: bool = True,
    ) -> str:
        """A running, ready pod; returns its address."""
        self.namespace(namespace)
        metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": labels or {}}
        metadata["annotations"] = annotations or {}
        metadata["ownerReferences"] = [owner] if owner else []
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**spec, "nodeName": "node-1"}}
        self.cluster.create(PODS, body)
        address = self._pool.take()
        self._addresses[namespace, name] = address
        if running:
            self.set_status(namespace, name, spec)
        return address

    def set_status(self, namespace: str, name: str, spec: dict[str, Any], *, started: str = "") -> None:
        """As the kubelet reports a pod that runs."""
        at = started or "2026-11-22T00:00:00Z"
        status: dict[str, Any] = {"phase": "Running", "startTime": at, "podIP": self._addresses[namespace, name]}
        status["conditions"] = [{"type": "Ready", "status": "True"}]
        for group in ("containers", "initContainers"):
            key = "containerStatuses" if group == "containers" else "initContainerStatuses"
            status[key] = [
                {
                    "name": item["name"], "image": item["image"], "imageID": "", "ready": True, "restartCount": 0,
                    "state": {"running": {"startedAt": at}},
                }
                for item in spec.get(group, ())
            ]  # fmt: skip
        self.cluster.patch(PODS, name, {"status": status}, namespace, subresource="status")

    def deployment(self, namespace: str, name: str, template: dict[str, Any], *, replicas: int = 1) -> dict[str, Any]:
        """A Deployment that has rolled out, and its ReplicaSet, whose ownerReference is returned for its pods."""
        self.namespace(namespace)
        labels = template["metadata"]["labels"]
        spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
        metadata = {"name": name, "namespace": namespace, "labels": labels}
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
        made = self.cluster.create(DEPLOYMENTS, body)
        status = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), replicas)
        status["observedGeneration"] = made["metadata"].get("generation", 1)
        self.cluster.patch(DEPLOYMENTS, name, {"status": status}, namespace, subresource="status")
        parent = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name, "uid": made["metadata"]["uid"]}
        hashed = {**template, "metadata": {"labels": {**labels, "pod-template-hash": "abc"}}}
        selector = {"matchLabels": {**labels, "pod-template-hash": "abc"}}
        owned = {"name": f"{name}-abc", "namespace": namespace, "labels": hashed["metadata"]["labels"]}
        owned["ownerReferences"] = [{**parent, "controller": True}]
        body = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": owned}
        body["spec"] = {"replicas": replicas, "selector": selector, "template": hashed}
        replica_set = self.cluster.create(REPLICA_SETS, body)
        uid = replica_set["metadata"]["uid"]
        return {
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{name}-abc", "uid": uid, "controller": True
        }  # fmt: skip

    def close(self) -> None:
        """Stop every port and the node."""
        self.ports.close()
        self._pool.close()
        self._running.call(self._kubelet.stop())


__all__ = ["Mesh", "Ports", "SigningService", "encode_elements", "envoy", "intermediate", "leaf", "pem", "root"]
