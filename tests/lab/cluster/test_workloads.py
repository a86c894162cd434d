"""Controllers: rollouts keep their promises, sets keep their order, jobs end, owners take their own with them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from infra.lab.client import Informer
from tests.lab.cluster.cluster_lab import PODS, pod, ready, workload

if TYPE_CHECKING:
    from tests.lab.cluster.cluster_lab import ClusterLab

JSON = dict[str, Any]
APPS = "/apis/apps/v1/namespaces/default"
JOBS = "/apis/batch/v1/namespaces/default/jobs"
RESTART = {"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}}}


def rolled_out(item: JSON, generation: int = 1) -> bool:
    """The conditions of `kubectl rollout status` for a Deployment."""
    status, wanted = item.get("status") or {}, item["spec"].get("replicas", 1)
    counters = ("updatedReplicas", "replicas", "availableReplicas")
    return status.get("observedGeneration", 0) >= generation and all(status.get(c, 0) == wanted for c in counters)


class Witness:
    """Notes, at every change of an app's pods, how many there were and how many were ready."""

    def __init__(self, lab: ClusterLab, app: str) -> None:
        self.informer = Informer(lab.client, PODS, labelSelector=f"app={app}")
        self.most = 0
        self.fewest_ready: int | None = None
        self.deleted: list[str] = []
        self.created: list[str] = []

    async def __aenter__(self) -> Witness:
        await self.informer.synced()
        self.informer.on_change(self._changed)
        self.created.clear()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.informer.stop()

    def _changed(self, kind: str, old: JSON | None, new: JSON) -> None:
        name = new["metadata"]["name"]
        if kind == "ADDED":
            self.created.append(name)
        elif "deletionTimestamp" in new["metadata"] and "deletionTimestamp" not in (old or new)["metadata"]:
            self.deleted.append(name)
        alive = [p for p in self.informer.objects.values() if "deletionTimestamp" not in p["metadata"]]
        self.most = max(self.most, len(alive))
        serving = sum(ready(p) for p in alive)
        self.fewest_ready = serving if self.fewest_ready is None else min(self.fewest_ready, serving)


def test_a_restarted_deployment_never_has_too_few_ready_pods_nor_too_many(lab: ClusterLab) -> None:
    async def script() -> Witness:
        path = f"{APPS}/deployments"
        strategy = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
        await lab.client.create(path, workload("Deployment", "roll", 3, strategy=strategy))
        await lab.until(path, lambda o: rolled_out(o["default", "roll"]))
        async with Witness(lab, "roll") as witness:
            await lab.client.patch(f"{path}/roll", RESTART)
            await lab.until(path, lambda o: rolled_out(o["default", "roll"], 2))
        return witness

    witness = lab.run(script())
    assert witness.fewest_ready == 3
    assert witness.most == 4
    assert len(witness.created) == 3


def test_recreate_never_runs_two_versions_at_once(lab: ClusterLab) -> None:
    async def script() -> None:
        path = f"{APPS}/deployments"
        await lab.client.create(path, workload("Deployment", "again", 2, strategy={"type": "Recreate"}))
        await lab.until(path, lambda o: rolled_out(o["default", "again"]))
        mixed: list[set[str]] = []
        pods = Informer(lab.client, PODS, labelSelector="app=again")
        pods.on_change(
            lambda *_: mixed.append({p["metadata"]["labels"]["pod-template-hash"] for p in pods.objects.values()})
        )
        await pods.synced()
        await lab.client.patch(f"{path}/again", RESTART)
        await lab.until(path, lambda o: rolled_out(o["default", "again"], 2))
        await pods.stop()
        assert max(len(versions) for versions in mixed) == 1

    lab.run(script())


def test_a_new_version_that_never_gets_ready_is_reported_and_can_be_undone(lab: ClusterLab) -> None:
    async def script() -> None:
        path = f"{APPS}/deployments"
        await lab.client.create(path, workload("Deployment", "stuck", 2, progressDeadlineSeconds=1))
        await lab.until(path, lambda o: rolled_out(o["default", "stuck"]))
        never = {"lab.capstan.dev/never-ready": "true"}
        await lab.client.patch(f"{path}/stuck", {"spec": {"template": {"metadata": {"annotations": never}}}})

        def timed_out(objects: dict[tuple[str, str], JSON]) -> bool:
            conditions = objects["default", "stuck"]["status"].get("conditions") or []
            return any(c["reason"] == "ProgressDeadlineExceeded" for c in conditions)

        found = await lab.until(path, timed_out)
        assert found["default", "stuck"]["status"]["availableReplicas"] == 2
        undo = {"lab.capstan.dev/never-ready": None}
        await lab.client.patch(f"{path}/stuck", {"spec": {"template": {"metadata": {"annotations": undo}}}})
        await lab.until(path, lambda o: rolled_out(o["default", "stuck"], 3))

    lab.run(script())


