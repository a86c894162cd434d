"""The sidecar injector, as istiod's webhook does it (`/inject`): from an AdmissionReview to a JSON patch (RFC 6902).

Which pods reach it is decided by the selectors of the MutatingWebhookConfiguration; what is decided here is what
pkg/kube/inject decides: host networking, reserved namespaces, and the pod's own `sidecar.istio.io/inject`. The
configuration is read for every request from the ConfigMaps `istio-sidecar-injector[-REVISION]` (key `values`) and
`istio[-REVISION]` (key `mesh`), so a change of either holds for the next pod.
"""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any, Protocol

from ruamel.yaml import YAML

from infra.lab.client import ApiError
from infra.lab.istio import sidecar

if TYPE_CHECKING:
    from infra.lab.client import KubeClient
    from infra.lab.kubelet.runtime import Container

JSON = dict[str, Any]

INJECT = "sidecar.istio.io/inject"
STATUS = "sidecar.istio.io/status"
NATIVE = "sidecar.istio.io/nativeSidecar"
REVISION = "istio.io/rev"
_TRUE = {"y", "yes", "true", "on"}
_RESERVED = {"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}


class Istiod(Protocol):
    """What the injector needs of the istiod (or sidecar injector) that it runs in."""

    @property
    def container(self) -> Container:
        """Its container: environment and image."""

    @property
    def client(self) -> KubeClient:
        """Its connection to the API server."""


async def mutate(review: JSON, istiod: Istiod) -> JSON:
    """Answer one AdmissionReview (admission.k8s.io/v1) with another.

    Raises:
        KeyError, TypeError: If `review` is no AdmissionReview of a pod; the webhook server answers 400.
    """
    request: JSON = review["request"]
    response: JSON = {"uid": request["uid"], "allowed": True}
    if (request.get("kind") or {}).get("kind", "Pod") == "Pod":
        pod, namespace = request["object"], request.get("namespace") or request["object"]["metadata"]["namespace"]
        if not skip_reason(pod, namespace):
            try:
                settings = await read_settings(istiod)
            except (ApiError, ValueError, KeyError) as error:
                text = f"sidecar injection failed: {error}"
                return _review({"uid": request["uid"], "allowed": False, "status": {"message": text}})
            encoded = base64.b64encode(json.dumps(patch(pod, namespace=namespace, settings=settings)).encode())
            response |= {"patchType": "JSONPatch", "patch": encoded.decode()}
    return _review(response)


def skip_reason(pod: JSON, namespace: str) -> str:
    """Why a pod is left alone; "" if it is not."""
    metadata, spec = pod["metadata"], pod["spec"]
    if spec.get("hostNetwork"):
        return "pod uses the host's network"
    if namespace in _RESERVED:
        return f"namespace {namespace} is reserved"
    if STATUS in (metadata.get("annotations") or {}):
        return "sidecar is there already"
    wanted = (metadata.get("labels") or {}).get(INJECT, (metadata.get("annotations") or {}).get(INJECT, ""))
    return "" if wanted == "" or str(wanted).lower() in _TRUE else f"{INJECT} is {wanted}"


async def read_settings(istiod: Istiod) -> sidecar.Settings:
    """The injector's configuration as it is now.

    Raises:
        ApiError: A ConfigMap could not be read.
        ValueError, KeyError: It is not what the chart writes.
    """
    container = istiod.container
    namespace, revision = container.namespace, container.env.get("REVISION", "default")
    suffix = "" if revision == "default" else f"-{revision}"
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    injector = await istiod.client.get(f"{path}/istio-sidecar-injector{suffix}")
    mesh = await istiod.client.get(f"{path}/istio{suffix}")
    return settings_of(
        json.loads(injector["data"]["values"]),
        YAML(typ="safe").load(io.StringIO(mesh["data"]["mesh"])) or {},
        namespace=namespace,
        revision=revision,
        native_flag=container.env.get("ENABLE_NATIVE_SIDECARS", ""),
    )


def settings_of(values: JSON, mesh: JSON, *, namespace: str, revision: str, native_flag: str = "") -> sidecar.Settings:
    """Settings from the chart's values and the mesh configuration.

    Args:
        native_flag: istiod's ENABLE_NATIVE_SIDECARS; "" leaves the version's default (on since 1.27).
    """
    found = values["global"]
    version = str(found["tag"])
    minor = sidecar.minor(version)
    metadata = ((mesh.get("defaultConfig") or {}).get("proxyMetadata")) or {}
    return sidecar.Settings(
        namespace=namespace,
        version=version,
        revision=revision,
        hub=str(found["hub"]),
        trust_domain=str(mesh.get("trustDomain") or "cluster.local"),
        native=native_flag.lower() in ("true", "auto") if native_flag else minor >= sidecar.NATIVE_SINCE,
        metadata={str(name): str(value) for name, value in metadata.items()},
        citadel=minor < sidecar.AGENT_SINCE,
        cluster_id=(found.get("multiCluster") or {}).get("clusterName") or "Kubernetes",
    )


def patch(pod: JSON, *, namespace: str, settings: sidecar.Settings) -> list[JSON]:
    """The JSON patch that adds the sidecar."""
    metadata, spec = pod["metadata"], pod["spec"]
    annotations, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
    own_choice = str(annotations.get(NATIVE, "")).lower()
    native = own_choice in _TRUE if own_choice else settings.native
    kind, name = _workload(metadata)
    version = "v1" if kind == "Pod" else "batch/v1" if kind in ("Job", "CronJob") else "apps/v1"
    container = sidecar.proxy_container(
        settings,
        native=native,
        workload=name,
        owner=f"kubernetes://apis/{version}/namespaces/{namespace}/{kind.lower()}s/{name}",
        ports=[port for c in spec["containers"] for port in c.get("ports") or []],
        app_containers=[c["name"] for c in spec["containers"]],
    )
    volumes = sidecar.volumes(settings, spec.get("serviceAccountName") or "default")
    init = [sidecar.init_container(settings)]
    status = {
        "initContainers": [sidecar.INIT_CONTAINER] + ([sidecar.CONTAINER] if native else []),
        "containers": None if native else [sidecar.CONTAINER],
        "volumes": [volume["name"] for volume in volumes],
        "imagePullSecrets": None,
        "revision": settings.revision,
    }
    canonical = labels.get("service.istio.io/canonical-name") or labels.get("app.kubernetes.io/name")
    new_labels = {
        "security.istio.io/tlsMode": "istio",
        "service.istio.io/canonical-name": canonical or labels.get("app") or name,
        "service.istio.io/canonical-revision": labels.get("version") or "latest",
    }
    new_annotations = {
        REVISION: settings.revision,
        "kubectl.kubernetes.io/default-container": spec["containers"][0]["name"],
        "prometheus.io/path": "/stats/prometheus",
        "prometheus.io/port": str(sidecar.STATUS_PORT),
        "prometheus.io/scrape": "true",
        STATUS: json.dumps(status, separators=(",", ":")),
    }
    operations = [
        _map_add("/metadata/labels", labels, new_labels),
        _map_add("/metadata/annotations", annotations, new_annotations),
        _list_add("/spec/volumes", spec.get("volumes"), volumes),
        # The network is set up, and a native proxy runs, before any init container of the pod's own.
        _list_add(
            "/spec/initContainers", spec.get("initContainers"), init + ([container] if native else []), first=True
        ),
    ]
    if not native:
        operations.append(_list_add("/spec/containers", spec["containers"], [container]))
    return [operation for group in operations for operation in group]


def _workload(metadata: JSON) -> tuple[str, str]:
    """(kind, name) of what owns the pod; a ReplicaSet's Deployment by the hash in its name, as Istio finds it."""
    name = metadata.get("name") or str(metadata.get("generateName", "")).rstrip("-")
    controllers = [owner for owner in metadata.get("ownerReferences") or [] if owner.get("controller")]
    if not controllers:
        return "Pod", name
    kind, name = controllers[0]["kind"], controllers[0]["name"]
    template_hash = (metadata.get("labels") or {}).get("pod-template-hash", "")
    if kind == "ReplicaSet" and template_hash and name.endswith(f"-{template_hash}"):
        return "Deployment", name.removesuffix(f"-{template_hash}")
    return kind, name


def _review(response: JSON) -> JSON:
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def _map_add(path: str, existing: dict[str, str], entries: dict[str, str]) -> list[JSON]:
    if not existing:
        return [{"op": "add", "path": path, "value": entries}]
    return [
        {"op": "add", "path": f"{path}/{key.replace('~', '~0').replace('/', '~1')}", "value": value}
        for key, value in entries.items()
    ]


def _list_add(path: str, existing: list[JSON] | None, items: list[JSON], *, first: bool = False) -> list[JSON]:
    if not existing:
        return [{"op": "add", "path": path, "value": items}]
    if first:
        return [{"op": "add", "path": f"{path}/{index}", "value": item} for index, item in enumerate(items)]
    return [{"op": "add", "path": f"{path}/-", "value": item} for item in items]
