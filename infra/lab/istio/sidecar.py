"""Istio's proxy container and its volumes, as the injection template renders them.

Names, ports, mounts and environment are those of the chart istio-discovery (files/injection-template.yaml); resources
and whatever concerns tracing, core dumps or lifecycle is left out. Gateways use the same container with another role.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

JSON = dict[str, Any]

CONTAINER = "istio-proxy"
INIT_CONTAINER = "istio-init"
PROXY_IMAGE = "istio/proxyv2"
ROOTS_CONFIG_MAP = "istio-ca-root-cert"
ROOTS_KEY = "root-cert.pem"
ROOTS_MOUNT = "/var/run/secrets/istio"
TOKEN_MOUNT = "/var/run/secrets/tokens"  # noqa: S105 - a path
TOKEN_FILE = f"{TOKEN_MOUNT}/istio-token"
TOKEN_AUDIENCE = "istio-ca"  # noqa: S105 - an audience
DATA_MOUNT = "/var/lib/istio/data"
CITADEL_MOUNT = "/etc/certs"

INBOUND_PORT = 15006
ADMIN_PORT = 15000
STATUS_PORT = 15020
HEALTH_PORT = 15021
ENVOY_PROMETHEUS_PORT = 15090

NATIVE_SINCE = (1, 27)
WORKLOAD_SOCKETS_SINCE = (1, 15)
AGENT_SINCE = (1, 5)


@dataclass(frozen=True)
class Settings:
    """What of an installation a proxy depends on.

    Attributes:
        namespace: The control plane's.
        version: Istio's, also the images' tag.
        revision: `default`, or the revision's name.
        hub: Of the images.
        native: Whether the proxy is a native sidecar (an init container that keeps running).
        metadata: `defaultConfig.proxyMetadata` of the mesh configuration: environment of every agent.
        citadel: Whether certificates come from the Secret istio.SERVICEACCOUNT that Citadel writes.
        cluster_id: `global.multiCluster.clusterName`.
    """

    namespace: str = "istio-system"
    version: str = "1.30.1"
    revision: str = "default"
    hub: str = "docker.io/istio"
    trust_domain: str = "cluster.local"
    native: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)
    citadel: bool = False
    cluster_id: str = "Kubernetes"

    @property
    def service(self) -> str:
        """The Service of its istiod: `istiod`, or `istiod-REVISION`."""
        return "istiod" if self.revision == "default" else f"istiod-{self.revision}"

    @property
    def ca_address(self) -> str:
        """Where agents send their CSRs."""
        return f"{self.service}.{self.namespace}.svc:15012"

    @property
    def image(self) -> str:
        """Of proxies and init containers."""
        return f"{self.hub}/proxyv2:{self.version}"


def minor(version: str) -> tuple[int, int]:
    """(1, 30) of `1.30.1`, `1.30.1-distroless` or `v1.30`.

    Raises:
        ValueError: If the text does not begin with two numbers.
    """
    parts = version.lstrip("v").split("-")[0].split(".")
    if len(parts) < 2:
        raise ValueError(f"{version!r} is no version of Istio")
    return int(parts[0]), int(parts[1])


def proxy_config(settings: Settings) -> str:
    """PROXY_CONFIG: what of the ProxyConfig is not its default, as protojson prints it."""
    return json.dumps({"proxyMetadata": dict(settings.metadata)} if settings.metadata else {}) + "\n"


def proxy_container(
    settings: Settings,
    *,
    role: str = "sidecar",
    native: bool = False,
    workload: str = "",
    owner: str = "",
    ports: Sequence[JSON] = (),
    app_containers: Sequence[str] = (),
) -> JSON:
    """The container `istio-proxy`.

    Args:
        role: `sidecar` or `router`.
        native: Whether it goes to `initContainers`.
        workload: Name of the workload that owns the pod.
        owner: ISTIO_META_OWNER of it.
        ports: Container ports of the application.
        app_containers: Names of the application's containers.
    """
    container: JSON = {
        "name": CONTAINER,
        "image": settings.image,
        "ports": [{"containerPort": ENVOY_PROMETHEUS_PORT, "name": "http-envoy-prom", "protocol": "TCP"}],
        "args": [
            "proxy",
            role,
            "--domain",
            "$(POD_NAMESPACE).svc.cluster.local",
            "--proxyLogLevel=warning",
            "--proxyComponentLogLevel=misc:error",
            "--log_output_level=default:info",
        ],
        "env": _environment(settings, workload, owner, ports, app_containers),
        "readinessProbe": {
            "httpGet": {"path": "/healthz/ready", "port": HEALTH_PORT},
            "periodSeconds": 15,
            "timeoutSeconds": 3,
            "failureThreshold": 4,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsGroup": 1337,
            "runAsNonRoot": True,
            "runAsUser": 1337,
        },
        "volumeMounts": _mounts(settings),
    }
    if native:
        container["restartPolicy"] = "Always"
    if native or role == "sidecar":
        container["startupProbe"] = {
            "httpGet": {"path": "/healthz/ready", "port": HEALTH_PORT},
            "periodSeconds": 1,
            "timeoutSeconds": 3,
            "failureThreshold": 600,
        }
    return container


def init_container(settings: Settings) -> JSON:
    """The container `istio-init`, which redirects the pod's traffic through the proxy."""
    return {
        "name": INIT_CONTAINER,
        "image": settings.image,
        "args": [
            *("istio-iptables", "-p", "15001", "-z", str(INBOUND_PORT), "-u", "1337", "-m", "REDIRECT"),
            *("-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020", "--log_output_level=default:info"),
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": False,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "runAsUser": 0,
        },
    }