def test_a_stateful_set_goes_up_in_order_and_is_replaced_from_the_top(lab: ClusterLab) -> None:
    async def script() -> Witness:
        path = f"{APPS}/statefulsets"
        await lab.client.create(path, workload("StatefulSet", "db", 3, serviceName="db"))
        done = {"readyReplicas": 3, "updatedReplicas": 3, "currentReplicas": 3}
        await lab.until(path, lambda o: done.items() <= o["default", "db"]["status"].items())
        async with Witness(lab, "db") as witness:
            answer = await lab.client.patch(f"{path}/db", RESTART)

            def replaced(objects: dict[tuple[str, str], JSON]) -> bool:
                status = objects["default", "db"]["status"]
                observed = status.get("observedGeneration") == answer["metadata"]["generation"]
                same = status.get("currentRevision") == status.get("updateRevision")
                return bool(observed and same and done.items() <= status.items())

            await lab.until(path, replaced)
        return witness

    witness = lab.run(script())
    assert witness.deleted == ["db-2", "db-1", "db-0"]
    assert witness.created == ["db-2", "db-1", "db-0"]


def test_a_partition_keeps_lower_ordinals_at_the_old_revision(lab: ClusterLab) -> None:
    async def script() -> dict[str, str]:
        path = f"{APPS}/statefulsets"
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}
        body = workload("StatefulSet", "part", 2, serviceName="part", updateStrategy=strategy)
        await lab.client.create(path, body)
        await lab.until(path, lambda o: o["default", "part"]["status"].get("readyReplicas") == 2)
        await lab.client.patch(f"{path}/part", RESTART)
        ended = {"updatedReplicas": 1, "readyReplicas": 2, "observedGeneration": 2}
        await lab.until(path, lambda o: ended.items() <= o["default", "part"]["status"].items())
        pods = (await lab.client.list(PODS, labelSelector="app=part"))["items"]
        return {p["metadata"]["name"]: p["metadata"]["labels"]["controller-revision-hash"] for p in pods}

    revisions = lab.run(script())
    assert revisions["part-0"] != revisions["part-1"]


def test_a_daemon_set_has_one_pod_on_every_node_and_replaces_them_one_at_a_time(lab: ClusterLab) -> None:
    async def script() -> tuple[Witness, list[str]]:
        path = f"{APPS}/daemonsets"
        await lab.client.create(path, workload("DaemonSet", "agent"))
        done = {"numberAvailable": 2, "updatedNumberScheduled": 2, "desiredNumberScheduled": 2}
        await lab.until(path, lambda o: done.items() <= o["default", "agent"]["status"].items())
        async with Witness(lab, "agent") as witness:
            await lab.client.patch(f"{path}/agent", RESTART)
            done["observedGeneration"] = 2
            await lab.until(path, lambda o: done.items() <= o["default", "agent"]["status"].items())
        pods = (await lab.client.list(PODS, labelSelector="app=agent"))["items"]
        return witness, [p["spec"]["nodeName"] for p in pods]

    witness, nodes = lab.run(script())
    assert sorted(nodes) == ["node-1", "node-2"]
    assert witness.fewest_ready == 1


def test_deleting_a_deployment_takes_its_sets_and_pods_and_orphaning_leaves_them(lab: ClusterLab) -> None:
    async def script() -> None:
        path = f"{APPS}/deployments"
        for name in ("whole", "parted"):
            await lab.client.create(path, workload("Deployment", name, 1))
            # binds the loop variable
            await lab.until(path, lambda o, name=name: rolled_out(o["default", name]))  # type: ignore[misc]
        await lab.client.delete(f"{path}/whole", {"propagationPolicy": "Foreground"})
        await lab.gone(f"{path}/whole")
        assert not (await lab.client.list(f"{APPS}/replicasets", labelSelector="app=whole"))["items"]
        await lab.client.delete(f"{path}/parted", {"propagationPolicy": "Orphan"})
        await lab.gone(f"{path}/parted")
        await asyncio.sleep(0.3)
        (orphan,) = (await lab.client.list(f"{APPS}/replicasets", labelSelector="app=parted"))["items"]
        assert "ownerReferences" not in orphan["metadata"]
        assert len((await lab.client.list(PODS, labelSelector="app=parted"))["items"]) == 1

    lab.run(script())


