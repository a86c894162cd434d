"""Workloads of every kind at once on a whole Linkerd: each is restarted, or listed with its reason."""

from __future__ import annotations

import copy
from datetime import UTC, datetime

import pytest

from capstan.cluster.resources import (
    CRON_JOBS,
    DAEMON_SETS,
    DEPLOYMENTS,
    JOBS,
    NAMESPACES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    REPLICA_SETS,
    REPLICATION_CONTROLLERS,
    STATEFUL_SETS,
    Resource,
)
from capstan.cluster.workloads import is_ready
from capstan.errors import NotFound
from capstan.pki.mint import RootPolicy, mint_root
from capstan.systems.linkerd.data_plane import stale_owners
from capstan.systems.linkerd.pods import proxy_runs
from capstan.trust.observation import Owner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
WIDGETS = Resource("example.org", "v1", "widgets", "Widget")
SPACE = "estate"


def template(name, *, script="", **spec):
    container = {"name": "app", "image": "registry.example/app:1"}
    if script:
        container["command"] = ["sh", "-c", script]
    return {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container], **spec}}


def create(cluster, resource, name, *, namespace=SPACE, owner=None, pod_template=None, **spec):
    """A workload whose pods are labelled by its name; `owner` is an object that controls it."""
    metadata = {"name": name, "namespace": namespace}
    if owner is not None:
        reference = {key: owner[key] for key in ("apiVersion", "kind")}
        metadata["ownerReferences"] = [
            reference | {"name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], "controller": True}
        ]
    body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
    if resource is REPLICATION_CONTROLLERS:
        spec["selector"] = {"app": name}
    elif resource not in (JOBS, CRON_JOBS):
        spec["selector"] = {"matchLabels": {"app": name}}
    if resource is STATEFUL_SETS:
        spec["serviceName"] = name
    if resource is not CRON_JOBS:
        spec["template"] = pod_template or template(name)
    return cluster.create(resource, body | {"spec": spec})


def space(cluster, name, **metadata):
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, **metadata}})


def widget(cluster):
    """A custom resource of a kind that nobody knows."""
    names = {"plural": "widgets", "singular": "widget", "kind": "Widget"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    spec = {"group": "example.org", "scope": "Namespaced", "names": names, "versions": [version]}
    body = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    cluster.create(CRDS, {**body, "metadata": {"name": "widgets.example.org"}, "spec": spec})
    item = {"apiVersion": "example.org/v1", "kind": "Widget", "metadata": {"name": "custom", "namespace": SPACE}}
    until = cluster.clock() + 10
    while True:
        try:
            return cluster.create(WIDGETS, {**item, "spec": {}})
        except NotFound:  # its definition is not served yet
            assert cluster.clock() < until
            cluster.sleep(0.1)


def by_hand(cluster, pod_name):
    """The template that `linkerd inject --manual` would leave: an injected pod's, the roots in it."""
    pod = cluster.get(PODS, pod_name, SPACE)
    spec = copy.deepcopy(pod["spec"])
    token = {volume["name"] for volume in spec["volumes"] if volume["name"].startswith("kube-api-access")}
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] not in token]
    for container in [*spec["initContainers"], *spec["containers"]]:
        mounts = container.get("volumeMounts") or []
        container["volumeMounts"] = [mount for mount in mounts if mount["name"] not in token]
    for field in ("nodeName", "serviceAccount", "tolerations", "priority", "preemptionPolicy"):
        spec.pop(field, None)
    labels = {"app": "by-hand", "linkerd.io/control-plane-ns": "linkerd", "linkerd.io/workload-ns": SPACE}
    return {"metadata": {"labels": labels}, "spec": spec}


def wait_for(cluster, condition, seconds=60):
    until = cluster.clock() + seconds
    while not condition():
        assert cluster.clock() < until, "the lab did not come to it"
        cluster.sleep(0.25)


def live(cluster, namespace):
    """Pods that have not ended."""
    pods = cluster.list(PODS, namespace).items
    return [pod for pod in pods if pod["status"].get("phase") not in ("Succeeded", "Failed")]


def settled(cluster, namespace, count):
    found = live(cluster, namespace)
    return len(found) == count and all(is_ready(pod) and proxy_runs(pod) for pod in found)


