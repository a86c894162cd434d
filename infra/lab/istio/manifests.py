"""The objects of an Istio control plane, as `istioctl install` and the chart istio-discovery would create them.

Object names, labels, keys, ports and mounts are the chart's; sizes and parts without a role in trust are left out.
Pure: from options and key material to a list of objects in the order of creation. The AKS add-on's installation uses
the same builders with another namespace, revision and CA volume.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from infra.lab.istio.options import (
    CA_MODES,
    CITADEL,
    DEFAULT_LEAF_SECONDS,
    DEFAULT_VERSION,
    PLUGIN,
    SELF_SIGNED,
    Options,
    default_leaf_seconds,
    default_version,
)
from infra.lab.services import LOOPBACK

if TYPE_CHECKING:
    from infra.lab.pki import KeyPair

JSON = dict[str, Any]

__all__ = [
    "CA_DIRECTORY",
    "CA_MODES",
    "CITADEL",
    "DEFAULT_LEAF_SECONDS",
    "DEFAULT_VERSION",
    "PLUGIN",
    "SCALED_CLOCKS",
    "SELF_SIGNED",
    "Material",
    "Options",
    "cacerts",
    "configuration",
    "default_leaf_seconds",
    "default_version",
    "deployment",
    "disruption_budget",
    "encode",
    "environment",
    "granted",
    "namespace",
    "objects",
    "rbac",
    "service",
]

CA_DIRECTORY = "/etc/cacerts"

# The clocks of a real istiod are 60 s, 1 h and up to 1 h; a lab does not wait that long.
SCALED_CLOCKS = {
    "LAB_ROOT_POLL_SECONDS": "3",
    "CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL": "5s",
    "CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR": "false",
    "LAB_LEADER_SECONDS": "5",
}


@dataclass(frozen=True)
class Material:
    """Keys of an installation (plug-in CA only) and the loopback address of istiod's Service."""

    address: str
    root: KeyPair | None = None
    intermediate: KeyPair | None = None


def encode(text: str) -> str:
    """Base64, for Secrets."""
    return base64.b64encode(text.encode()).decode()


def objects(options: Options, material: Material) -> list[JSON]:
    """Everything an istiod needs before its webhooks, in the order of creation."""
    found = [namespace(options), *configuration(options), *rbac(options)]
    if material.root is not None and material.intermediate is not None:
        found.append(cacerts(options, material.root, material.intermediate))
    return [*found, service(options, material.address), disruption_budget(options), deployment(options)]


def namespace(options: Options) -> JSON:
    """The control plane's namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": options.namespace, "labels": {}}}


def cacerts(options: Options, root: KeyPair, intermediate: KeyPair) -> JSON:
    """The plug-in CA's Secret, in one of its two forms."""
    if options.tls_secret:
        data = {
            "tls.crt": intermediate.certificate_pem,
            "tls.key": intermediate.key_pem,
            "ca.crt": root.certificate_pem,
        }
    else:
        data = {
            "ca-cert.pem": intermediate.certificate_pem,
            "ca-key.pem": intermediate.key_pem,
            "cert-chain.pem": intermediate.certificate_pem + root.certificate_pem,
            "root-cert.pem": root.certificate_pem,
        }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "cacerts", "namespace": options.namespace},
        "type": "kubernetes.io/tls" if options.tls_secret else "Opaque",
        "data": {key: encode(value) for key, value in data.items()},
    }