def volumes(settings: Settings, account: str = "default") -> list[JSON]:
    """The proxy's volumes; `account` is the pod's service account."""
    podinfo = [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}},
    ]
    found: list[JSON] = []
    if minor(settings.version) >= WORKLOAD_SOCKETS_SINCE:
        found += [{"name": name, "emptyDir": {}} for name in ("workload-socket", "credential-socket", "workload-certs")]
    found += [
        {"name": "istio-envoy", "emptyDir": {"medium": "Memory"}},
        {"name": "istio-data", "emptyDir": {}},
        {"name": "istio-podinfo", "downwardAPI": {"items": podinfo}},
    ]
    if settings.citadel:
        secret = {"secretName": f"istio.{account}", "optional": True}
        return [*found, {"name": "istio-certs", "secret": secret}]
    token = {"audience": TOKEN_AUDIENCE, "expirationSeconds": 43200, "path": "istio-token"}
    return [
        *found,
        {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "istiod-ca-cert", "configMap": {"name": ROOTS_CONFIG_MAP}},
    ]


def _mounts(settings: Settings) -> list[JSON]:
    found: list[JSON] = []
    if minor(settings.version) >= WORKLOAD_SOCKETS_SINCE:
        found += [
            {"mountPath": "/var/run/secrets/workload-spiffe-uds", "name": "workload-socket"},
            {"mountPath": "/var/run/secrets/credential-uds", "name": "credential-socket"},
            {"mountPath": "/var/run/secrets/workload-spiffe-credentials", "name": "workload-certs"},
        ]
    found += [
        {"mountPath": DATA_MOUNT, "name": "istio-data"},
        {"mountPath": "/etc/istio/proxy", "name": "istio-envoy"},
        {"mountPath": "/etc/istio/pod", "name": "istio-podinfo"},
    ]
    if settings.citadel:
        return [*found, {"mountPath": CITADEL_MOUNT, "name": "istio-certs", "readOnly": True}]
    return [
        *found,
        {"mountPath": ROOTS_MOUNT, "name": "istiod-ca-cert"},
        {"mountPath": TOKEN_MOUNT, "name": "istio-token"},
    ]


def _environment(
    settings: Settings, workload: str, owner: str, ports: Sequence[JSON], app_containers: Sequence[str]
) -> list[JSON]:
    fields = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "INSTANCE_IP": "status.podIP",
        "SERVICE_ACCOUNT": "spec.serviceAccountName",
        "HOST_IP": "status.hostIP",
        "ISTIO_META_NODE_NAME": "spec.nodeName",
    }
    values = {
        "PROXY_CONFIG": proxy_config(settings),
        "ISTIO_META_POD_PORTS": json.dumps(list(ports), indent=4),
        "ISTIO_META_APP_CONTAINERS": ",".join(app_containers),
        "ISTIO_META_CLUSTER_ID": settings.cluster_id,
        "ISTIO_META_INTERCEPTION_MODE": "REDIRECT",
        "ISTIO_META_WORKLOAD_NAME": workload,
        "ISTIO_META_OWNER": owner,
        "ISTIO_META_MESH_ID": settings.trust_domain,
        "TRUST_DOMAIN": settings.trust_domain,
    }
    before = {} if settings.citadel else {"PILOT_CERT_PROVIDER": "istiod", "CA_ADDR": settings.ca_address}
    found: list[JSON] = [{"name": name, "value": value} for name, value in before.items()]
    found += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    found += [{"name": name, "value": value} for name, value in values.items() if value]
    return found + [{"name": name, "value": value} for name, value in settings.metadata.items()]
