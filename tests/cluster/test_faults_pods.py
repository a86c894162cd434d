"""Pods that never become ready, and nodes that are lost: the restart ends in time, and says what holds up which pod."""

from __future__ import annotations

from typing import Any

import pytest

from capstan.cluster.eviction import troubles
from capstan.cluster.resources import DEPLOYMENTS, NODES, PODS, SERVICE_ACCOUNTS
from capstan.cluster.restart import STAMP, restart_workloads
from capstan.errors import GateTimedOut
from capstan.trust.observation import Owner

NEVER_READY = "pods never ready"
NODE_LOST = "node lost"
LABELS = {"app": "web"}
TEMPLATE = {"metadata": {"labels": LABELS}, "spec": {"containers": [{"name": "app", "image": "app:1"}]}}


def waiting(reason: str, message: str) -> dict[str, Any]:
    return {"containerStatuses": [state({"waiting": {"reason": reason, "message": message}})]}


def state(value: dict[str, Any], *, ready: bool = False) -> dict[str, Any]:
    return {"name": "app", "image": "app:1", "imageID": "", "ready": ready, "restartCount": 7, "state": value}


UNREADY = {
    "conditions": [
        {"type": "PodScheduled", "status": "True"},
        {
            "type": "Ready", "status": "False", "reason": "ContainersNotReady",
            "message": "containers with unready status: [app]",
        },
    ],
    "containerStatuses": [state({"running": {"startedAt": "2026-11-22T00:00:00Z"}})],
}  # fmt: skip
PENDING = {
    "conditions": [
        {
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient cpu.",
        }
    ]
}  # fmt: skip
CAUSES = {
    "image": (
        waiting("ImagePullBackOff", 'Back-off pulling image "web:2"'),
        'pod web-1: ImagePullBackOff: Back-off pulling image "web:2"',
    ),
    "crash-loop": (
        waiting("CrashLoopBackOff", "back-off 5m0s restarting failed container=app"),
        "pod web-1: CrashLoopBackOff: back-off 5m0s restarting failed container=app",
    ),
    "configuration": (
        waiting("CreateContainerConfigError", 'secret "db" not found'),
        'pod web-1: CreateContainerConfigError: secret "db" not found',
    ),
    "readiness": (UNREADY, "pod web-1: ContainersNotReady: containers with unready status: [app]"),
    "no-room": (PENDING, "pod web-1: Unschedulable: 0/3 nodes are available: 3 Insufficient cpu."),
}


def deployment(cluster, namespace: str) -> Owner:
    body = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": namespace},
        "spec": {"replicas": 1, "selector": {"matchLabels": LABELS}, "template": TEMPLATE},
    }  # fmt: skip
    cluster.create(DEPLOYMENTS, body)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}
    cluster.create(SERVICE_ACCOUNTS, account)
    return Owner("Deployment", namespace, "web")


def pod(cluster, namespace: str, status: dict[str, Any], *, node: str = "", **metadata: Any) -> None:
    spec = {**TEMPLATE["spec"], **({"nodeName": node} if node else {})}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1", "namespace": namespace, "labels": LABELS}}
    cluster.create(PODS, {**body, "metadata": {**body["metadata"], **metadata}, "spec": spec})
    cluster.patch(PODS, "web-1", {"status": {"phase": "Pending", **status}}, namespace, subresource="status")


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.proves(
    "faults", NEVER_READY, "image pull, crash loop, readiness, no room: named by pod, in time; exit code 3"
)
def test_a_restart_that_does_not_end_names_the_pod_and_its_reason(running, namespace, cause):
    cluster = running.connect()
    owner, (status, said) = deployment(cluster, namespace), CAUSES[cause]
    pod(cluster, namespace, status)
    with pytest.raises(GateTimedOut) as caught:
        restart_workloads(cluster, [owner], "stamp-1", seconds=0.2)
    error = caught.value
    assert error.what == "1 of 1 restarts did not end"
    assert said in error.observed
    assert f"deployment/web -n {namespace}" in error.observed
    assert "within 0 s" in error.expected
    assert error.next_command == f"kubectl get pods -n {namespace}"
    # Nothing is lost: the stamp stands, so that a later run only waits for what is under way.
    written = cluster.get(DEPLOYMENTS, "web", namespace)["spec"]["template"]["metadata"]["annotations"]
    assert written[STAMP] == "stamp-1"
    before = cluster.get(DEPLOYMENTS, "web", namespace)["metadata"]["resourceVersion"]
    with pytest.raises(GateTimedOut):
        restart_workloads(cluster, [owner], "stamp-1", seconds=0.2)
    assert cluster.get(DEPLOYMENTS, "web", namespace)["metadata"]["resourceVersion"] == before


@pytest.fixture
def lost_node(running, namespace):
    cluster, name = running.connect(), f"node-{namespace}"
    cluster.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    condition = {
        "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
        "message": "Kubelet stopped posting node status.",
    }  # fmt: skip
    cluster.patch(NODES, name, {"status": {"conditions": [condition]}}, subresource="status")
    yield name
    cluster.delete(NODES, name)
    cluster.close()


@pytest.mark.proves("faults", NODE_LOST, "the node, its own reason and the command that frees its pods are named")
def test_a_pod_on_a_lost_node_names_the_node_and_what_to_do(running, namespace, lost_node):
    cluster = running.connect()
    owner = deployment(cluster, namespace)
    condition = {
        "type": "Ready",
        "status": "False",
        "reason": "NodeLost",
        "message": "Node which was running it is lost",
    }
    pod(cluster, namespace, {"phase": "Running", "conditions": [condition]}, node=lost_node)
    (line,) = troubles(cluster, owner)
    assert line == (
        f"pod web-1: NodeLost: Node which was running it is lost; its node {lost_node} is not ready "
        "(NodeStatusUnknown: Kubelet stopped posting node status.): bring it back, "
        f"or kubectl delete node {lost_node}"
    )


@pytest.mark.proves("faults", NODE_LOST, "a pod that is Terminating for ever is named with its node")
def test_a_pod_that_terminates_for_ever_is_named_with_its_node_though_it_calls_itself_ready(
    running, namespace, lost_node
):
    cluster = running.connect()
    owner = deployment(cluster, namespace)
    # As a kubelet that is gone left it: ready, and never to be deleted by anybody else.
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    pod(cluster, namespace, ready, node=lost_node, finalizers=["example.org/kubelet-is-gone"])
    cluster.delete(PODS, "web-1", namespace)
    with pytest.raises(GateTimedOut) as caught:
        restart_workloads(cluster, [owner], "stamp-1", seconds=0.2)
    assert "pod web-1: is being deleted; its node" in caught.value.observed
    assert f"kubectl delete node {lost_node}" in caught.value.observed
    body = {"metadata": {"finalizers": None}}
    cluster.patch(PODS, "web-1", body, namespace)


def test_who_may_not_list_nodes_is_told_of_the_pod_all_the_same(running, namespace, lost_node, faults):
    cluster = running.connect()
    owner = deployment(cluster, namespace)
    pod(cluster, namespace, UNREADY, node=lost_node)
    faults(method="GET", path=r"/api/v1/nodes\?", times=0, action={"status": 403})
    assert troubles(cluster, owner) == (CAUSES["readiness"][1],)
