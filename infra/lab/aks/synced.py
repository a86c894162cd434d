"""Secrets that the CSI driver keeps in step with mounted files (`spec.secretObjects` of a SecretProviderClass).

A synced Secret belongs to the ReplicaSet (or other controller) of the pods that mount the class, so it goes with the
last of them.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from infra.lab.aks.provider import ProviderError
from infra.lab.client import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.lab.client import KubeClient

JSON = dict[str, Any]

MANAGED_LABEL = "secrets-store.csi.k8s.io/managed"
CONFLICTS = 5


async def sync(client: KubeClient, provider_class: JSON, pod: JSON, files: Mapping[str, bytes]) -> list[str]:
    """Bring every Secret of the class up to date with `files`; the names of those whose data changed.

    Raises:
        ApiError: The cluster refuses a write.
        ProviderError: A Secret asks for a file that is not mounted.
    """
    changed = []
    for wanted in (provider_class.get("spec") or {}).get("secretObjects") or []:
        data = {}
        for item in wanted.get("data") or []:
            if item["objectName"] not in files:
                raise ProviderError(f"file matching objectName {item['objectName']} not found in the pod")
            data[item["key"]] = base64.b64encode(files[item["objectName"]]).decode()
        if await _ensure(client, wanted, pod, data):
            changed.append(str(wanted["secretName"]))
    return changed


async def _ensure(client: KubeClient, wanted: JSON, pod: JSON, data: JSON) -> bool:
    """True when an existing Secret got other data."""
    namespace, name = pod["metadata"]["namespace"], wanted["secretName"]
    collection = f"/api/v1/namespaces/{namespace}/secrets"
    owner = _owner(pod)
    for attempt in range(CONFLICTS):
        try:
            try:
                held = await client.get(f"{collection}/{name}")
            except ApiError as error:
                if error.status != 404:
                    raise
                await client.create(
                    collection,
                    {
                        "apiVersion": "v1",
                        "kind": "Secret",
                        "metadata": {
                            "name": name,
                            "namespace": namespace,
                            "labels": {MANAGED_LABEL: "true", **(wanted.get("labels") or {})},
                            "annotations": wanted.get("annotations") or {},
                            "ownerReferences": [owner],
                        },
                        "type": wanted.get("type") or "Opaque",
                        "data": data,
                    },
                )
                return False
            owners = held["metadata"].get("ownerReferences") or []
            missing = all(other["uid"] != owner["uid"] for other in owners)
            if held.get("data") == data and not missing:
                return False
            metadata = {**held["metadata"], "ownerReferences": [*owners, owner] if missing else owners}
            await client.replace(f"{collection}/{name}", {**held, "metadata": metadata, "data": data})
        except ApiError as error:
            if error.status != 409 or attempt == CONFLICTS - 1:
                raise
        else:
            return held.get("data") != data
    return False


def _owner(pod: JSON) -> JSON:
    """The pod's controller, or the pod itself. Neither blocks a deletion nor controls the Secret."""
    metadata = pod["metadata"]
    for reference in metadata.get("ownerReferences") or []:
        if reference.get("controller"):
            return {key: reference[key] for key in ("apiVersion", "kind", "name", "uid")}
    return {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
