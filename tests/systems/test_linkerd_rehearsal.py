"""A birth is rehearsed as the cluster's own rules let a pod be born, and what refuses it is not taken for the injector.

A real API server asks a real webhook over TLS: the injector's own patch, and the policies that clusters have.
"""

from __future__ import annotations

import base64
import http.server
import ipaddress
import json
import secrets as random
import ssl
import threading

import pytest
from cryptography import x509
from kubernetes import client as kubernetes_client

from capstan.cluster.client import Cluster
from capstan.cluster.resources import (
    MUTATING_WEBHOOKS,
    NAMESPACES,
    PODS,
    SERVICE_ACCOUNTS,
    VALIDATING_WEBHOOKS,
    Resource,
)
from capstan.errors import Denied, GateRefused, GateTimedOut
from capstan.pki.bundle import Bundle
from capstan.pki.keys import PrivateKey
from capstan.systems.linkerd.rehearsal import await_injector
from infra.lab.linkerd import inject
from infra.lab.linkerd.sidecar import SidecarConfig
from tests.pki.ca import SERVER, make
from tests.support.apiserver import Running

ROOT, STALE = make("root.linkerd.cluster.local").certificate, make("root.linkerd.cluster.local").certificate
WANTED = frozenset({ROOT.fingerprint})
CONFIG = SidecarConfig("linkerd", "edge-26.8.3", "cluster.local", native=True)
RBAC = "rbac.authorization.k8s.io"
CLUSTER_ROLES = Resource(RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False)
CLUSTER_ROLE_BINDINGS = Resource(RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False)
READS = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch"]}
AUDIENCE = "https://kubernetes.default.svc.cluster.local"
IMAGE = "registry.example/shop/web:1.4"