def configuration(options: Options) -> list[JSON]:
    """The mesh's ConfigMap and the injector's."""
    mesh = {
        "defaultConfig": {
            "discoveryAddress": f"{options.istiod}.{options.namespace}.svc:15012",
            "proxyMetadata": options.proxy_metadata,
        },
        "defaultProviders": {"metrics": ["prometheus"]},
        "enablePrometheusMerge": True,
        "rootNamespace": options.namespace,
        "trustDomain": options.trust_domain,
    }
    values = {
        "global": {
            "caAddress": "",
            "caName": "",
            "hub": options.hub,
            "istioNamespace": options.namespace,
            "multiCluster": {"clusterName": "", "enabled": False},
            "pilotCertProvider": "istiod",
            "proxy": {"clusterDomain": "cluster.local", "image": "proxyv2", "statusPort": 15020},
            "sts": {"servicePort": 0},
            "tag": options.image_tag,
        },
        "revision": "" if options.revision == "default" else options.revision,
    }
    return [
        _object(
            options,
            "ConfigMap",
            f"istio{options.suffix}",
            data={"mesh": _yaml(mesh), "meshNetworks": "networks: {}"},
        ),
        _object(
            options,
            "ConfigMap",
            f"istio-sidecar-injector{options.suffix}",
            data={"config": "policy: enabled\n", "values": json.dumps(values, indent=2)},
        ),
    ]


def deployment(options: Options) -> JSON:
    """The Deployment of istiod: container `discovery`, the CA mounted at /etc/cacerts."""
    default = options.revision == "default"
    selector = {"app": "istiod", "istio": "pilot"} if default else {"app": "istiod", "istio.io/rev": options.revision}
    labels = {
        "app": "istiod",
        "istio": "pilot" if default else "istiod",
        "istio.io/rev": options.revision,
        "istio.io/dataplane-mode": "none",
        "operator.istio.io/component": "Pilot",
        "sidecar.istio.io/inject": "false",
    }
    annotations = {
        "prometheus.io/port": "15014",
        "prometheus.io/scrape": "true",
        "sidecar.istio.io/inject": "false",
    }
    volume = options.ca_volume or {"secret": {"secretName": "cacerts", "optional": True}}
    token = {"audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token"}
    template: JSON = {
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": {
            "serviceAccountName": options.istiod,
            "containers": [_discovery(options)],
            "volumes": [
                {"name": "local-certs", "emptyDir": {"medium": "Memory"}},
                {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
                {"name": "cacerts", **volume},
                {"name": "config-volume", "configMap": {"name": f"istio{options.suffix}"}},
                {"name": "istio-kubeconfig", "secret": {"secretName": "istio-kubeconfig", "optional": True}},
            ],
        },
    }
    found = _object(options, "Deployment", options.istiod)
    found["apiVersion"] = "apps/v1"
    found["metadata"]["labels"] |= {"istio": "pilot", "operator.istio.io/component": "Pilot"}
    found["spec"] = {
        "replicas": options.replicas,
        "selector": {"matchLabels": selector},
        "strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "25%"}},
        "template": template,
    }
    return found


def environment(options: Options) -> dict[str, str]:
    """Variables of the container `discovery`, field references apart."""
    found = {
        "REVISION": options.revision,
        "PILOT_CERT_PROVIDER": "istiod",
        "KUBECONFIG": "/var/run/secrets/remote/config",
        "PILOT_TRACE_SAMPLING": "1",
        "PILOT_ENABLE_ANALYSIS": "false",
        "CLUSTER_ID": "Kubernetes",
    }
    if options.multiroot:
        found["ISTIO_MULTIROOT_MESH"] = "true"
    if options.ambient:
        found |= {"PILOT_ENABLE_AMBIENT": "true", "CA_TRUSTED_NODE_ACCOUNTS": f"{options.namespace}/ztunnel"}
    return found | SCALED_CLOCKS | dict(options.environment)


def service(options: Options, address: str) -> JSON:
    """istiod's Service, reachable in the lab at a loopback address."""
    ports = (("grpc-xds", 15010, 15010), ("https-dns", 15012, 15012), ("https-webhook", 443, 15017))
    found = _object(options, "Service", options.istiod)
    found["metadata"]["labels"] |= {"istio": "pilot"}
    found["metadata"]["annotations"] = {LOOPBACK: address}
    selector = {"istio": "pilot"} if options.revision == "default" else {"istio.io/rev": options.revision}
    found["spec"] = {
        "type": "ClusterIP",
        "selector": {"app": "istiod", **selector},
        "ports": [
            {"name": name, "port": port, "targetPort": target, "protocol": "TCP"}
            for name, port, target in (*ports, ("http-monitoring", 15014, 15014))
        ],
    }
    return found