def populate(cluster):
    space(cluster, SPACE, annotations={"linkerd.io/inject": "enabled", "config.linkerd.io/opaque-ports": "6379"})
    space(cluster, "leaving", annotations={"linkerd.io/inject": "enabled"})
    space(cluster, "linkerd-viz", labels={"linkerd.io/extension": "viz"}, annotations={"linkerd.io/inject": "enabled"})
    create(cluster, DEPLOYMENTS, "rolling", replicas=1)
    create(cluster, DEPLOYMENTS, "recreated", replicas=1, strategy={"type": "Recreate"})
    create(cluster, DEPLOYMENTS, "paused", replicas=1)
    create(cluster, DEPLOYMENTS, "asleep", replicas=0)
    create(cluster, STATEFUL_SETS, "by-delete", replicas=1, updateStrategy={"type": "OnDelete"})
    create(cluster, DAEMON_SETS, "everywhere", updateStrategy={"type": "OnDelete"})
    create(cluster, REPLICA_SETS, "kept", replicas=1)
    create(cluster, REPLICATION_CONTROLLERS, "ancient", replicas=1)
    create(cluster, REPLICA_SETS, "custom-1", owner=widget(cluster), replicas=1)
    create(cluster, DEPLOYMENTS, "unmarked", namespace="leaving", replicas=1)
    create(cluster, DEPLOYMENTS, "tap", namespace="linkerd-viz", replicas=1)
    bare = {"name": "bare", "namespace": SPACE, "labels": {"app": "bare"}}
    cluster.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": bare, "spec": template("bare")["spec"]})
    working = template("working", script="sleep 900", restartPolicy="Never")
    create(cluster, JOBS, "working", pod_template=working)
    create(cluster, JOBS, "finished", pod_template=template("finished", script="true", restartPolicy="Never"))
    nightly = template("nightly", script="sleep 900", restartPolicy="Never")
    job = {"spec": {"template": nightly}}
    cron = create(cluster, CRON_JOBS, "nightly", schedule="0 0 1 1 *", jobTemplate=job)
    create(cluster, JOBS, "nightly-1", owner=cron, pod_template=nightly)
    budget = {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}}
    metadata = {"name": "keep", "namespace": SPACE}
    body = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": budget}
    cluster.create(POD_DISRUPTION_BUDGETS, body)
    nodes = 3
    wait_for(cluster, lambda: settled(cluster, SPACE, 10 + nodes), 120)
    wait_for(cluster, lambda: settled(cluster, "leaving", 1) and settled(cluster, "linkerd-viz", 1))
    create(cluster, DEPLOYMENTS, "by-hand", replicas=1, pod_template=by_hand(cluster, "bare"))
    wait_for(cluster, lambda: settled(cluster, SPACE, 11 + nodes), 60)
    cluster.patch(DEPLOYMENTS, "paused", {"spec": {"paused": True}}, SPACE)
    cluster.patch(NAMESPACES, "leaving", {"metadata": {"annotations": {"linkerd.io/inject": None}}})


RESTARTED = {
    Owner("Deployment", SPACE, "rolling"),
    Owner("Deployment", SPACE, "recreated"),
    Owner("StatefulSet", SPACE, "by-delete"),
    Owner("DaemonSet", SPACE, "everywhere"),
    Owner("ReplicationController", SPACE, "ancient"),
    Owner("Widget", SPACE, "custom"),
    Owner("Deployment", "linkerd-viz", "tap"),
}
LISTED = {
    Owner("Deployment", SPACE, "paused"): "kubectl rollout resume",
    Owner("Deployment", SPACE, "by-hand"): "inject and apply it again",
    Owner("ReplicaSet", SPACE, "kept"): "disruption budget keep never lets a pod go",
    Owner("Deployment", "leaving", "unmarked"): "would come back without its proxy",
    Owner("Pod", SPACE, "bare"): "delete it and apply it again",
    Owner("Job", SPACE, "working"): "wait, or delete it",
    Owner("CronJob", SPACE, "nightly"): "wait, or delete its Job",
}


@pytest.mark.proves(
    "workloads", "all kinds at once", "each restarted, or listed with reason and choice; none forgotten"
)
@pytest.mark.proves("workloads", "ReplicationControllers", "old pods are evicted")
@pytest.mark.proves("workloads", "Jobs that have ended", "no process of theirs is left: neither restarted nor listed")
def test_every_workload_is_restarted_or_listed_with_its_reason_and_none_is_forgotten(lab, linkerd, cluster):
    populate(cluster)
    view = linkerd.view()
    policy = RootPolicy(common_name="root.linkerd.cluster.local")
    root = mint_root(policy, policy.next_generation(view.bundle), datetime.now(UTC))
    wanted = view.bundle.union([root.certificate])
    roots = wanted.fingerprints
    before = {proxy.peer.owner for proxy in view.proxies}
    assert set(LISTED) | RESTARTED <= before
    assert Owner("Job", SPACE, "finished") not in before

    linkerd.ensure_bundle(wanted)
    linkerd.restart_control_plane(roots, "turn-1", seconds=120)
    report = linkerd.restart_data_plane(roots, "turn-1", seconds=200)

    restarted = {entry.owner for entry in report.restarted}
    listed = {entry.owner: entry.reason for entry in report.skipped}
    assert restarted >= RESTARTED
    assert set(listed) == set(LISTED)
    for owner, reason in LISTED.items():
        assert reason in listed[owner]
    # The independent account: whoever still holds other roots is exactly who was listed.
    assert set(stale_owners(linkerd.view(), roots, None)) == set(LISTED)
    asleep = cluster.get(DEPLOYMENTS, "asleep", SPACE)
    assert asleep["spec"]["replicas"] == 0
    assert lab.judged()["failures"] == []
