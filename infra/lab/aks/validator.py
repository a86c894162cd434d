"""The add-on's CronJob of 2023 and 2024: istiod is restarted when the root in Secret `cacerts` has changed.

Name, period and the three log lines are those of Microsoft's page of that time. What it compares is not documented;
here it is the Secret against the ConfigMap that istiod publishes, for each control plane whose pods read the Secret.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError
from infra.lab.objects import is_available

if TYPE_CHECKING:
    from infra.lab.client import KubeClient
    from infra.lab.kubelet.runtime import Container, Programs

JSON = dict[str, Any]

NAMESPACE = "aks-istio-system"
NAME = "istio-cert-validator-cronjob"
IMAGE = "mcr.microsoft.com/oss/kubernetes/kubectl"
TAG = "v1.27.7"
CONTAINER = "istio-cert-validator"
SECRET, CONFIG_MAP, ROOTS = "cacerts", "istio-ca-root-cert", "root-cert.pem"
SCHEDULE = "*/10 * * * *"


def register(programs: Programs) -> None:
    """Make the kubelets of this process run the CronJob's container."""
    programs.register(IMAGE, program, container=CONTAINER)


async def program(container: Container) -> int:
    """One run of the check; exit code 1 if the cluster does not let it."""
    client = container.client(user_agent="kubectl/v1.27.7")
    try:
        if not await _changed(client, container.namespace):
            container.log("No root certificate update detected.")
            return 0
        deployments = await client.list(
            f"/apis/apps/v1/namespaces/{container.namespace}/deployments", labelSelector="app=istiod"
        )
        for deployment in deployments["items"]:
            if is_available(deployment):  # one that is still being restarted is taking the root up already
                await _restart(container, client, deployment["metadata"]["name"])
    except ApiError as error:
        container.log(f"error: {error.message}")
        return 1
    return 0


async def _changed(client: KubeClient, namespace: str) -> bool:
    secret = await client.get(f"/api/v1/namespaces/{namespace}/secrets/{SECRET}")
    published = await client.get(f"/api/v1/namespaces/{namespace}/configmaps/{CONFIG_MAP}")
    wanted = base64.b64decode((secret.get("data") or {}).get(ROOTS, "")).decode()
    return wanted.strip() != str((published.get("data") or {}).get(ROOTS, "")).strip()


async def _restart(container: Container, client: KubeClient, name: str) -> None:
    container.log("Root certificate update detected. Restarting deployment...")
    stamp = {"kubectl.kubernetes.io/restartedAt": datetime.now(UTC).isoformat(timespec="seconds")}
    await client.patch(
        f"/apis/apps/v1/namespaces/{container.namespace}/deployments/{name}",
        {"spec": {"template": {"metadata": {"annotations": stamp}}}},
        kind="strategic",
    )
    container.log(f"deployment.apps/{name} restarted")
    container.log(f"Deployment {name} restarted.")


def objects(every_seconds: float) -> list[JSON]:
    """The CronJob and its permissions.

    Args:
        every_seconds: Between two runs, in the lab's time; the schedule it shows is the real one.
    """
    metadata = {"name": NAME, "namespace": NAMESPACE}
    group = "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [SECRET], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [CONFIG_MAP], "verbs": ["get"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list", "patch"]},
    ]
    pod = {
        "serviceAccountName": NAME,
        "restartPolicy": "OnFailure",
        "containers": [{"name": CONTAINER, "image": f"{IMAGE}:{TAG}", "command": ["/bin/sh", "/scripts/validate.sh"]}],
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": NAME},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
        },
        {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {**metadata, "annotations": {"lab.capstan.dev/every-seconds": f"{every_seconds:g}"}},
            "spec": {
                "schedule": SCHEDULE,
                "concurrencyPolicy": "Forbid",
                "jobTemplate": {"spec": {"template": {"spec": pod}}},
            },
        },
    ]
