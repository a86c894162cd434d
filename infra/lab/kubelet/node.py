"""The Node object and its Lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import UTC, datetime
from typing import Any

from infra.lab.client import ApiError, KubeClient
from infra.lab.kubelet.status import timestamp

JSON = dict[str, Any]
LEASE_SECONDS = 40  # a real kubelet's nodeLeaseDurationSeconds
STATUS_EVERY = 30  # heartbeats between full status reports (5 min at 10 s), as nodeStatusReportFrequency
KUBELET_VERSION = "v1.36.2"

log = logging.getLogger(__name__)

_HEALTHY = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
)


def _status(name: str, address: str, port: int, since: dict[str, str]) -> JSON:
    now = timestamp()
    resources = {"cpu": "256", "ephemeral-storage": "1000Gi", "memory": "1Ti", "pods": "5k"}
    return {
        "capacity": resources,
        "allocatable": resources,
        "conditions": [
            {
                "type": kind,
                "status": holds,
                "lastHeartbeatTime": now,
                "lastTransitionTime": since.get(kind, now),
                "reason": reason,
                "message": message,
            }
            for kind, holds, reason, message in _HEALTHY
        ],
        "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "nodeInfo": {
            "machineID": "lab",
            "systemUUID": "lab",
            "bootID": "lab",
            "kernelVersion": "6.1.0",
            "osImage": "lab",
            "containerRuntimeVersion": "lab://1.0.0",
            "kubeletVersion": KUBELET_VERSION,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": "amd64",
        },
    }


async def register(client: KubeClient, name: str, address: str, port: int) -> None:
    """Create the Node, or take over the one that is there, and report it ready. Raises ApiError."""
    labels = {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
    }
    annotations = {"node.alpha.kubernetes.io/ttl": "0"}
    body = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": {"providerID": f"lab://{name}"},
    }
    try:
        await client.create("/api/v1/nodes", body)
    except ApiError as error:
        if error.status != 409:
            raise
        await client.patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": labels}})
    await _report(client, name, address, port)
    with contextlib.suppress(ApiError):  # a real API server makes this namespace itself
        await client.create(
            "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-node-lease"}}
        )
    await _renew(client, name)


async def heartbeat(client: KubeClient, name: str, every: float) -> None:
    """Renew the Lease for ever, and now and then the status. Lost answers are retried at the next beat."""
    beats = 0
    while True:
        await asyncio.sleep(every)
        beats += 1
        try:
            await _renew(client, name)
            if beats % STATUS_EVERY == 0:
                known = (await client.get(f"/api/v1/nodes/{name}"))["status"]
                address = next(a["address"] for a in known["addresses"] if a["type"] == "InternalIP")
                await _report(client, name, address, known["daemonEndpoints"]["kubeletEndpoint"]["Port"])
        except ApiError as error:
            log.info("node %s: heartbeat failed: %s", name, error)


async def _report(client: KubeClient, name: str, address: str, port: int) -> None:
    known = (await client.get(f"/api/v1/nodes/{name}")).get("status") or {}
    since = {
        c["type"]: c["lastTransitionTime"]
        for c in known.get("conditions") or []
        if c["status"] == next((holds for kind, holds, _, _ in _HEALTHY if kind == c["type"]), None)
    }
    body = {"status": _status(name, address, port, since)}
    await client.patch(f"/api/v1/nodes/{name}/status", body, "strategic")


async def _renew(client: KubeClient, name: str) -> None:
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}
    try:
        await client.patch(f"{path}/{name}", {"spec": spec})
    except ApiError as error:
        if error.status != 404:
            raise
        node = await client.get(f"/api/v1/nodes/{name}")
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-node-lease", "ownerReferences": [owner]},
            "spec": spec,
        }
        with contextlib.suppress(ApiError):
            await client.create(path, body)
