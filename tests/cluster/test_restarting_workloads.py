"""Restarting workloads of every kind on a whole lab cluster: controllers, kubelets, scheduler."""

from __future__ import annotations

import asyncio
import secrets
import threading

import pytest

from capstan.cluster.client import Cluster
from capstan.cluster.eviction import pods_of
from capstan.cluster.portforward import PodStream, http_get
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
)
from capstan.cluster.restart import STAMP, restart_workloads
from capstan.cluster.workloads import Method, Owners, is_ready, method
from capstan.errors import GateTimedOut, InvalidInput, NotFound, Unreachable
from capstan.trust.observation import Owner
from infra.lab.up import Lab, Options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="lab", daemon=True)
    thread.start()

    def call(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    lab = Lab(Options(tmp_path_factory.mktemp("lab"), system="none"))
    call(lab.start())
    yield lab
    call(lab.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


@pytest.fixture
def cluster(lab):
    cluster = Cluster.connect(kubeconfig=lab.kubeconfig, name="lab")
    yield cluster
    cluster.close()


@pytest.fixture
def namespace(cluster):
    name = f"t-{secrets.token_hex(4)}"
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    cluster.delete(NAMESPACES, name)


TEMPLATE = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": "app:1"}]}}
SELECTOR = {"matchLabels": {"app": "web"}}


def make(cluster, namespace, resource, ready, template=None, **spec):
    body = {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"selector": SELECTOR, "template": template or TEMPLATE, **spec},
    }
    item = cluster.create(resource, body)
    wait_for(lambda: sum(map(is_ready, cluster.list(PODS, namespace).items)) == ready, cluster)
    return item


def wait_for(condition, cluster, seconds=30):
    until = cluster.clock() + seconds
    while not condition():
        assert cluster.clock() < until, "the lab did not come to it"
        cluster.sleep(0.1)


def uids(cluster, namespace):
    return {
        pod["metadata"]["uid"]
        for pod in cluster.list(PODS, namespace).items
        if "deletionTimestamp" not in pod["metadata"]
    }


KINDS = [
    (DEPLOYMENTS, {"replicas": 2}),
    (STATEFUL_SETS, {"replicas": 2, "serviceName": "web"}),
    (DAEMON_SETS, {}),
]


@pytest.mark.parametrize(("resource", "spec"), KINDS, ids=lambda value: getattr(value, "kind", ""))
def test_a_rollout_replaces_every_pod_and_a_second_run_only_waits(cluster, namespace, resource, spec):
    count = 3 if resource is DAEMON_SETS else 2
    make(cluster, namespace, resource, count, **spec)
    before = uids(cluster, namespace)
    steps = []
    owner = Owner(resource.kind, namespace, "web")
    report = restart_workloads(cluster, [owner], "turn-1", seconds=60, on_progress=steps.append)
    after = uids(cluster, namespace)
    assert [entry.changed for entry in report.restarted] == [True]
    assert len(after) == count
    assert not before & after
    assert steps[-1].done
    again = restart_workloads(cluster, [owner], "turn-1", seconds=60)
    assert [entry.changed for entry in again.restarted] == [False]
    assert uids(cluster, namespace) == after
    template = cluster.get(resource, "web", namespace)["spec"]["template"]
    assert template["metadata"]["annotations"][STAMP] == "turn-1"


def test_a_new_stamp_restarts_again(cluster, namespace):
    make(cluster, namespace, DEPLOYMENTS, 1, replicas=1)
    owner = Owner("Deployment", namespace, "web")
    restart_workloads(cluster, [owner], "turn-1", seconds=60)
    before = uids(cluster, namespace)
    restart_workloads(cluster, [owner], "turn-2", seconds=60)
    assert not before & uids(cluster, namespace)


@pytest.mark.proves("workloads", "OnDelete", "old pods are evicted one by one under their budgets")
@pytest.mark.parametrize(
    ("resource", "spec", "count"),
    [
        (STATEFUL_SETS, {"replicas": 2, "serviceName": "web", "updateStrategy": {"type": "OnDelete"}}, 2),
        (DAEMON_SETS, {"updateStrategy": {"type": "OnDelete"}}, 3),
        (REPLICA_SETS, {"replicas": 2}, 2),
        (REPLICATION_CONTROLLERS, {"replicas": 1, "selector": {"app": "web"}}, 1),
    ],
    ids=["StatefulSet OnDelete", "DaemonSet OnDelete", "bare ReplicaSet", "ReplicationController"],
)
def test_what_does_not_roll_by_itself_is_evicted_one_by_one(cluster, namespace, resource, spec, count):
    make(cluster, namespace, resource, count, **spec)
    before = uids(cluster, namespace)
    owner = Owner(resource.kind, namespace, "web")
    report = restart_workloads(cluster, [owner], "turn-1", seconds=90)
    assert [entry.evicted for entry in report.restarted] == [count]
    assert len(uids(cluster, namespace)) == count
    assert not before & uids(cluster, namespace)
    again = restart_workloads(cluster, [owner], "turn-1", seconds=30)
    assert [(entry.changed, entry.evicted) for entry in again.restarted] == [(False, 0)]


def test_pods_below_a_partition_are_born_again_too(cluster, namespace):
    update = {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}
    make(cluster, namespace, STATEFUL_SETS, 2, replicas=2, serviceName="web", updateStrategy=update)
    cluster.sleep(1.1)  # births are told apart by whole seconds
    before = uids(cluster, namespace)
    report = restart_workloads(cluster, [Owner("StatefulSet", namespace, "web")], "turn-1", seconds=90)
    assert not before & uids(cluster, namespace)
    assert report.restarted[0].evicted == 1


def test_a_rollout_that_sticks_is_named_with_its_pods_trouble_and_nothing_more_is_begun(cluster, namespace):
    make(cluster, namespace, DEPLOYMENTS, 1, replicas=1)
    stuck = {**TEMPLATE, "spec": {**TEMPLATE["spec"], "nodeSelector": {"no": "where"}}}
    cluster.patch(DEPLOYMENTS, "web", {"spec": {"template": stuck}}, namespace)
    owners = [Owner("Deployment", namespace, "web"), Owner("Deployment", f"z{namespace}", "other")]
    with pytest.raises(GateTimedOut) as caught:
        restart_workloads(cluster, owners, "turn-1", seconds=3, parallel=1)
    first, second = caught.value.stragglers
    assert first.startswith(f"deployment/web -n {namespace}: ")
    assert "Unschedulable" in first
    assert "not begun" in second


def test_what_cannot_be_restarted_is_returned_with_its_reason(cluster, namespace):
    make(cluster, namespace, DEPLOYMENTS, 1, replicas=1, paused=False)
    cluster.patch(DEPLOYMENTS, "web", {"spec": {"paused": True}}, namespace)
    owners = [
        Owner("Deployment", namespace, "web"),
        Owner("Deployment", namespace, "gone"),
        Owner("Job", namespace, "work"),
        Owner("CronJob", namespace, "nightly"),
        Owner("Pod", namespace, "bare"),
        Owner("Node", "", "static"),
        Owner("StrimziPodSet", namespace, "kafka"),
    ]
    report = restart_workloads(cluster, owners, "turn-1", seconds=5)
    reasons = {entry.owner.name: entry.reason for entry in report.skipped}
    assert report.restarted == ()
    assert "paused" in reasons["web"]
    assert "gone" in reasons["gone"]
    assert "runs to its end" in reasons["work"]
    assert "next run" in reasons["nightly"]
    assert "without a controller" in reasons["bare"]
    assert "static pod" in reasons["static"]
    assert "StrimziPodSet" in reasons["kafka"]
    assert STAMP not in (
        cluster.get(DEPLOYMENTS, "web", namespace)["spec"]["template"]["metadata"].get("annotations") or {}
    )


def test_a_disruption_budget_is_never_overridden_and_one_that_needs_all_is_listed(cluster, namespace):
    make(cluster, namespace, REPLICA_SETS, 1, replicas=1)
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "keep", "namespace": namespace},
        "spec": {"minAvailable": 1, "selector": SELECTOR},
    }
    cluster.create(POD_DISRUPTION_BUDGETS, budget)
    wait_for(
        lambda: (cluster.get(POD_DISRUPTION_BUDGETS, "keep", namespace).get("status") or {}).get("expectedPods") == 1,
        cluster,
    )
    before = uids(cluster, namespace)
    owner = Owner("ReplicaSet", namespace, "web")
    (skipped,) = restart_workloads(cluster, [owner], "turn-1", seconds=30).skipped
    assert "disruption budget keep never lets a pod go" in skipped.reason
    assert uids(cluster, namespace) == before
    cluster.delete(POD_DISRUPTION_BUDGETS, "keep", namespace)
    restart_workloads(cluster, [owner], "turn-1", seconds=30)
    assert not before & uids(cluster, namespace)


