"""The objects of an Istio before 1.5: Citadel, the sidecar injector and Pilot are Deployments of their own.

Names and labels are those of the charts `security`, `sidecarInjectorWebhook` and `pilot` of release 1.4. The injector's
serving certificate is the Secret that Citadel makes for its service account, and its webhook's caBundle is empty until
the injector fills in Citadel's root: so both have to follow a rotation of that root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.istio import injector, manifests, sidecar

if TYPE_CHECKING:
    from infra.lab.istio.manifests import Options

JSON = dict[str, Any]

CITADEL, INJECTOR, PILOT = "istio-citadel", "istio-sidecar-injector", "istio-pilot"
RESYNC_SECONDS = "2"
"""Citadel's resync in the lab; 60 s in a real one."""


def objects(options: Options) -> list[JSON]:
    """Everything but the webhook configuration, in the order of creation."""
    return [
        manifests.namespace(options),
        *manifests.configuration(options),
        *_citadel(options),
        *_injector(options),
        *_pilot(options),
    ]


def webhook(options: Options) -> JSON:
    """The MutatingWebhookConfiguration; its caBundle is the injector's to fill in."""
    service = {"name": INJECTOR, "namespace": options.namespace, "path": "/inject", "port": 443}
    rule = {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": injector.CONFIGURATION, "labels": {"app": "sidecarInjectorWebhook", "release": "istio"}},
        "webhooks": [
            {
                "name": injector.WEBHOOK,
                "clientConfig": {"service": service, "caBundle": ""},
                "rules": [rule],
                "failurePolicy": "Fail",
                "namespaceSelector": {"matchLabels": {"istio-injection": "enabled"}},
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }
        ],
    }


def _citadel(options: Options) -> list[JSON]:
    account = "istio-citadel-service-account"
    rules = [
        _rule(["configmaps"], ["create", "get", "update", "patch"]),
        _rule(["secrets"], ["create", "get", "watch", "list", "update", "patch", "delete"]),
        _rule(["serviceaccounts", "services", "namespaces"], ["get", "watch", "list"]),
        {**_rule(["tokenreviews"], ["create"]), "apiGroups": ["authentication.k8s.io"]},
    ]
    container = {
        "name": "citadel",
        "image": f"{options.hub}/citadel:{options.image_tag}",
        "args": [
            "--append-dns-names=true",
            "--grpc-port=8060",
            f"--citadel-storage-namespace={options.namespace}",
            f"--custom-dns-names=istio-pilot-service-account.{options.namespace}:istio-pilot.{options.namespace}",
            "--monitoring-port=15014",
            "--self-signed-ca=true",
            f"--trust-domain={options.trust_domain}",
            f"--workload-cert-ttl={options.leaf_seconds}s",
        ],
        "env": [
            {"name": "CITADEL_ENABLE_NAMESPACES_BY_DEFAULT", "value": "true"},
            {"name": "LAB_RESYNC_SECONDS", "value": RESYNC_SECONDS},
            # Ten minutes there, which no leaf of the lab lives.
            {"name": "CITADEL_WORKLOAD_CERT_MIN_GRACE_PERIOD", "value": "0s"},
            *({"name": name, "value": value} for name, value in options.environment.items()),
        ],
    }
    return [
        *manifests.granted(options, account, f"istio-citadel-{options.namespace}", rules),
        _service(options, CITADEL, {"istio": "citadel"}, [("grpc-citadel", 8060, 8060), ("monitoring", 15014, 15014)]),
        _deployment(options, CITADEL, {"app": "security", "istio": "citadel"}, account, [container], []),
    ]


def _injector(options: Options) -> list[JSON]:
    account = "istio-sidecar-injector-service-account"
    labels = {"app": "sidecarInjectorWebhook", "istio": "sidecar-injector"}
    container = {
        "name": "sidecar-injector-webhook",
        "image": f"{options.hub}/sidecar_injector:{options.image_tag}",
        "args": [
            f"--caCertFile={injector.CERTIFICATES}/root-cert.pem",
            f"--tlsCertFile={injector.CERTIFICATES}/cert-chain.pem",
            f"--tlsKeyFile={injector.CERTIFICATES}/key.pem",
            "--reconcileWebhookConfig=true",
        ],
        "volumeMounts": [{"mountPath": injector.CERTIFICATES, "name": "certs", "readOnly": True}],
    }
    volumes = [{"name": "certs", "secret": {"secretName": f"istio.{account}"}}]
    role = f"istio-sidecar-injector-{options.namespace}"
    rules = [
        _rule(["configmaps"], ["get", "list", "watch"]),
        {
            **_rule(["mutatingwebhookconfigurations"], ["get", "list", "watch", "patch"]),
            "apiGroups": ["admissionregistration.k8s.io"],
        },
    ]
    return [
        *manifests.granted(options, account, role, rules),
        _service(options, INJECTOR, {"istio": "sidecar-injector"}, [("https-inject", 443, injector.PORT)]),
        _deployment(options, INJECTOR, labels, account, [container], volumes),
    ]


def _pilot(options: Options) -> list[JSON]:
    """Pilot with its own sidecar, whose certificates are Citadel's like everybody's."""
    account = "istio-pilot-service-account"
    settings = options.settings
    discovery = {
        "name": "discovery",
        "image": f"{options.hub}/pilot:{options.image_tag}",
        "args": ["discovery", "--monitoringAddr=:15014", "--log_output_level=default:info"],
        "ports": [{"containerPort": 8080}, {"containerPort": 15010}],
    }
    proxy = sidecar.proxy_container(settings, workload=PILOT)
    labels = {"app": "pilot", "istio": "pilot"}
    volumes = sidecar.volumes(settings, account)
    return [
        *manifests.granted(options, account, f"istio-pilot-{options.namespace}", [_rule(["services"], ["list"])]),
        _service(options, PILOT, {"istio": "pilot"}, [("grpc-xds", 15010, 15010), ("https-xds", 15011, 15011)]),
        _deployment(options, PILOT, labels, account, [discovery, proxy], volumes),
    ]


def _deployment(
    options: Options, name: str, labels: dict[str, str], account: str, containers: list[JSON], volumes: list[JSON]
) -> JSON:
    annotations = {"sidecar.istio.io/inject": "false"}
    spec = {"serviceAccountName": account, "containers": containers, "volumes": volumes}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": options.namespace, "labels": {**labels, "release": "istio"}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec},
        },
    }


def _service(options: Options, name: str, selector: dict[str, str], ports: list[tuple[str, int, int]]) -> JSON:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": options.namespace, "labels": {"release": "istio"}},
        "spec": {
            "selector": selector,
            "ports": [{"name": label, "port": port, "targetPort": target} for label, port, target in ports],
        },
    }


def _rule(resources: list[str], verbs: list[str]) -> JSON:
    return {"apiGroups": [""], "resources": resources, "verbs": verbs}
