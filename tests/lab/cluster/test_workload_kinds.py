"""Every kind of workload a rotation meets, side by side in one namespace: each runs, and says of itself what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from infra.lab.client import ApiError
from tests.lab.cluster.cluster_lab import pod, ready, workload

if TYPE_CHECKING:
    from tests.lab.cluster.cluster_lab import ClusterLab

NS = "kinds"
APPS = f"/apis/apps/v1/namespaces/{NS}"
CORE = f"/api/v1/namespaces/{NS}"
BATCH = f"/apis/batch/v1/namespaces/{NS}"
BUDGETS = f"/apis/policy/v1/namespaces/{NS}/poddisruptionbudgets"
MAIN = {"name": "main", "image": "watched"}


def job(name: str, *command: str) -> dict[str, Any]:
    main = {"name": "main", "image": "busybox", "command": [*command]}
    template = {"spec": {"restartPolicy": "Never", "containers": [main]}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {"template": template}}


async def create_all(lab: ClusterLab) -> None:
    await lab.client.create("/api/v1/namespaces", {"metadata": {"name": NS}})
    await lab.client.create(f"{APPS}/deployments", workload("Deployment", "paused", 1, paused=True))
    await lab.client.create(f"{APPS}/deployments", workload("Deployment", "asleep", 0))
    await lab.client.create(f"{APPS}/deployments", workload("Deployment", "recreate", 1, strategy={"type": "Recreate"}))
    on_delete = {"updateStrategy": {"type": "OnDelete"}}
    await lab.client.create(f"{APPS}/daemonsets", workload("DaemonSet", "agent", **on_delete))
    stateful = workload("StatefulSet", "store", 1, serviceName="store", **on_delete)
    await lab.client.create(f"{APPS}/statefulsets", stateful)
    controller = workload("ReplicationController", "old", 1)
    controller |= {"apiVersion": "v1"}
    controller["spec"]["selector"] = {"app": "old"}
    await lab.client.create(f"{CORE}/replicationcontrollers", controller)
    await lab.client.create(f"{CORE}/pods", pod("bare"))
    sidecar = {"name": "proxy", "image": "watched", "restartPolicy": "Always"}
    await lab.client.create(f"{CORE}/pods", pod("native-sidecar", MAIN, initContainers=[sidecar]))
    await lab.client.create(f"{BATCH}/jobs", job("running", "sleep", "600"))
    await lab.client.create(f"{BATCH}/jobs", job("finished", "true"))
    cron = {
        "metadata": {"name": "nightly"},
        "spec": {"schedule": "0 3 1 1 *", "jobTemplate": {"spec": job("x", "true")["spec"]}},
    }
    await lab.client.create(f"{BATCH}/cronjobs", cron)
    budgeted = {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "store"}}}
    await lab.client.create(BUDGETS, {"metadata": {"name": "never"}, "spec": budgeted})


@pytest.mark.slow
@pytest.mark.proves(
    "api",
    "workload kinds of the lab",
    "paused, 0 replicas, Recreate, OnDelete, ReplicationController, bare and native-sidecar pods, running and finished "
    "Jobs, CronJob, budget of 0",
)
def test_all_kinds_of_workloads_run_side_by_side(lab: ClusterLab) -> None:
    names = {"recreate", "agent", "store", "old", "bare", "native-sidecar", "running"}

    def all_ready(objects: dict[tuple[str, str], Any]) -> bool:
        mine = [item for key, item in objects.items() if key[0] == NS and ready(item)]
        return names <= {name for name in names for item in mine if item["metadata"]["name"].startswith(name)}

    async def script() -> tuple[dict[tuple[str, str], Any], dict[str, Any], int]:
        await create_all(lab)
        found = await lab.until(f"{CORE}/pods", all_ready)
        await lab.until(f"{BATCH}/jobs", lambda o: o[NS, "finished"].get("status", {}).get("succeeded") == 1)
        await lab.until(BUDGETS, lambda o: o[NS, "never"].get("status", {}).get("expectedPods") == 1)
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "store-0", "namespace": NS}}
        refused = 0
        try:
            await lab.client.create(f"{CORE}/pods/store-0/eviction", eviction)
        except ApiError as error:
            refused = error.status
        cron = await lab.client.get(f"{BATCH}/cronjobs/nightly")
        return found, cron, refused

    pods, cron, refused = lab.run(script())
    owners = {
        name: next((r["kind"] for r in item["metadata"].get("ownerReferences", []) if r.get("controller")), "")
        for (namespace, name), item in pods.items()
        if namespace == NS
    }
    kinds = {name.split("-")[0]: kind for name, kind in owners.items()}
    assert kinds["recreate"] == "ReplicaSet"
    assert kinds["agent"] == "DaemonSet"
    assert kinds["store"] == "StatefulSet"
    assert kinds["old"] == "ReplicationController"
    assert kinds["running"] == "Job"
    assert kinds["bare"] == kinds["native"] == ""
    assert not [name for name in owners if name.startswith(("asleep", "nightly"))]
    assert cron["status"].get("lastScheduleTime") is None
    assert refused == 429  # a budget of 0 lets nothing go