def test_owners_are_found_by_walking_up(cluster, namespace):
    make(cluster, namespace, DEPLOYMENTS, 1, replicas=1)
    job = {"template": {"spec": {**TEMPLATE["spec"], "restartPolicy": "Never"}}}
    meta = {"name": "work", "namespace": namespace}
    cluster.create(JOBS, {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": job})
    bare = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bare", "namespace": namespace},
        "spec": TEMPLATE["spec"],
    }
    cluster.create(PODS, bare)
    wait_for(lambda: len(cluster.list(PODS, namespace).items) == 3, cluster)
    found = Owners(cluster).all_of(cluster.list(PODS, namespace).items)
    assert {str(owner) for owner in found} == {
        f"deployment/web -n {namespace}",
        f"job/work -n {namespace}",
        f"pod/bare -n {namespace}",
    }
    assert all(len(pods) == 1 for pods in found.values())


def test_a_replica_set_of_a_foreign_controller_counts_as_that_controllers(cluster, namespace):
    item = make(cluster, namespace, REPLICA_SETS, 1, replicas=1)
    reference = {"apiVersion": "argoproj.io/v1", "kind": "Rollout", "name": "web", "uid": "u-1", "controller": True}
    pod = pods_of(cluster, item)[0]
    finder = Owners(cluster)
    cluster.patch(REPLICA_SETS, "web", {"metadata": {"ownerReferences": [reference]}}, namespace)
    owner = finder.of(pod)
    assert owner == Owner("Rollout", namespace, "web")
    assert method(owner) is Method.EVICT


def test_pods_of_a_foreign_controller_are_evicted_when_named(cluster, namespace):
    item = make(cluster, namespace, REPLICA_SETS, 2, replicas=2)
    old = Owners(cluster).all_of(pods_of(cluster, item))
    (pods,) = old.values()
    report = restart_workloads(cluster, {Owner("Rollout", namespace, "web"): pods[:1]}, "turn-1", seconds=30)
    left = uids(cluster, namespace)
    assert report.restarted[0].evicted == 1
    assert pods[0].uid not in left
    assert pods[1].uid in left


def test_a_port_forward_says_what_is_wrong_with_the_pod(cluster, namespace):
    make(cluster, namespace, DEPLOYMENTS, 1, replicas=1)
    (pod,) = (item["metadata"]["name"] for item in cluster.list(PODS, namespace).items)
    with pytest.raises(Unreachable, match="cannot reach port 4191"):
        http_get(cluster, namespace, pod, 4191, "/", timeout=5)
    with pytest.raises(NotFound):
        PodStream(cluster, namespace, "none", 80)
    waiting = {**TEMPLATE["spec"], "nodeSelector": {"no": "where"}}
    cluster.create(
        PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "wait", "namespace": namespace}, "spec": waiting}
    )
    with pytest.raises(InvalidInput, match="cannot port-forward pods"):
        PodStream(cluster, namespace, "wait", 80)


def test_a_cron_jobs_pods_belong_to_the_cron_job(cluster, namespace):
    spec = {
        "schedule": "0 0 1 1 *",
        "jobTemplate": {"spec": {"template": {"spec": {**TEMPLATE["spec"], "restartPolicy": "Never"}}}},
    }
    meta = {"name": "nightly", "namespace": namespace}
    cron = cluster.create(CRON_JOBS, {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": meta, "spec": spec})
    owner = {
        "apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "controller": True,
        "uid": cron["metadata"]["uid"],
    }  # fmt: skip
    job_meta = {"name": "nightly-1", "namespace": namespace, "ownerReferences": [owner]}
    cluster.create(
        JOBS, {"apiVersion": "batch/v1", "kind": "Job", "metadata": job_meta, "spec": spec["jobTemplate"]["spec"]}
    )
    wait_for(lambda: cluster.list(PODS, namespace).items, cluster)
    (pod,) = cluster.list(PODS, namespace).items
    assert Owners(cluster).of(pod) == Owner("CronJob", namespace, "nightly")
