"""The two definitions of the secrets-store CSI driver (secrets-store.csi.x-k8s.io/v1), and its CSIDriver object.

Fields are those of the driver's API (apis/v1 of kubernetes-sigs/secrets-store-csi-driver); neither kind has a status
subresource.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError

if TYPE_CHECKING:
    from infra.lab.client import KubeClient

JSON = dict[str, Any]

GROUP = "secrets-store.csi.x-k8s.io"
API_VERSION = f"{GROUP}/v1"
DRIVER = "secrets-store.csi.k8s.io"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

_STRING: JSON = {"type": "string"}
_STRINGS: JSON = {"type": "object", "additionalProperties": _STRING}


def classes(namespace: str) -> str:
    """The collection of SecretProviderClasses of a namespace."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/secretproviderclasses"


def pod_statuses(namespace: str) -> str:
    """The collection of SecretProviderClassPodStatuses of a namespace."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/secretproviderclasspodstatuses"


def definitions() -> list[JSON]:
    """Both CustomResourceDefinitions."""
    return [
        _definition(
            "SecretProviderClass",
            "secretproviderclasses",
            {
                "spec": _record(
                    provider=_STRING,
                    parameters=_STRINGS,
                    secretObjects=_list(
                        _record(
                            secretName=_STRING,
                            type=_STRING,
                            labels=_STRINGS,
                            annotations=_STRINGS,
                            data=_list(_record(objectName=_STRING, key=_STRING)),
                        )
                    ),
                ),
                "status": _record(byPod=_list(_record(id=_STRING, namespace=_STRING))),
            },
        ),
        _definition(
            "SecretProviderClassPodStatus",
            "secretproviderclasspodstatuses",
            {
                "status": _record(
                    podName=_STRING,
                    secretProviderClassName=_STRING,
                    mounted={"type": "boolean"},
                    targetPath=_STRING,
                    objects=_list(_record(id=_STRING, version=_STRING)),
                ),
            },
        ),
    ]


def csi_driver() -> JSON:
    """How the driver tells kubelets about itself."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": {"name": DRIVER},
        "spec": {"podInfoOnMount": True, "attachRequired": False, "volumeLifecycleModes": ["Ephemeral"]},
    }


async def install(client: KubeClient, *, seconds: float = 10.0) -> None:
    """Create what is missing, and wait until both kinds are served.

    Raises:
        ApiError: The cluster refuses one.
        TimeoutError: A kind is not served within `seconds`.
    """
    for path, item in [
        *((DEFINITIONS, definition) for definition in definitions()),
        ("/apis/storage.k8s.io/v1/csidrivers", csi_driver()),
    ]:
        try:
            await client.create(path, item)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
    async with asyncio.timeout(seconds):
        for path in (classes("default"), pod_statuses("default")):
            await _served(client, path)


async def _served(client: KubeClient, path: str) -> None:
    while True:
        try:
            await client.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            await asyncio.sleep(0.02)
        else:
            return


def _definition(kind: str, plural: str, properties: JSON) -> JSON:
    singular = kind.lower()
    schema: JSON = {
        "type": "object",
        "properties": {"apiVersion": _STRING, "kind": _STRING, "metadata": {"type": "object"}},
    }
    schema["properties"] |= properties
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": singular},
            "scope": "Namespaced",
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}},
            ],
        },
    }


def _record(**properties: JSON) -> JSON:
    return {"type": "object", "properties": properties}


def _list(items: JSON) -> JSON:
    return {"type": "array", "items": items}
