"""The ingress gateway: an Envoy with the same agent and no application, as istioctl's default profile installs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.istio import sidecar

if TYPE_CHECKING:
    from infra.lab.istio.manifests import Options

JSON = dict[str, Any]

NAME = "istio-ingressgateway"
ACCOUNT = "istio-ingressgateway-service-account"
_INJECT = "sidecar.istio.io/inject"


def objects(options: Options, *, namespace: str = "", name: str = NAME, account: str = ACCOUNT) -> list[JSON]:
    """ServiceAccount, Service and Deployment of a gateway; in the control plane's namespace unless told otherwise."""
    labels = {"app": name, "istio": "ingressgateway"}
    metadata = {"namespace": namespace or options.namespace, "labels": {**labels, "istio.io/rev": options.revision}}
    settings = options.settings
    template = {
        "metadata": {
            "labels": {
                **labels,
                "istio.io/rev": options.revision,
                "istio.io/dataplane-mode": "none",
                "service.istio.io/canonical-name": name,
                "service.istio.io/canonical-revision": "latest",
                _INJECT: "false",
            },
            "annotations": {
                "istio.io/rev": options.revision,
                "prometheus.io/path": "/stats/prometheus",
                "prometheus.io/port": str(sidecar.STATUS_PORT),
                "prometheus.io/scrape": "true",
                _INJECT: "false",
            },
        },
        "spec": {
            "serviceAccountName": account,
            "containers": [
                sidecar.proxy_container(
                    settings,
                    role="router",
                    workload=name,
                    owner=f"kubernetes://apis/apps/v1/namespaces/{metadata['namespace']}/deployments/{name}",
                )
            ],
            "volumes": sidecar.volumes(settings, account),
        },
    }
    ports = (("status-port", 15021, 15021), ("http2", 80, 8080), ("https", 443, 8443))
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, **metadata}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, **metadata},
            "spec": {
                "type": "LoadBalancer",
                "selector": labels,
                "ports": [{"name": n, "port": port, "targetPort": target} for n, port, target in ports],
            },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, **metadata},
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
        },
    ]
