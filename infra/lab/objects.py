"""Creating objects of any kind the lab installs, and waiting for workloads, through the API alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.lab.client import Informer, KubeClient

JSON = dict[str, Any]

_CLUSTER_SCOPED = {
    *("Namespace", "ClusterRole", "ClusterRoleBinding"),
    *("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"),
    *("CustomResourceDefinition", "APIService"),
}
_IRREGULAR = {"MutatingWebhookConfiguration": "mutatingwebhookconfigurations"}


def collection(item: JSON) -> str:
    """The REST path of the collection that an object is created in."""
    version, kind = item["apiVersion"], item["kind"]
    prefix = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    plural = _IRREGULAR.get(kind, f"{kind.lower()}s")
    if kind in _CLUSTER_SCOPED:
        return f"{prefix}/{plural}"
    return f"{prefix}/namespaces/{item['metadata']['namespace']}/{plural}"


async def create(client: KubeClient, item: JSON) -> JSON:
    """Create one object; raises ApiError."""
    return await client.create(collection(item), item)


def is_available(workload: JSON) -> bool:
    """Whether a Deployment, StatefulSet or DaemonSet has all its pods, of its newest template, ready."""
    status, spec = workload.get("status") or {}, workload["spec"]
    if status.get("observedGeneration", 0) < workload["metadata"].get("generation", 1):
        return False
    if "desiredNumberScheduled" in status or "replicas" not in spec:  # a DaemonSet
        wanted = status.get("desiredNumberScheduled", 0)
        ready, updated = status.get("numberReady", 0), status.get("updatedNumberScheduled", 0)
        return bool(wanted) and ready == updated == wanted
    wanted = spec.get("replicas", 1)
    counts = (status.get("readyReplicas", 0), status.get("updatedReplicas", 0), status.get("replicas", 0))
    return counts == (wanted, wanted, wanted)


async def wait_until_available(workloads: Informer, seconds: float) -> None:
    """Return once every workload of the collection is available; raises TimeoutError after `seconds`."""
    await workloads.wait_for(lambda found: bool(found) and all(map(is_available, found.values())), seconds)
