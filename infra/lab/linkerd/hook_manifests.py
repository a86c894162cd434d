"""What Linkerd's charts create for the servers an API server calls: Secrets, Services, configurations, viz.

Names, labels, ports and rules are the charts' (charts/linkerd-control-plane and viz/charts of linkerd2, edge-26.8.3).
The policy is the chart's `webhookFailurePolicy`: Ignore, or Fail in a highly available installation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.linkerd import hooks, serving, workload

if TYPE_CHECKING:
    from infra.lab import pki
    from infra.lab.linkerd.manifests import Options

JSON = dict[str, Any]

VIZ = "linkerd-viz"
SP_SECRET, POLICY_SECRET = "linkerd-sp-validator-k8s-tls", "linkerd-policy-validator-k8s-tls"
TAP_SECRET, TAP_INJECTOR_SECRET = "tap-k8s-tls", "tap-injector-k8s-tls"
SP_SERVICE, POLICY_SERVICE = "linkerd-sp-validator", "linkerd-policy-validator"
_COMPONENT = "linkerd.io/control-plane-component"
_ADMISSION = "admissionregistration.k8s.io/v1"
_ANY: JSON = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_POLICIES = ("authorizationpolicies", "meshtlsauthentications", "networkauthentications", "serverauthorizations")


def serving_names(options: Options) -> dict[str, str]:
    """Secret -> the DNS name that its certificate is for."""
    names = {
        SP_SECRET: f"{SP_SERVICE}.{options.namespace}.svc",
        POLICY_SECRET: f"{POLICY_SERVICE}.{options.namespace}.svc",
    }
    return (
        {**names, TAP_SECRET: f"tap.{VIZ}.svc", TAP_INJECTOR_SECRET: f"tap-injector.{VIZ}.svc"}
        if options.viz
        else names
    )


def control_plane(options: Options, pairs: dict[str, pki.KeyPair]) -> list[JSON]:
    """What stands beside the validators in linkerd-destination: definitions, Secrets, Services."""
    plane = {"linkerd.io/control-plane-ns": options.namespace}
    found = [
        _definition("ServiceProfile", "serviceprofiles", "linkerd.io", "v1alpha2"),
        _definition("Server", "servers", "policy.linkerd.io", "v1beta3"),
    ]
    for secret, service, label, port in (
        (SP_SECRET, SP_SERVICE, "sp-validator", "sp-validator"),
        (POLICY_SECRET, POLICY_SERVICE, "policy-https", "policy-https"),
    ):
        labels = {**plane, _COMPONENT: "destination"}
        found += [
            _secret(secret, options.namespace, pairs[secret], labels),
            _service(service, options.namespace, {_COMPONENT: "destination"}, label, port, labels),
        ]
    return found


def configurations(options: Options, pairs: dict[str, pki.KeyPair]) -> list[JSON]:
    """The two validating configurations of the control plane."""
    profiles = [_rule(["CREATE", "UPDATE"], ["linkerd.io"], ["v1alpha1", "v1alpha2"], ["serviceprofiles"])]
    policies = [_rule(["CREATE", "UPDATE"], ["policy.linkerd.io"], ["*"], [*_POLICIES, "servers", "httproutes"])]
    return [
        _configuration(
            options, "ValidatingWebhookConfiguration", f"{service}-webhook-config", f"{service}.linkerd.io",
            client(service, options.namespace, pairs[secret]), rules, {_COMPONENT: component},
        )
        for service, secret, rules, component in (
            (SP_SERVICE, SP_SECRET, profiles, "sp-validator"),
            (POLICY_SERVICE, POLICY_SECRET, policies, "policy-validator"),
        )
    ]  # fmt: skip


def client(service: str, namespace: str, pair: pki.KeyPair) -> JSON:
    """How the API server reaches a webhook: by its Service, whose name the certificate has to have."""
    return {
        "service": {"name": service, "namespace": namespace, "path": "/", "port": 443},
        "caBundle": workload.encode(pair.certificate_pem),
    }


def viz(options: Options, pairs: dict[str, pki.KeyPair]) -> list[JSON]:
    """The namespace of viz with tap and tap-injector; their configurations are `viz_configurations`."""
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": VIZ,
            "labels": {"linkerd.io/extension": "viz", "pod-security.kubernetes.io/enforce": "privileged"},
            "annotations": {"linkerd.io/inject": "enabled"},
        },
    }
    found: list[JSON] = [namespace]
    for name, secret, port_name, port in (
        ("tap", TAP_SECRET, "apiserver", hooks.TAP_PORT),
        ("tap-injector", TAP_INJECTOR_SECRET, "tap-injector", hooks.TAP_INJECTOR_PORT),
    ):
        labels = {"linkerd.io/extension": "viz", "component": name}
        found += [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(name, VIZ, labels)},
            _secret(secret, VIZ, pairs[secret], labels),
            _service(name, VIZ, {"linkerd.io/extension": "viz", "component": name}, port_name, port_name, labels),
            _deployment(options, name, secret, port_name, port, labels),
        ]
    return found


def viz_configurations(options: Options, pairs: dict[str, pki.KeyPair]) -> list[JSON]:
    """tap's APIService, and the tap-injector's configuration."""
    labels = {"linkerd.io/extension": "viz"}
    pods = [_rule(["CREATE"], [""], ["v1"], ["pods"])]
    reached = client("tap-injector", VIZ, pairs[TAP_INJECTOR_SECRET])
    return [
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {
                "name": f"{hooks.TAP_VERSION}.{hooks.TAP_GROUP}",
                "labels": {**labels, "component": "tap"},
            },
            "spec": {
                "group": hooks.TAP_GROUP,
                "version": hooks.TAP_VERSION,
                "groupPriorityMinimum": 1000,
                "versionPriority": 100,
                "service": {"name": "tap", "namespace": VIZ},
                "caBundle": workload.encode(pairs[TAP_SECRET].certificate_pem),
            },
        },
        _configuration(
            options, "MutatingWebhookConfiguration", "linkerd-tap-injector-webhook-config", "tap-injector.linkerd.io",
            reached, pods, labels,
        ),
    ]  # fmt: skip


def _configuration(
    options: Options, kind: str, name: str, webhook: str, reached: JSON, rules: list[JSON], labels: dict[str, str]
) -> JSON:
    excluded = {
        "matchExpressions": [
            {"key": "config.linkerd.io/admission-webhooks", "operator": "NotIn", "values": ["disabled"]},
            {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", "cert-manager"]},
        ]
    }
    return {
        "apiVersion": _ADMISSION,
        "kind": kind,
        "metadata": {"name": name, "labels": {"linkerd.io/control-plane-ns": options.namespace, **labels}},
        "webhooks": [
            {
                "name": webhook,
                "namespaceSelector": excluded,
                "clientConfig": reached,
                "failurePolicy": options.failure_policy,
                "admissionReviewVersions": ["v1"],
                "rules": rules,
                "sideEffects": "None",
                "timeoutSeconds": 10,
            }
        ],
    }


def _rule(operations: list[str], groups: list[str], versions: list[str], resources: list[str]) -> JSON:
    return {"operations": operations, "apiGroups": groups, "apiVersions": versions, "resources": resources}


def _definition(kind: str, plural: str, group: str, version: str) -> JSON:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "labels": {"helm.sh/chart": "linkerd-crds"}},
        "spec": {
            "group": group,
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "scope": "Namespaced",
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": _ANY}}},
                }
            ],
        },
    }


def _metadata(name: str, namespace: str, labels: dict[str, str]) -> JSON:
    return {"name": name, "namespace": namespace, "labels": labels}


def _secret(name: str, namespace: str, pair: pki.KeyPair, labels: dict[str, str]) -> JSON:
    data = {"tls.crt": workload.encode(pair.certificate_pem), "tls.key": workload.encode(pair.key_pem)}
    metadata = _metadata(name, namespace, labels)
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "kubernetes.io/tls", "data": data}


def _service(
    name: str, namespace: str, selector: dict[str, str], port_name: str, target: str, labels: dict[str, str]
) -> JSON:
    ports = [{"name": port_name, "port": 443, "targetPort": target}]
    spec = {"type": "ClusterIP", "selector": selector, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(name, namespace, labels), "spec": spec}


def _deployment(options: Options, name: str, secret: str, port_name: str, port: int, labels: dict[str, str]) -> JSON:
    container = {
        "name": name,
        "image": f"cr.l5d.io/linkerd/tap:{options.version}",
        "args": ["api" if name == "tap" else "injector", "-log-level=info"],
        "ports": [{"containerPort": port, "name": port_name}],
        "volumeMounts": [{"mountPath": serving.TLS_MOUNT, "name": "tls", "readOnly": True}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(
            name, VIZ, {**labels, "app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "Linkerd"}
        ),
        "spec": {
            "replicas": options.replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": {"linkerd.io/inject": "enabled"}},
                "spec": {
                    "serviceAccountName": name,
                    "containers": [container],
                    "volumes": [{"name": "tls", "secret": {"secretName": secret}}],
                },
            },
        },
    }
