"""The proxy's containers and volumes, as the chart's partials and the injector render them.

One builder for both ways in: the injector gives the roots as an inline literal, control-plane templates take them from
the ConfigMap by reference (facts 1: `configMapKeyRef` there, a literal everywhere else).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from infra.lab.linkerd import proxy

CONTAINER = "linkerd-proxy"
INIT_CONTAINER = "linkerd-init"
END_ENTITY_VOLUME = "linkerd-identity-end-entity"
TOKEN_VOLUME = "linkerd-identity-token"  # noqa: S105 - the name of a volume
END_ENTITY_MOUNT = "/var/run/linkerd/identity/end-entity"
TOKEN_MOUNT = "/var/run/secrets/tokens"  # noqa: S105 - a path
ROOTS_CONFIG_MAP = "linkerd-identity-trust-roots"
ROOTS_KEY = "ca-bundle.crt"


@dataclass(frozen=True)
class SidecarConfig:
    """What of the installation a sidecar depends on.

    Attributes:
        namespace: The control plane's.
        version: Linkerd's, also the images' tag.
        trust_domain: Of the mesh identities.
        native: Whether the proxy is a native sidecar (an init container that keeps running), the default since 2.20.
        min_refresh: Floor of the renewal interval as a Go duration; "" leaves the proxy its own (10 s).
        inbound_policy: Who is let in where no Server resource says otherwise (`proxy.defaultInboundPolicy`).
    """

    namespace: str
    version: str
    trust_domain: str
    native: bool
    min_refresh: str = ""
    inbound_policy: str = proxy.UNAUTHENTICATED

    def identity_of(self, account: str, namespace: str) -> str:
        """The mesh identity of a service account."""
        return f"{account}.{namespace}.serviceaccount.identity.{self.namespace}.{self.trust_domain}"


def literal_roots(pem: str) -> dict[str, Any]:
    """The environment entry the injector writes."""
    return {"name": proxy.TRUST_ANCHORS, "value": pem}


def referenced_roots() -> dict[str, Any]:
    """The environment entry of control-plane templates."""
    reference = {"name": ROOTS_CONFIG_MAP, "key": ROOTS_KEY}
    return {"name": proxy.TRUST_ANCHORS, "valueFrom": {"configMapKeyRef": reference}}


def trust_root_sha256(bundle: str) -> str:
    """Value of the annotation `linkerd.io/trust-root-sha256`: over the raw bytes of the bundle."""
    return hashlib.sha256(bundle.encode()).hexdigest()


def proxy_container(
    config: SidecarConfig,
    roots: dict[str, Any],
    *,
    native: bool,
    ports: str = "",
    local_identity: bool = False,
    inbound_policy: str = "",
) -> dict[str, Any]:
    """The container `linkerd-proxy`.

    Args:
        roots: `literal_roots` or `referenced_roots`.
        native: Whether it goes to `initContainers`.
        ports: The pod's own container ports, comma-separated.
        local_identity: For identity's own pod: the service is next door, without TLS.
        inbound_policy: Of this pod; "" takes the installation's.
    """
    address = f"linkerd-identity-headless.{config.namespace}.svc.{config.trust_domain}.:8080"
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": f"cr.l5d.io/linkerd/proxy:{config.version}",
        "imagePullPolicy": "IfNotPresent",
        "ports": [
            {"containerPort": proxy.INBOUND_PORT, "name": "linkerd-proxy"},
            {"containerPort": proxy.ADMIN_PORT, "name": "linkerd-admin"},
        ],
        "env": [
            _field("_pod_name", "metadata.name"),
            _field("_pod_ns", "metadata.namespace"),
            _field("_pod_nodeName", "spec.nodeName"),
            {"name": "LINKERD2_PROXY_ADMIN_LISTEN_ADDR", "value": f"0.0.0.0:{proxy.ADMIN_PORT}"},
            {"name": "LINKERD2_PROXY_INBOUND_LISTEN_ADDR", "value": f"0.0.0.0:{proxy.INBOUND_PORT}"},
            {"name": proxy.INBOUND_PORTS, "value": ports},
            {"name": proxy.INBOUND_POLICY, "value": inbound_policy or config.inbound_policy},
            {"name": proxy.DIRECTORY, "value": END_ENTITY_MOUNT},
            roots,
            {"name": proxy.TOKEN_FILE, "value": f"{TOKEN_MOUNT}/linkerd-identity-token"},
            {"name": proxy.SERVICE_ADDRESS, "value": "localhost.:8080" if local_identity else address},
            _field("_pod_sa", "spec.serviceAccountName"),
            {"name": "_l5d_ns", "value": config.namespace},
            {"name": "_l5d_trustdomain", "value": config.trust_domain},
            {
                "name": proxy.LOCAL_NAME,
                "value": "$(_pod_sa).$(_pod_ns).serviceaccount.identity.$(_l5d_ns).$(_l5d_trustdomain)",
            },
            {"name": proxy.SERVICE_NAME, "value": config.identity_of("linkerd-identity", config.namespace)},
        ],
        "livenessProbe": {
            "httpGet": {"path": "/live", "port": proxy.ADMIN_PORT},
            "initialDelaySeconds": 10,
            "timeoutSeconds": 1,
        },
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": proxy.ADMIN_PORT},
            "initialDelaySeconds": 2,
            "timeoutSeconds": 1,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 2102,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"mountPath": END_ENTITY_MOUNT, "name": END_ENTITY_VOLUME},
            {"mountPath": TOKEN_MOUNT, "name": TOKEN_VOLUME},
        ],
    }
    if config.min_refresh:
        container["env"].append({"name": proxy.MIN_REFRESH, "value": config.min_refresh})
    if native:
        container["restartPolicy"] = "Always"
        container["startupProbe"] = {
            "httpGet": {"path": "/ready", "port": proxy.ADMIN_PORT},
            "periodSeconds": 1,
            "failureThreshold": 120,
        }
    return container


def init_container(config: SidecarConfig) -> dict[str, Any]:
    """The container `linkerd-init`, which redirects the pod's traffic through the proxy."""
    return {
        "name": INIT_CONTAINER,
        "image": f"cr.l5d.io/linkerd/proxy-init:{config.version}",
        "imagePullPolicy": "IfNotPresent",
        "args": ["--incoming-proxy-port", "4143", "--outgoing-proxy-port", "4140", "--proxy-uid", "2102"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"]},
            "privileged": False,
            "runAsNonRoot": True,
            "runAsUser": 65534,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def volumes() -> list[dict[str, Any]]:
    """The proxy's volumes."""
    token = {"audience": "identity.l5d.io", "expirationSeconds": 86400, "path": "linkerd-identity-token"}
    return [
        {"name": END_ENTITY_VOLUME, "emptyDir": {"medium": "Memory"}},
        {"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}},
    ]


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
