"""The three control-plane Deployments: identity, destination, proxy-injector."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from infra.lab.linkerd import identity, injector, sidecar
from infra.lab.linkerd.flags import format_duration

if TYPE_CHECKING:
    from infra.lab.linkerd.manifests import Options

JSON = dict[str, Any]


def encode(text: str) -> str:
    """Base64, for Secrets and caBundles."""
    return base64.b64encode(text.encode()).decode()


def deployments(options: Options, bundle: str) -> list[JSON]:
    """The Deployments; their proxies take the roots from the ConfigMap, and the bundle's hash is in the template."""
    return [
        _deployment(options, bundle, "identity", _identity(options), _identity_volumes()),
        _deployment(options, bundle, "destination", _destination(options), []),
        _deployment(options, bundle, "proxy-injector", _injector(options), _injector_volumes()),
    ]


def _deployment(options: Options, bundle: str, component: str, container: JSON, volumes: list[JSON]) -> JSON:
    name = f"linkerd-{component}"
    is_identity = component == "identity"
    # A native sidecar in identity's own pod would wait for a certificate before identity could start.
    native = options.native_sidecar and not is_identity
    ports = ",".join(str(port["containerPort"]) for port in container["ports"])
    proxy = sidecar.proxy_container(
        options.sidecar, sidecar.referenced_roots(), native=native, ports=ports, local_identity=is_identity
    )
    selector = {
        "linkerd.io/control-plane-component": component,
        "linkerd.io/control-plane-ns": options.namespace,
        "linkerd.io/proxy-deployment": name,
    }
    created_by = f"linkerd/cli {options.version}"
    template: JSON = {
        "metadata": {
            "labels": {**selector, "linkerd.io/workload-ns": options.namespace},
            "annotations": {
                "linkerd.io/created-by": created_by,
                "linkerd.io/proxy-version": options.version,
                "linkerd.io/trust-root-sha256": sidecar.trust_root_sha256(bundle + "\n"),
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
            },
        },
        "spec": {
            "serviceAccountName": name,
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "initContainers": [sidecar.init_container(options.sidecar)] + ([proxy] if native else []),
            "containers": [container] if native else [container, proxy],
            "volumes": [*volumes, *sidecar.volumes()],
        },
    }
    labels = {
        "app.kubernetes.io/name": component,
        "app.kubernetes.io/part-of": "Linkerd",
        "app.kubernetes.io/version": options.version,
        "linkerd.io/control-plane-component": component,
        "linkerd.io/control-plane-ns": options.namespace,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": options.namespace,
            "labels": labels,
            "annotations": {"linkerd.io/created-by": created_by},
        },
        "spec": {
            "replicas": options.replicas,
            "selector": {"matchLabels": selector},
            "strategy": {"rollingUpdate": {"maxUnavailable": 1 if options.replicas > 1 else "25%"}},
            "template": template,
        },
    }


def _container(options: Options, name: str, args: list[str], ports: dict[str, int], mounts: list[JSON]) -> JSON:
    return {
        "name": name,
        "image": f"cr.l5d.io/linkerd/controller:{options.version}",
        "imagePullPolicy": "IfNotPresent",
        "args": args,
        "ports": [{"containerPort": port, "name": label} for label, port in ports.items()],
        "volumeMounts": mounts,
    }


def _identity(options: Options) -> JSON:
    args = [
        "identity",
        "-log-level=info",
        "-log-format=plain",
        f"-controller-namespace={options.namespace}",
        f"-identity-trust-domain={options.trust_domain}",
        f"-identity-issuance-lifetime={format_duration(options.leaf_seconds)}",
        f"-identity-clock-skew-allowance={format_duration(options.skew_seconds)}",
        f"-identity-scheme={options.scheme}",
        "-enable-pprof=false",
    ]
    mounts = [
        {"mountPath": identity.ISSUER_MOUNT, "name": "identity-issuer"},
        {"mountPath": identity.ROOTS_FILE.rpartition("/")[0] + "/", "name": "trust-roots"},
    ]
    return _container(options, "identity", args, {"identity-grpc": 8080, "identity-admin": 9990}, mounts)


def _identity_volumes() -> list[JSON]:
    return [
        {"name": "identity-issuer", "secret": {"secretName": "linkerd-identity-issuer"}},
        {"name": "trust-roots", "configMap": {"name": sidecar.ROOTS_CONFIG_MAP}},
    ]


def _destination(options: Options) -> JSON:
    args = ["destination", "-addr=:8086", f"-controller-namespace={options.namespace}", "-log-level=info"]
    return _container(options, "destination", args, {"dest-grpc": 8086, "dest-admin": 9996}, [])


def _injector(options: Options) -> JSON:
    args = ["proxy-injector", "-log-level=info", f"-linkerd-namespace={options.namespace}"]
    mounts: list[JSON] = [
        {"mountPath": injector.VALUES_FILE.rpartition("/")[0], "name": "config"},
        {"mountPath": injector.ROOTS_FILE.rpartition("/")[0], "name": "trust-roots"},
        {"mountPath": injector.TLS_MOUNT, "name": "tls", "readOnly": True},
    ]
    ports = {"proxy-injector": injector.PORT, "injector-admin": injector.ADMIN_PORT}
    return _container(options, "proxy-injector", args, ports, mounts)


def _injector_volumes() -> list[JSON]:
    return [
        {"name": "config", "configMap": {"name": "linkerd-config"}},
        {"name": "trust-roots", "configMap": {"name": sidecar.ROOTS_CONFIG_MAP}},
        {"name": "tls", "secret": {"secretName": "linkerd-proxy-injector-k8s-tls"}},
    ]
