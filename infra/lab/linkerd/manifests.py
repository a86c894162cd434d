"""The objects of a Linkerd control plane, as the chart and `linkerd install` would create them.

Object names, labels, keys and mounts are the chart's (facts 1); sizes and unneeded parts (policy, service profiles,
heartbeat) are left out. Pure: from options and key material to a list of objects in the order of creation.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from infra.lab.linkerd import hook_manifests, sidecar, versions, workload
from infra.lab.linkerd.flags import format_duration
from infra.lab.linkerd.issuer import SCHEME_FILES
from infra.lab.linkerd.proxy import MIN_REFRESH
from infra.lab.linkerd.sidecar import SidecarConfig
from infra.lab.services import LOOPBACK, TARGET_PORT, listening_port

if TYPE_CHECKING:
    from infra.lab import pki

JSON = dict[str, Any]

DEFAULT_VERSION = "edge-26.8.3"
INJECTOR_TLS_SECRET = "linkerd-proxy-injector-k8s-tls"  # noqa: S105 - the name of a Secret
WEBHOOK_CONFIG = "linkerd-proxy-injector-webhook-config"


@dataclass(frozen=True)
class Options:
    """Choices of an installation.

    Attributes:
        leaf_seconds: `identity.issuer.issuanceLifetime`; a real installation has 86400.
        skew_seconds: `identity.issuer.clockSkewAllowance`; a real one has 20.
        min_refresh: Floor of the proxies' renewal interval, a Go duration (LINKERD2_PROXY_IDENTITY_MIN_REFRESH).
        scheme: linkerd.io/tls or kubernetes.io/tls: which keys of the issuer Secret are read.
        native_sidecar: `proxy.nativeSidecar`, as the version has it by default unless told.
        cli_install: Whether the Secret linkerd-config-overrides of a CLI installation exists.
        default_certificates: As `linkerd install` without certificates: one self-signed one is both root and issuer.
        anchor_seconds: Life of the trust anchor from the installation on, for tests of its end; 0 for years.
        issuer_seconds: The same of the issuer.
        replicas: Of each control-plane Deployment.
        identity_annotations: Of identity's pods: how it is to misbehave (`infra.lab.linkerd.identity`).
        viz: Whether there is the extension, with tap and tap-injector.
        failure_policy: `webhookFailurePolicy`: Ignore, or Fail as in a highly available installation.
        stale_policy_validator: It never reads a renewed Secret (linkerd2 issue 7519).
        by_url: The injector is called by URL, as it has to be where the API server cannot reach loopback by Service.
    """

    namespace: str = "linkerd"
    version: str = DEFAULT_VERSION
    trust_domain: str = "cluster.local"
    leaf_seconds: int = 24
    skew_seconds: int = 1
    min_refresh: str = "1s"
    scheme: str = "linkerd.io/tls"
    native_sidecar: bool | None = None
    cli_install: bool = True
    default_certificates: bool = False
    anchor_seconds: int = 0
    issuer_seconds: int = 0
    replicas: int = 1
    identity_annotations: tuple[tuple[str, str], ...] = ()
    viz: bool = False
    failure_policy: str = "Ignore"
    stale_policy_validator: bool = False
    by_url: bool = False

    @property
    def sidecar(self) -> SidecarConfig:
        """What the proxies get of it."""
        return SidecarConfig(self.namespace, self.version, self.trust_domain, self.native, self.min_refresh)

    @property
    def native(self) -> bool:
        """Whether proxies are native sidecars."""
        if self.native_sidecar is None:
            return versions.native_by_default(self.version)
        return self.native_sidecar and versions.knows_native(self.version)


@dataclass(frozen=True)
class Material:
    """Keys of an installation, and the loopback addresses of its two services.

    `hooks` has the pairs of the webhooks beside the injector's, by the names of their Secrets.
    """

    root: pki.KeyPair
    issuer: pki.KeyPair
    webhook: pki.KeyPair
    identity_address: str
    injector_address: str
    extra_roots: tuple[str, ...] = field(default=())
    hooks: dict[str, pki.KeyPair] = field(default_factory=dict)

    @property
    def bundle(self) -> str:
        """ca-bundle.crt: trimmed, without a final newline, as the chart renders it."""
        return "".join([self.root.certificate_pem, *self.extra_roots]).strip()


def values(options: Options, material: Material) -> JSON:
    """The chart values that matter, without private keys."""
    return {
        "linkerdVersion": options.version,
        "clusterDomain": options.trust_domain,
        "identityTrustDomain": options.trust_domain,
        "identityTrustAnchorsPEM": LiteralScalarString(material.bundle + "\n"),
        "identity": {
            "externalCA": False,
            "issuer": {
                "scheme": options.scheme,
                "issuanceLifetime": format_duration(options.leaf_seconds),
                "clockSkewAllowance": format_duration(options.skew_seconds),
                "tls": {"crtPEM": LiteralScalarString(material.issuer.certificate_pem)},
            },
        },
        "proxy": {
            **({"nativeSidecar": options.native} if versions.knows_native(options.version) else {}),
            "additionalEnv": [{"name": MIN_REFRESH, "value": options.min_refresh}] if options.min_refresh else [],
        },
    }


def objects(options: Options, material: Material) -> list[JSON]:
    """Everything but the webhook configuration, in the order of creation."""
    return [
        _namespace(options),
        *_configuration(options, material),
        *rbac(options),
        *_services(options, material),
        *hook_manifests.control_plane(options, material.hooks),
        *workload.deployments(options, material.bundle),
    ]


def webhook(options: Options, material: Material) -> JSON:
    """The injector's MutatingWebhookConfiguration.

    Created last, when the injector answers; failurePolicy Ignore (the chart's default) lets pods through un-injected
    before that.
    """
    reached = hook_manifests.client("linkerd-proxy-injector", options.namespace, material.webhook)
    if options.by_url:
        del reached["service"]
        reached["url"] = f"https://{material.injector_address}:{listening_port(443)}/"
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {
            "name": WEBHOOK_CONFIG,
            "labels": {"linkerd.io/control-plane-component": "proxy-injector", **_common_labels(options)},
        },
        "webhooks": [
            {
                "name": "linkerd-proxy-injector.linkerd.io",
                "namespaceSelector": {
                    "matchExpressions": [
                        {"key": "config.linkerd.io/admission-webhooks", "operator": "NotIn", "values": ["disabled"]},
                        {
                            "key": "kubernetes.io/metadata.name",
                            "operator": "NotIn",
                            "values": ["kube-system", "cert-manager"],
                        },
                    ]
                },
                "clientConfig": reached,
                "failurePolicy": options.failure_policy,
                "admissionReviewVersions": ["v1"],
                "rules": [
                    {
                        "operations": ["CREATE"],
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "resources": ["pods"],
                        "scope": "Namespaced",
                    }
                ],
                "sideEffects": "None",
                "timeoutSeconds": 10,
            }
        ],
    }


def _namespace(options: Options) -> JSON:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": options.namespace,
            "labels": {
                "linkerd.io/is-control-plane": "true",
                "config.linkerd.io/admission-webhooks": "disabled",
                **_common_labels(options),
            },
        },
    }


def _configuration(options: Options, material: Material) -> list[JSON]:
    certificate_key, private_key = SCHEME_FILES[options.scheme]
    issuer = {certificate_key: material.issuer.certificate_pem, private_key: material.issuer.key_pem}
    if options.scheme == "kubernetes.io/tls":
        issuer["ca.crt"] = material.root.certificate_pem
    found = [
        _object(options, "ConfigMap", sidecar.ROOTS_CONFIG_MAP, data={sidecar.ROOTS_KEY: material.bundle}),
        _object(options, "ConfigMap", "linkerd-config", data={"values": _yaml(values(options, material))}),
        _object(
            options,
            "Secret",
            "linkerd-identity-issuer",
            type="Opaque" if options.scheme == "linkerd.io/tls" else "kubernetes.io/tls",
            data={key: workload.encode(value) for key, value in issuer.items()},
        ),
        _object(
            options,
            "Secret",
            INJECTOR_TLS_SECRET,
            type="kubernetes.io/tls",
            data={
                "tls.crt": workload.encode(material.webhook.certificate_pem),
                "tls.key": workload.encode(material.webhook.key_pem),
            },
        ),
    ]
    if options.cli_install:
        overrides = {
            "identityTrustAnchorsPEM": LiteralScalarString(material.bundle + "\n"),
            "identity": {
                "issuer": {
                    "tls": {
                        "crtPEM": LiteralScalarString(material.issuer.certificate_pem),
                        "keyPEM": LiteralScalarString(material.issuer.key_pem),
                    }
                }
            },
        }
        data = {"linkerd-config-overrides": workload.encode(_yaml(overrides))}
        found.append(_object(options, "Secret", "linkerd-config-overrides", type="Opaque", data=data))
    return found


def rbac(options: Options) -> list[JSON]:
    read = ["get", "list", "watch"]
    rules: dict[str, list[JSON]] = {
        "identity": [
            _rule("authentication.k8s.io", ["tokenreviews"], ["create"]),
            _rule("apps", ["deployments"], ["get"]),
            _rule("", ["events"], ["create", "patch"]),
        ],
        "destination": [
            _rule("", ["pods", "endpoints", "services", "nodes", "namespaces"], read),
            _rule("apps", ["replicasets"], read),
        ],
        "proxy-injector": [
            _rule("", ["events"], ["create", "patch"]),
            _rule("", ["namespaces", "replicationcontrollers"], read),
            _rule("apps", ["deployments", "replicasets", "daemonsets", "statefulsets"], read),
            _rule("batch", ["jobs", "cronjobs"], read),
        ],
    }
    found: list[JSON] = []
    for component, permitted in rules.items():
        account, role = f"linkerd-{component}", f"linkerd-{options.namespace}-{component}"
        group = "rbac.authorization.k8s.io"
        labels = {"linkerd.io/control-plane-component": component, **_common_labels(options)}
        found += [
            _object(options, "ServiceAccount", account, component=component),
            {
                "apiVersion": f"{group}/v1",
                "kind": "ClusterRole",
                "metadata": {"name": role, "labels": labels},
                "rules": permitted,
            },
            {
                "apiVersion": f"{group}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": role, "labels": labels},
                "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": options.namespace}],
            },
        ]
    return found


def _services(options: Options, material: Material) -> list[JSON]:
    identity_ports = [{"name": "grpc", "port": 8080, "targetPort": 8080}]
    selector = {"linkerd.io/control-plane-component": "identity"}
    via_proxy = {LOOPBACK: material.identity_address, TARGET_PORT: "4143"}
    injector = _object(
        options,
        "Service",
        "linkerd-proxy-injector",
        component="proxy-injector",
        spec={
            "type": "ClusterIP",
            "selector": {"linkerd.io/control-plane-component": "proxy-injector"},
            "ports": [{"name": "proxy-injector", "port": 443, "targetPort": "proxy-injector"}],
        },
    )
    injector["metadata"]["annotations"][LOOPBACK] = material.injector_address
    headless = _object(
        options,
        "Service",
        "linkerd-identity-headless",
        component="identity",
        spec={"clusterIP": "None", "selector": selector, "ports": identity_ports},
    )
    headless["metadata"]["annotations"] |= via_proxy
    cluster_ip = _object(
        options,
        "Service",
        "linkerd-identity",
        component="identity",
        spec={"type": "ClusterIP", "selector": selector, "ports": identity_ports},
    )
    return [cluster_ip, headless, injector]


def _object(options: Options, kind: str, name: str, *, component: str = "", **body: Any) -> JSON:
    labels = _common_labels(options)
    if component:
        labels["linkerd.io/control-plane-component"] = component
    metadata = {
        "name": name,
        "namespace": options.namespace,
        "labels": labels,
        "annotations": {"linkerd.io/created-by": f"linkerd/cli {options.version}"},
    }
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **body}


def _common_labels(options: Options) -> dict[str, str]:
    return {"linkerd.io/control-plane-ns": options.namespace}


def _rule(group: str, resources: list[str], verbs: list[str]) -> JSON:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def _yaml(value: JSON) -> str:
    text = io.StringIO()
    YAML().dump(value, text)
    return text.getvalue()
