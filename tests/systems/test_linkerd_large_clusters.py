"""What a rotation asks of the API server does not grow with workloads that are none of its business."""

from __future__ import annotations

import secrets as random

import pytest

from capstan.cluster.resources import CONFIG_MAPS, DEPLOYMENTS, NAMESPACES, PODS, REPLICA_SETS, SERVICE_ACCOUNTS
from capstan.cluster.workloads import Owners
from capstan.systems.linkerd.data_plane import require_injected
from capstan.systems.linkerd.observe import observe
from capstan.trust.observation import Owner
from tests.pki.ca import make
from tests.support.apiserver import Running

MESHED = "linkerd.io/control-plane-ns=linkerd"
LABELS = {"app": "web"}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    running = Running(tmp_path_factory.mktemp("apiserver"))
    cluster = running.connect()
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "elsewhere"}})
    cluster.create(REPLICA_SETS, replica_set("elsewhere", "web-1"))
    cluster.close()
    yield running
    running.stop()


@pytest.fixture
def cluster(running):
    cluster = running.connect()
    yield cluster
    cluster.close()


def replica_set(namespace, name):
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "1", "controller": True}
    metadata = {"name": name, "namespace": namespace, "ownerReferences": [reference]}
    template = {"metadata": {"labels": LABELS}, "spec": {"containers": [{"name": "app", "image": "app:1"}]}}
    spec = {"replicas": 0, "selector": {"matchLabels": LABELS}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata, "spec": spec}


@pytest.fixture
def namespace(cluster):
    """A namespace with a pod that has its proxy, of a Deployment."""
    name = f"n-{random.token_hex(4)}"
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
    cluster.create(SERVICE_ACCOUNTS, account)  # no controller makes it here
    created = cluster.create(REPLICA_SETS, replica_set(name, "web-1"))
    uid = created["metadata"]["uid"]
    reference = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": uid, "controller": True}
    for pod, containers in (("meshed", ["app", "linkerd-proxy"]), ("bare", ["app"])):
        metadata = {"name": pod, "namespace": name, "labels": LABELS}
        if pod == "meshed":
            metadata["ownerReferences"] = [reference]
        spec = {"containers": [{"name": each, "image": f"{each}:1"} for each in containers]}
        cluster.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return name


@pytest.fixture(scope="module")
def installed(running):
    """As much of a control plane as a look at it takes, and one meshed workload."""
    cluster = running.connect()
    for name in ("linkerd", "shop"):
        cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
        cluster.create(SERVICE_ACCOUNTS, account)
    data = {"ca-bundle.crt": make("root.linkerd.cluster.local").certificate.pem()}
    metadata = {"name": "linkerd-identity-trust-roots", "namespace": "linkerd"}
    cluster.create(CONFIG_MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    template = {"metadata": {"labels": LABELS}, "spec": {"containers": [{"name": "identity", "image": "i:1"}]}}
    spec = {"selector": {"matchLabels": LABELS}, "template": template}
    metadata = {"name": "linkerd-identity", "namespace": "linkerd"}
    cluster.create(DEPLOYMENTS, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
    for namespace, name in (("linkerd", "linkerd-identity-1"), ("shop", "web-1")):
        labels = {"linkerd.io/control-plane-ns": "linkerd"}
        metadata = {"name": name, "namespace": namespace, "labels": labels}
        spec = {"containers": [{"name": "linkerd-proxy", "image": "p:1"}]}
        cluster.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    cluster.close()


def test_looking_for_pods_without_their_proxy_lists_nothing_of_other_namespaces(cluster, namespace):
    before = cluster.requests
    require_injected(cluster, Owner("Deployment", namespace, "web"))
    assert cluster.requests - before == 1  # the pods; the one without a proxy has no ReplicaSet to look for


def test_owners_of_one_namespace_are_found_without_listing_the_others(cluster, namespace):
    pod = cluster.get(PODS, "meshed", namespace)
    stranger = {"metadata": {**pod["metadata"], "namespace": "elsewhere"}}
    of_one, of_all = Owners(cluster, namespace), Owners(cluster)
    for finder in (of_one, of_all):
        assert finder.of(pod) == Owner("Deployment", namespace, "web")
    before = cluster.requests
    assert of_all.of(stranger) == Owner("Deployment", "elsewhere", "web")
    assert cluster.requests == before  # listed
    assert of_one.of(stranger) == Owner("Deployment", "elsewhere", "web")
    assert cluster.requests == before + 1  # read by itself


def test_looking_at_the_control_plane_lists_no_pods_of_workloads(cluster, installed):
    """The control plane's restart looks every second: thousands of pods would be sent each time."""
    found = [pod["metadata"]["name"] for pod in cluster.list(PODS, label_selector=MESHED).items]
    assert sorted(found) == ["linkerd-identity-1", "web-1"]
    asked = []
    observe(cluster, "linkerd", within="linkerd", only=lambda pod: asked.append(pod["metadata"]["name"]))
    assert asked == ["linkerd-identity-1"]
