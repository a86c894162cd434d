"""istiod's webhook configurations, as its chart creates them: caBundle is empty until istiod itself fills it in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.lab.istio.manifests import Options

JSON = dict[str, Any]

_INJECT, _NAMESPACE, _REVISION = "sidecar.istio.io/inject", "istio-injection", "istio.io/rev"


def mutating(options: Options) -> JSON:
    """The MutatingWebhookConfiguration of the sidecar injector."""
    revision = options.revision
    not_refused = [_expression(_INJECT, "NotIn", "false")]
    unlabelled = [_expression(_REVISION, "DoesNotExist"), _expression(_NAMESPACE, "DoesNotExist")]
    entries = [
        _injector(
            options,
            "rev.namespace.",
            [_expression(_REVISION, "In", revision), _expression(_NAMESPACE, "DoesNotExist")],
            not_refused,
        ),
        _injector(options, "rev.object.", unlabelled, [*not_refused, _expression(_REVISION, "In", revision)]),
    ]
    if revision == "default":
        wanted = [_expression(_INJECT, "In", "true"), _expression(_REVISION, "DoesNotExist")]
        entries += [
            _injector(options, "namespace.", [_expression(_NAMESPACE, "In", "enabled")], not_refused),
            _injector(options, "object.", unlabelled, wanted),
        ]
    name = f"istio-sidecar-injector{options.suffix}"
    if options.namespace != "istio-system":
        name += f"-{options.namespace}"
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name, "labels": _labels(options, "sidecar-injector")},
        "webhooks": entries,
    }


def validating(options: Options) -> JSON:
    """The ValidatingWebhookConfiguration; it fails open until istiod patches it."""
    groups = ["security.istio.io", "networking.istio.io", "telemetry.istio.io", "extensions.istio.io"]
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {
            "name": f"istio-validator{options.suffix}-{options.namespace}",
            "labels": {**_labels(options, "istiod"), "istio": "istiod"},
        },
        "webhooks": [
            {
                "name": "rev.validation.istio.io",
                "clientConfig": _client(options, "/validate"),
                "rules": [
                    {
                        "operations": ["CREATE", "UPDATE"],
                        "apiGroups": groups,
                        "apiVersions": ["*"],
                        "resources": ["*"],
                        "scope": "*",
                    }
                ],
                "failurePolicy": "Ignore",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "objectSelector": {"matchExpressions": [_expression(_REVISION, "In", options.revision)]},
            }
        ],
    }


def _injector(options: Options, prefix: str, namespaces: list[JSON], pods: list[JSON]) -> JSON:
    return {
        "name": f"{prefix}sidecar-injector.istio.io",
        "clientConfig": _client(options, "/inject"),
        "sideEffects": "None",
        "rules": [
            {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "scope": "*"}
        ],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "admissionReviewVersions": ["v1"],
        "namespaceSelector": {"matchExpressions": namespaces},
        "objectSelector": {"matchExpressions": pods},
    }


def _client(options: Options, path: str) -> JSON:
    return {"service": {"name": options.istiod, "namespace": options.namespace, "path": path, "port": 443}}


def _expression(key: str, operator: str, *values: str) -> JSON:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def _labels(options: Options, app: str) -> dict[str, str]:
    return {"app": app, "istio.io/rev": options.revision, "operator.istio.io/component": "Pilot", "release": "istio"}