def disruption_budget(options: Options) -> JSON:
    """One istiod always stays."""
    found = _object(options, "PodDisruptionBudget", options.istiod)
    found["apiVersion"] = "policy/v1"
    selector = {"istio": "pilot"} if options.revision == "default" else {"istio.io/rev": options.revision}
    found["spec"] = {"minAvailable": 1, "selector": {"matchLabels": {"app": "istiod", **selector}}}
    return found


def rbac(options: Options) -> list[JSON]:
    """istiod's service account and what it may do."""
    read = ["get", "list", "watch"]
    admission = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"]
    rules = [
        _rule("admissionregistration.k8s.io", admission, [*read, "update", "patch"]),
        _rule("", ["nodes", "pods", "services", "namespaces", "endpoints"], read),
        _rule("", ["configmaps"], ["create", *read, "update", "patch"]),
        _rule("", ["secrets"], ["create", *read, "update", "patch", "delete"]),
        _rule("", ["events"], ["create", "patch"]),
        _rule("authentication.k8s.io", ["tokenreviews"], ["create"]),
        _rule("authorization.k8s.io", ["subjectaccessreviews"], ["create"]),
        _rule("coordination.k8s.io", ["leases"], ["create", *read, "update", "patch"]),
        _rule("discovery.k8s.io", ["endpointslices"], read),
    ]
    role = f"istiod-clusterrole{options.suffix}-{options.namespace}"
    return granted(options, options.istiod, role, rules)


def granted(options: Options, account: str, role: str, rules: list[JSON]) -> list[JSON]:
    """A ServiceAccount, a ClusterRole and their binding."""
    group = "rbac.authorization.k8s.io"
    labels = {"app": account, "istio.io/rev": options.revision}
    return [
        _object(options, "ServiceAccount", account),
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": role, "labels": labels},
            "rules": rules,
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": role, "labels": labels},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": options.namespace}],
        },
    ]


def _discovery(options: Options) -> JSON:
    fields = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "SERVICE_ACCOUNT": "spec.serviceAccountName",
    }
    env: list[JSON] = [{"name": name, "value": value} for name, value in environment(options).items()]
    env += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    return {
        "name": "discovery",
        "image": f"{options.hub}/pilot:{options.image_tag}",
        "args": [
            *("discovery", "--monitoringAddr=:15014", "--log_output_level=default:info", "--domain", "cluster.local"),
            *("--keepaliveMaxServerConnectionAge", "30m"),
        ],
        "ports": [
            {"containerPort": 8080, "name": "http-debug", "protocol": "TCP"},
            {"containerPort": 15010, "name": "grpc-xds", "protocol": "TCP"},
            {"containerPort": 15012, "name": "tls-xds", "protocol": "TCP"},
            {"containerPort": 15017, "name": "https-webhooks", "protocol": "TCP"},
            {"containerPort": 15014, "name": "http-monitoring", "protocol": "TCP"},
        ],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "initialDelaySeconds": 1, "periodSeconds": 3},
        "env": env,
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True},
        "volumeMounts": [
            {"mountPath": "/var/run/secrets/tokens", "name": "istio-token", "readOnly": True},
            {"mountPath": "/var/run/secrets/istio-dns", "name": "local-certs"},
            {"mountPath": "/etc/istio/config", "name": "config-volume"},
            {"mountPath": CA_DIRECTORY, "name": "cacerts", "readOnly": True},
            {"mountPath": "/var/run/secrets/remote", "name": "istio-kubeconfig", "readOnly": True},
        ],
    }


def _object(options: Options, kind: str, name: str, **body: Any) -> JSON:
    labels = {"app": "istiod", "istio.io/rev": options.revision, "release": "istio"}
    metadata: JSON = {"name": name, "namespace": options.namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **body}


def _rule(group: str, resources: list[str], verbs: list[str]) -> JSON:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def _yaml(value: JSON) -> str:
    text = io.StringIO()
    YAML().dump(value, text)
    return text.getvalue()