def job(name: str, script: str, **spec: Any) -> JSON:
    container = {"name": "c", "image": "busybox", "command": ["sh", "-c", script]}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {"template": template, **spec}}


def has(kind: str) -> Any:
    return lambda item: any(c["type"] == kind for c in (item.get("status") or {}).get("conditions") or [])


def test_a_job_counts_completions_once_and_leaves_no_finalizer_behind(lab: ClusterLab) -> None:
    async def script() -> tuple[JSON, list[JSON]]:
        await lab.client.create(JOBS, job("many", "true", completions=5, parallelism=2, completionMode="Indexed"))
        found = await lab.until(JOBS, lambda o: has("Complete")(o["default", "many"]))
        pods = (await lab.client.list(PODS, labelSelector="batch.kubernetes.io/job-name=many"))["items"]
        return found["default", "many"], pods

    found, pods = lab.run(script())
    assert found["status"]["succeeded"] == 5
    assert found["status"]["completedIndexes"] == "0-4"
    assert len(pods) == 5
    assert not any("finalizers" in p["metadata"] for p in pods)


def test_a_job_that_keeps_failing_gives_up_at_its_backoff_limit(lab: ClusterLab) -> None:
    async def script() -> JSON:
        await lab.client.create(JOBS, job("hopeless", "exit 1", backoffLimit=1))
        found = await lab.until(JOBS, lambda o: has("Failed")(o["default", "hopeless"]))
        return found["default", "hopeless"]

    status = lab.run(script())["status"]
    assert status["failed"] == 2
    assert status["conditions"][-1]["reason"] == "BackoffLimitExceeded"


@pytest.mark.slow
def test_a_cron_job_in_lab_time_starts_jobs_and_keeps_only_the_last_ones(lab: ClusterLab) -> None:
    path = "/apis/batch/v1/namespaces/default/cronjobs"

    async def script() -> list[str]:
        body = {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": "tick", "annotations": {"lab.capstan.dev/every-seconds": "1"}},
            "spec": {
                "schedule": "0 0 1 1 *",
                "successfulJobsHistoryLimit": 1,
                "jobTemplate": {"spec": job("x", "true")["spec"]},
            },
        }
        await lab.client.create(path, body)
        started: set[str] = set()
        jobs = Informer(lab.client, JOBS)
        jobs.on_change(
            lambda _, __, new: started.add(new["metadata"]["name"]) if "tick-" in new["metadata"]["name"] else None
        )
        await jobs.wait_for(lambda _: len(started) >= 3, 20)
        await lab.client.patch(f"{path}/tick", {"spec": {"suspend": True}})
        await jobs.wait_for(lambda o: len([n for _, n in o if "tick-" in n]) == 1, 10)
        await jobs.stop()
        return sorted(started)

    assert len(lab.run(script())) >= 3


def test_a_pod_nobody_can_take_says_why_and_is_placed_once_a_node_fits(lab: ClusterLab) -> None:
    async def script() -> None:
        await lab.client.create(PODS, pod("picky", nodeSelector={"disk": "fast"}))
        found = await lab.pod("picky", lambda p: bool(p["status"].get("conditions")))
        (condition,) = found["status"]["conditions"]
        assert condition["reason"] == "Unschedulable"
        assert condition["message"].startswith("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity")
        await lab.client.patch("/api/v1/nodes/node-2", {"metadata": {"labels": {"disk": "fast"}}})
        found = await lab.pod("picky", ready)
        assert found["spec"]["nodeName"] == "node-2"

    lab.run(script())


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_rollouts_end_in_spite_of_conflicts_errors_and_lost_answers(lab: ClusterLab) -> None:
    async def script() -> None:
        path = f"{APPS}/deployments"
        await lab.client.create(path, workload("Deployment", "rough", 4))
        await lab.until(path, lambda o: rolled_out(o["default", "rough"]))
        actions: list[JSON] = [{"status": 409}, {"status": 500}, {"status": 503}, {"drop": "before"}, {"drop": "after"}]
        for number, action in enumerate(actions):
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                agent = "kube-controller-manager|kubelet"
                rule = {"method": method, "path": "rough", "userAgent": agent, "nth": 2 * number + 1, "action": action}
                await lab.client.create("/lab/faults", rule)
        await lab.client.patch(f"{path}/rough", RESTART)
        await lab.until(path, lambda o: rolled_out(o["default", "rough"], 2), 60)
        await lab.client.delete("/lab/faults")
        pods = (await lab.client.list(PODS, labelSelector="app=rough"))["items"]
        assert len([p for p in pods if "deletionTimestamp" not in p["metadata"]]) == 4

    lab.run(script(), 100)
