"""Owners that need a decision: how each is replaced, waited for, or listed with what the operator can choose."""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime, timedelta

import pytest

from capstan.cluster import custom
from capstan.cluster.eviction import NeverEvicted, await_replacements, ready_siblings, replace_pods
from capstan.cluster.resources import (
    DEPLOYMENTS,
    POD_DISRUPTION_BUDGETS,
    PODS,
    REPLICA_SETS,
    SERVICE_ACCOUNTS,
    Resource,
)
from capstan.cluster.restart import STAMP, restart_workloads
from capstan.cluster.rollout import judge
from capstan.cluster.workloads import WHY_NOT, Method, PodRef, method, selects
from capstan.errors import Conflict, GateRefused, GateTimedOut, NotFound
from capstan.trust.observation import Owner

CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
LABELS = {"app": "web"}
READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
SPEC = {"containers": [{"name": "app", "image": "app:1"}]}


@pytest.fixture
def namespace(cluster, namespace):
    """With the ServiceAccount that a controller would have made."""
    metadata = {"name": "default", "namespace": namespace}
    cluster.create(SERVICE_ACCOUNTS, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    return namespace


def pod(cluster, namespace, name, owner=None, *, ready=True):
    """A pod, controlled by `owner` (an object), as its kubelet reports it."""
    metadata = {"name": name, "namespace": namespace, "labels": LABELS}
    if owner is not None:
        reference = {key: owner[key] for key in ("apiVersion", "kind")}
        reference |= {"name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], "controller": True}
        metadata["ownerReferences"] = [reference]
    item = cluster.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": SPEC})
    if ready:
        item = cluster.patch(PODS, name, {"status": READY}, namespace, subresource="status")
    return item


def workload(cluster, namespace, resource=DEPLOYMENTS, **spec):
    body = {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": LABELS},
            "template": {"metadata": {"labels": LABELS}, "spec": SPEC},
            **spec,
        },
    }
    return cluster.create(resource, body)


def ref(item):
    metadata = item["metadata"]
    return PodRef(metadata["namespace"], metadata["name"], metadata["uid"])


def budget(cluster, namespace, *, expected, needed, healthy):
    metadata = {"name": "keep", "namespace": namespace}
    spec = {"minAvailable": needed, "selector": {"matchLabels": LABELS}}
    body = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": spec}
    item = cluster.create(POD_DISRUPTION_BUDGETS, body)
    status = {
        "observedGeneration": item["metadata"]["generation"],
        "expectedPods": expected,
        "desiredHealthy": needed,
        "currentHealthy": healthy,
        "disruptionsAllowed": max(healthy - needed, 0),
    }
    cluster.patch(POD_DISRUPTION_BUDGETS, "keep", {"status": status}, namespace, subresource="status")


@pytest.mark.proves("workloads", "paused", "listed: resume it first; its template is left alone")
def test_a_paused_deployment_is_listed_and_not_touched(cluster, namespace):
    workload(cluster, namespace, replicas=1, paused=True)
    (skipped,) = restart_workloads(cluster, [Owner("Deployment", namespace, "web")], "turn-1", seconds=5).skipped
    assert "kubectl rollout resume" in skipped.reason
    template = cluster.get(DEPLOYMENTS, "web", namespace)["spec"]["template"]
    assert STAMP not in (template["metadata"].get("annotations") or {})


@pytest.mark.proves("workloads", "scaled to 0", "restarted at once: there is no pod to wait for")
@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
def test_a_workload_scaled_to_zero_has_ended_its_rollout_with_no_pod(kind):
    item = {"metadata": {"generation": 2}, "spec": {"replicas": 0}, "status": {"observedGeneration": 2}}
    assert judge(kind, item).done


@pytest.mark.proves("workloads", "Recreate", "waited for until no old pod is left and every new one is available")
def test_a_deployment_that_recreates_has_not_ended_while_it_has_no_pod_at_all():
    spec = {"replicas": 2, "strategy": {"type": "Recreate"}}
    item = {"metadata": {"generation": 2}, "spec": spec, "status": {"observedGeneration": 2}}
    assert not judge("Deployment", item).done
    item["status"] |= {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
    assert judge("Deployment", item).done


@pytest.mark.proves("workloads", "bare pods", "listed: nothing would bring them back")
@pytest.mark.proves("workloads", "Jobs that run", "listed: wait, or delete it and apply it again")
@pytest.mark.proves("workloads", "CronJobs", "listed: the next run is fresh")
@pytest.mark.proves("workloads", "static pods", "listed: only the node's kubelet restarts them")
@pytest.mark.parametrize("kind", ["Pod", "Job", "CronJob", "Node"])
def test_what_nothing_would_bring_back_is_listed_with_a_choice_and_its_pods(cluster, namespace, kind):
    owner = Owner(kind, namespace, "web")
    pods = [PodRef(namespace, "web-1", "u")]
    report = restart_workloads(cluster, {owner: pods}, "turn-1", seconds=5)
    (skipped,) = report.skipped
    assert report.restarted == ()
    assert skipped.pods == ("web-1",)
    assert skipped.reason == WHY_NOT[kind]
    assert any(word in skipped.reason for word in ("apply it again", "delete its Job", "move its manifest"))


@pytest.mark.proves("workloads", "a disruption budget of 0", "listed at once with the budget's name; nothing is forced")
def test_a_budget_that_needs_every_pod_is_listed_at_once(cluster, namespace):
    owner = workload(cluster, namespace, REPLICA_SETS, replicas=1)
    old = pod(cluster, namespace, "web-1", owner)
    budget(cluster, namespace, expected=1, needed=1, healthy=1)
    before = cluster.clock()
    report = restart_workloads(cluster, {Owner("Rollout", namespace, "web"): [ref(old)]}, "turn-1", seconds=60)
    assert cluster.clock() - before < 10
    (skipped,) = report.skipped
    assert "disruption budget keep never lets a pod go: it needs 1 of 1 pods healthy" in skipped.reason
    assert "relax the budget" in skipped.reason
    assert cluster.get(PODS, "web-1", namespace)["metadata"]["uid"] == old["metadata"]["uid"]


@pytest.mark.proves("workloads", "a disruption budget of 0", "one that is only short of healthy pods now is waited for")
def test_a_budget_that_waits_for_a_sick_pod_is_waited_for(cluster, namespace):
    owner = workload(cluster, namespace, REPLICA_SETS, replicas=3)
    old = pod(cluster, namespace, "web-1", owner)
    budget(cluster, namespace, expected=3, needed=2, healthy=2)
    with pytest.raises(GateTimedOut, match="disruption budget"):
        replace_pods(cluster, [old], until=cluster.clock() + 0.3, say=lambda _: None)
    assert cluster.find(PODS, "web-1", namespace) is not None


def test_a_budget_for_other_pods_is_not_blamed(cluster, namespace):
    old = pod(cluster, namespace, "web-1", workload(cluster, namespace, REPLICA_SETS, replicas=1))
    budget(cluster, namespace, expected=1, needed=1, healthy=1)
    with pytest.raises(NeverEvicted) as caught:
        replace_pods(cluster, [old], until=cluster.clock() + 5, say=lambda _: None)
    assert "keep" in caught.value.reason
    assert selects({"matchLabels": {"app": "web"}}, LABELS)
    assert not selects({"matchLabels": {"app": "other"}}, LABELS)
    assert not selects(None, LABELS)
    assert selects({}, LABELS)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ({"key": "app", "operator": "In", "values": ["web"]}, True),
        ({"key": "app", "operator": "NotIn", "values": ["web"]}, False),
        ({"key": "app", "operator": "Exists"}, True),
        ({"key": "app", "operator": "DoesNotExist"}, False),
        ({"key": "tier", "operator": "NotIn", "values": ["x"]}, True),
    ],
)
def test_selectors_are_read_as_kubernetes_reads_them(rule, wanted):
    assert selects({"matchExpressions": [rule]}, LABELS) is wanted