class Hooks:
    """The injector at /inject, and the cluster's policies at /policy."""

    def __init__(self, directory):
        self.roots = Bundle.of(ROOT).pem()
        self.seen = []
        hooks = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                review = json.loads(self.rfile.read(int(self.headers["content-length"])))
                answer = getattr(hooks, self.path.partition("?")[0].strip("/"))(review["request"])
                body = json.dumps({**review, "response": {"uid": review["request"]["uid"], **answer}}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Keep the test's output clean."""

        authority = make("hooks")
        pair = make("hook", authority, ca=False, eku=[SERVER], san=[x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        self.ca = base64.b64encode(authority.certificate.pem().encode()).decode()
        (directory / "pair.pem").write_bytes(pair.certificate.pem().encode() + b"\n" + PrivateKey(pair.key).pem())
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "pair.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def inject(self, request):
        pod, namespace = request["object"], request["namespace"]
        if inject.skip_reason(pod, {}):
            return {"allowed": True}
        owner = ("Pod", "x")
        patch = inject.patch(pod, namespace=namespace, roots_pem=self.roots, config=CONFIG, owner=owner)
        encoded = base64.b64encode(json.dumps(patch).encode()).decode()
        return {"allowed": True, "patchType": "JSONPatch", "patch": encoded}

    def policy(self, request):
        """Images of the company's registry only, with limits, and with an owner to call at night."""
        pod = request["object"]
        container = pod["spec"]["containers"][0]
        self.seen.append(pod["metadata"].get("generateName"))
        wrong = [
            text
            for text, right in (
                ("image is not from registry.example", container["image"].startswith("registry.example/")),
                ("must have limits", (container.get("resources") or {}).get("limits")),
                ("label team is missing", (pod["metadata"].get("labels") or {}).get("team")),
            )
            if not right
        ]
        return {"allowed": not wrong, "status": {"code": 403, "message": ", ".join(wrong)}}


@pytest.fixture(scope="module")
def hooks(tmp_path_factory):
    hooks = Hooks(tmp_path_factory.mktemp("hooks"))
    yield hooks
    hooks.server.shutdown()
    hooks.server.server_close()


@pytest.fixture(scope="module")
def running(tmp_path_factory, hooks):
    running = Running(tmp_path_factory.mktemp("apiserver"))
    cluster = running.connect()
    for resource, path, labels in (
        (MUTATING_WEBHOOKS, "inject", {"mesh": "yes"}),
        (VALIDATING_WEBHOOKS, "policy", {"policy": "yes"}),
    ):
        url = f"https://127.0.0.1:{hooks.server.server_address[1]}/{path}"
        webhook = {
            "name": f"{path}.example.com",
            "clientConfig": {"url": url, "caBundle": hooks.ca},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
            "namespaceSelector": {"matchLabels": labels},
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": path}}
        cluster.create(resource, {**body, "webhooks": [webhook]})
    cluster.close()
    yield running
    running.stop()


@pytest.fixture
def cluster(running, hooks):
    hooks.roots = Bundle.of(ROOT).pem()
    cluster = running.connect(sleep=lambda _seconds: None)
    yield cluster
    cluster.close()


@pytest.fixture
def mesh():
    """Name of a control plane's namespace, of its own for each test."""
    return f"linkerd-{random.token_hex(3)}"


def place(cluster, mesh, *, labels=None, policy=False, team="shop", image=IMAGE, by="linkerd/proxy-injector x"):
    """A namespace with a pod that was injected there."""
    name = f"a-{random.token_hex(4)}"
    marks = {"mesh": "yes", **({"policy": "yes"} if policy else {}), **(labels or {})}
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
    cluster.create(SERVICE_ACCOUNTS, account)  # no controller makes it here
    metadata = {
        "name": "web-1",
        "namespace": name,
        "labels": {"linkerd.io/control-plane-ns": mesh, "team": team},
        "annotations": {"linkerd.io/created-by": by, "linkerd.io/inject": "enabled"},
    }
    container = {"name": "web", "image": image, "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}
    spec = {"initContainers": [{"name": "linkerd-proxy", "image": "p:1"}], "containers": [container]}
    cluster.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    cluster.patch(NAMESPACES, name, {"metadata": {"labels": marks}})
    return name


def test_a_rehearsal_passes_the_policies_that_the_namespaces_own_pods_pass(cluster, mesh, hooks):
    place(cluster, mesh, policy=True)
    hooks.seen.clear()
    await_injector(cluster, mesh, WANTED, until=cluster.clock())
    assert hooks.seen == ["capstan-rehearsal-"] * 3


def test_a_namespace_that_refuses_pods_leaves_the_proof_to_another(cluster, mesh, hooks):
    refusing, other = place(cluster, mesh, policy=True, team=""), place(cluster, mesh)
    await_injector(cluster, mesh, WANTED, until=cluster.clock())
    hooks.roots = Bundle.of(STALE).pem()
    with pytest.raises(GateTimedOut) as caught:
        await_injector(cluster, mesh, WANTED, until=cluster.clock())
    assert caught.value.observed == f"in namespace {other}: roots {{{STALE.fingerprint[:8]}}}"
    assert refusing not in caught.value.observed


def test_where_every_namespace_refuses_the_policy_is_named_and_nothing_is_taken_for_proven(cluster, mesh):
    name = place(cluster, mesh, policy=True, team="")
    with pytest.raises(GateRefused, match="no namespace lets a birth be rehearsed") as caught:
        await_injector(cluster, mesh, WANTED, until=cluster.clock())
    assert name in caught.value.observed
    assert "label team is missing" in caught.value.observed


@pytest.mark.parametrize(
    "out",
    [
        {"by": "linkerd/cli x"},
        {"labels": {"config.linkerd.io/admission-webhooks": "disabled", "mesh": "no"}},
    ],
    ids=["injected by hand", "excluded from admission"],
)
def test_a_namespace_where_the_injector_is_not_at_work_is_not_asked(cluster, mesh, out):
    place(cluster, mesh, **out)
    await_injector(cluster, mesh, WANTED, until=cluster.clock())
    place(cluster, mesh)
    await_injector(cluster, mesh, WANTED, until=cluster.clock())


def test_a_namespace_on_its_way_out_is_not_asked(cluster, mesh):
    leaving = place(cluster, mesh)
    cluster.delete(NAMESPACES, leaving)
    assert "deletionTimestamp" in cluster.get(NAMESPACES, leaving)["metadata"]
    place(cluster, mesh)
    await_injector(cluster, mesh, WANTED, until=cluster.clock())


def test_an_injector_that_lets_a_pod_pass_is_found_out(cluster, mesh):
    name = place(cluster, mesh, labels={"mesh": "no"})
    with pytest.raises(GateTimedOut) as caught:
        await_injector(cluster, mesh, WANTED, until=cluster.clock())
    assert caught.value.observed == f"in namespace {name}: no linkerd-proxy was injected"


@pytest.fixture
def reader(running, cluster):
    """A client that may read everything and create nothing."""
    kinds = {"apiVersion": f"{RBAC}/v1", "metadata": {"name": f"reads-{random.token_hex(3)}"}}
    cluster.create(CLUSTER_ROLES, {**kinds, "kind": "ClusterRole", "rules": [READS]})
    account = {"kind": "ServiceAccount", "namespace": "default", "name": kinds["metadata"]["name"]}
    reference = {"apiGroup": RBAC, "kind": "ClusterRole", "name": account["name"]}
    body = {**kinds, "kind": "ClusterRoleBinding", "subjects": [account], "roleRef": reference}
    cluster.create(CLUSTER_ROLE_BINDINGS, body)
    metadata = {"name": account["name"], "namespace": "default"}
    cluster.create(SERVICE_ACCOUNTS, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    admin = cluster.configuration
    options = kubernetes_client.Configuration(host=admin.host)
    options.ssl_ca_cert = admin.ssl_ca_cert
    token = cluster.request_token(account["name"], "default", AUDIENCE)
    options.api_key = {"authorization": f"Bearer {token}"}
    reader = Cluster("test", options)
    yield reader
    reader.close()


def test_the_missing_right_to_create_pods_is_said_as_such(cluster, reader, mesh):
    place(cluster, mesh)
    with pytest.raises(Denied, match='cannot create resource "pods"') as caught:
        await_injector(reader, mesh, WANTED, until=cluster.clock())
    assert caught.value.next_command.startswith("kubectl auth can-i create pods")
