"""A HorizontalPodAutoscaler keeps its target between its bounds and follows its load, also during a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from infra.lab.controllers.autoscaler import recommended
from tests.lab.cluster.cluster_lab import workload

if TYPE_CHECKING:
    from tests.lab.cluster.cluster_lab import ClusterLab

DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
AUTOSCALERS = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers"


def autoscaler(name: str, least: int, most: int, load: str | None = None) -> dict[str, Any]:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "annotations": {"lab.capstan.dev/cpu-load": load} if load else {}},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": least,
            "maxReplicas": most,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}},
                }
            ],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }


def condition(item: dict[str, Any], kind: str) -> tuple[str, str]:
    found = next(c for c in item["status"]["conditions"] if c["type"] == kind)
    return found["status"], found["reason"]


@pytest.mark.parametrize(
    ("present", "ready", "ratio", "wanted"),
    [(3, 3, 1.05, 3), (3, 3, 0.95, 3), (3, 3, 1.2, 4), (4, 4, 0.5, 2), (4, 2, 2.0, 4), (3, 3, 1.0, 3)],
)
def test_the_recommendation_follows_the_ratio_outside_a_tolerance_of_ten_percent(
    present: int, ready: int, ratio: float, wanted: int
) -> None:
    assert recommended(present, ready, ratio) == wanted


@pytest.mark.proves("workloads", "HorizontalPodAutoscaler", "without metrics only the bounds are kept")
def test_without_metrics_only_the_bounds_are_kept_and_the_autoscaler_says_so(lab: ClusterLab) -> None:
    async def script() -> dict[str, Any]:
        await lab.client.create(DEPLOYMENTS, workload("Deployment", "unmeasured", 1))
        await lab.client.create(AUTOSCALERS, autoscaler("unmeasured", 2, 4))
        await lab.until(DEPLOYMENTS, lambda o: o["default", "unmeasured"]["spec"]["replicas"] == 2)
        found = await lab.until(
            AUTOSCALERS,
            lambda o: any(
                c["type"] == "ScalingActive" for c in o["default", "unmeasured"].get("status", {}).get("conditions", [])
            ),
        )
        return found["default", "unmeasured"]

    item = lab.run(script())
    assert condition(item, "ScalingActive") == ("False", "FailedGetResourceMetric")
    assert condition(item, "AbleToScale")[0] == "True"


@pytest.mark.slow
@pytest.mark.proves("workloads", "HorizontalPodAutoscaler", "scaled up, restarted meanwhile, never out of its bounds")
def test_a_deployment_is_scaled_between_its_bounds_while_it_is_restarted(lab: ClusterLab) -> None:
    seen: list[int] = []

    def note(objects: dict[Any, Any]) -> dict[str, Any]:
        item: dict[str, Any] = objects["default", "busy"]
        seen.append(item["spec"]["replicas"])
        return item

    def settled(replicas: int) -> Any:
        def check(objects: dict[Any, Any]) -> bool:
            item = note(objects)
            status = item.get("status") or {}
            return bool(
                item["spec"]["replicas"] == replicas
                and status.get("observedGeneration") == item["metadata"]["generation"]
                and status.get("updatedReplicas")
                == status.get("availableReplicas")
                == status.get("replicas")
                == replicas
            )

        return check

    async def script() -> dict[str, Any]:
        await lab.client.create(DEPLOYMENTS, workload("Deployment", "busy", 2))
        await lab.until(DEPLOYMENTS, settled(2))
        await lab.client.create(AUTOSCALERS, autoscaler("busy", 2, 4, load="200"))
        restart = {"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}}}
        await lab.client.patch(f"{DEPLOYMENTS}/busy", restart, kind="strategic")
        await lab.until(DEPLOYMENTS, settled(4))
        quiet = {"metadata": {"annotations": {"lab.capstan.dev/cpu-load": "20"}}}
        await lab.client.patch(f"{AUTOSCALERS}/busy", quiet)
        await lab.until(DEPLOYMENTS, settled(2))
        item: dict[str, Any] = await lab.client.get(f"{AUTOSCALERS}/busy")
        events = await lab.client.list("/api/v1/namespaces/default/events")
        item["reasons"] = {
            e["message"]
            for e in events["items"]
            if (e["involvedObject"]["name"], e["reason"]) == ("busy", "SuccessfulRescale")
        }
        return item

    item = lab.run(script())
    assert set(seen) <= {2, 3, 4}
    assert condition(item, "ScalingActive") == ("True", "ValidMetricFound")
    assert "New size: 2; reason: All metrics below target" in item["reasons"]
    assert any(
        text.endswith("reason: cpu resource utilization (percentage of request) above target")
        for text in item["reasons"]
    )