@pytest.mark.proves("workloads", "HorizontalPodAutoscaler", "a scale-down amid evictions is not waited against")
def test_fewer_replicas_wanted_meanwhile_are_enough(cluster, namespace):
    owner = workload(cluster, namespace, REPLICA_SETS, replicas=3)
    pods = [pod(cluster, namespace, f"web-{index}", owner) for index in range(3)]
    ready = ready_siblings(cluster, pods[:1])
    assert ready == 3
    cluster.delete(PODS, "web-0", namespace)
    with pytest.raises(GateTimedOut, match="did not become ready"):
        await_replacements(cluster, pods[:1], ready, cluster.clock() + 0.5)
    cluster.patch(REPLICA_SETS, "web", {"spec": {"replicas": 2}}, namespace)
    await_replacements(cluster, pods[:1], ready, cluster.clock() + 5)


def define(cluster, group, version, plural, kind):
    names = {"plural": plural, "singular": kind.lower(), "kind": kind}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    spec = {
        "group": group,
        "scope": "Namespaced",
        "names": names,
        "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
    }
    body = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    with contextlib.suppress(Conflict):  # an earlier test defined it
        cluster.create(CRDS, {**body, "metadata": {"name": f"{plural}.{group}"}, "spec": spec})
    return Resource(group, version, plural, kind)


def make(cluster, resource, namespace):
    body = {"apiVersion": resource.api_version, "kind": resource.kind, "spec": {"replicas": 1}}
    until = cluster.clock() + 5
    while True:
        try:
            return cluster.create(resource, {**body, "metadata": {"name": "web", "namespace": namespace}})
        except NotFound:  # its definition is not served yet
            assert cluster.clock() < until
            cluster.sleep(0.05)


RESTARTED_AT = ("metadata", "annotations", "kubectl.kubernetes.io/restartedAt")
ASKED = [
    ("argoproj.io", "v1alpha1", "rollouts", "Rollout", ("spec", "restartAt")),
    ("postgresql.cnpg.io", "v1", "clusters", "Cluster", RESTARTED_AT),
    ("core.strimzi.io", "v1beta2", "strimzipodsets", "StrimziPodSet",
     ("metadata", "annotations", "strimzi.io/manual-rolling-update")),
]  # fmt: skip


@pytest.mark.proves(
    "workloads", "custom owners (Argo Rollout, CloudNativePG, Strimzi)", "asked in their operator's way"
)
@pytest.mark.parametrize(("group", "version", "plural", "kind", "path"), ASKED, ids=lambda value: str(value))
def test_an_operator_that_has_a_way_to_restart_is_asked_once_and_nothing_is_evicted(
    cluster, namespace, group, version, plural, kind, path
):
    resource = define(cluster, group, version, plural, kind)
    item = make(cluster, resource, namespace)
    old = pod(cluster, namespace, "web-1", item)
    now = datetime.now(UTC) + timedelta(seconds=2)
    owner = Owner(kind, namespace, "web")
    steps = []

    def operator() -> None:
        """Does what it is asked: the old pod goes, a new one is ready."""
        until = cluster.clock() + 10
        while not value_at(cluster.get(resource, "web", namespace), path):
            assert cluster.clock() < until
            cluster.sleep(0.05)
        cluster.delete(PODS, "web-1", namespace)
        pod(cluster, namespace, "web-2", item)

    thread = threading.Thread(target=operator)
    thread.start()
    report = restart_workloads(
        cluster, {owner: [ref(old)]}, "turn-1", seconds=15, now=lambda: now, on_progress=steps.append
    )
    thread.join()
    assert [(entry.changed, entry.evicted) for entry in report.restarted] == [(True, 0)]
    assert any("its operator is asked" in step.message for step in steps)
    written = value_at(cluster.get(resource, "web", namespace), path)
    assert written in ("true", now.strftime("%Y-%m-%dT%H:%M:%SZ"))
    version_before = cluster.get(resource, "web", namespace)["metadata"]["resourceVersion"]
    assert "already" in custom.ask(cluster, owner, [old], now + timedelta(minutes=1))
    assert cluster.get(resource, "web", namespace)["metadata"]["resourceVersion"] == version_before


def value_at(item, path):
    for key in path:
        item = (item or {}).get(key)
    return item


@pytest.mark.proves("workloads", "custom owners of other kinds", "their old pods are evicted one by one")
def test_an_operator_without_a_known_way_is_not_patched(cluster, namespace):
    resource = define(cluster, "example.org", "v1", "rollouts", "Rollout")
    item = make(cluster, resource, namespace)
    old = pod(cluster, namespace, "web-1", item)
    assert custom.ask(cluster, Owner("Rollout", namespace, "web"), [old], datetime.now(UTC)) == ""
    assert method(Owner("Rollout", namespace, "web")) is Method.EVICT
    assert cluster.get(resource, "web", namespace)["metadata"]["resourceVersion"] == item["metadata"]["resourceVersion"]


def test_what_a_look_at_a_restarted_owner_raises_stops_all_before_the_next_is_begun(cluster, namespace):
    owners = [Owner("Rollout", namespace, name) for name in ("a", "b")]
    gone = PodRef(namespace, "gone", "u")
    seen = []

    def verify(owner):
        seen.append(owner.name)
        raise GateRefused("came back wrong")

    with pytest.raises(GateRefused):
        restart_workloads(cluster, {owner: [gone] for owner in owners}, "turn-1", seconds=5, parallel=1, verify=verify)
    assert seen == ["a"]
