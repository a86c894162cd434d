"""The three control-plane Deployments: identity, destination, proxy-injector."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from infra.lab.linkerd import hooks, identity, injector, serving, sidecar, versions
from infra.lab.linkerd.flags import format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.lab.linkerd.manifests import Options

JSON = dict[str, Any]


def encode(text: str) -> str:
    """Base64, for Secrets and caBundles."""
    return base64.b64encode(text.encode()).decode()


def deployments(options: Options, bundle: str) -> list[JSON]:
    """The Deployments; their proxies take the roots from the ConfigMap, and the bundle's hash is in the template."""
    return [
        _deployment(options, bundle, "identity", _identity(options), _identity_volumes()),
        _deployment(
            options, bundle, "destination", _destination(options), _destination_volumes(), _validators(options)
        ),
        _deployment(options, bundle, "proxy-injector", _injector(options), _injector_volumes()),
    ]


def _deployment(
    options: Options,
    bundle: str,
    component: str,
    container: JSON,
    volumes: list[JSON],
    others: Sequence[JSON] = (),
) -> JSON:
    name = f"linkerd-{component}"
    is_identity = component == "identity"
    # A native sidecar in identity's own pod would wait for a certificate before identity could start.
    native = options.native and not is_identity
    containers = [container, *others]
    ports = ",".join(str(port["containerPort"]) for each in containers for port in each["ports"])
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
                **(dict(options.identity_annotations) if is_identity else {}),
            },
        },
        "spec": {
            "serviceAccountName": name,
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "initContainers": [sidecar.init_container(options.sidecar)] + ([proxy] if native else []),
            "containers": containers if native else [*containers, proxy],
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
        "ports": [
            {"containerPort": port, "name": versions.port_name(options.version, label)} for label, port in ports.items()
        ],
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
    return _container(options, "identity", args, {"ident-grpc": 8080, "ident-admin": 9990}, mounts)


def _identity_volumes() -> list[JSON]:
    return [
        {"name": "identity-issuer", "secret": {"secretName": "linkerd-identity-issuer"}},
        {"name": "trust-roots", "configMap": {"name": sidecar.ROOTS_CONFIG_MAP}},
    ]


def _destination(options: Options) -> JSON:
    args = ["destination", "-addr=:8086", f"-controller-namespace={options.namespace}", "-log-level=info"]
    return _container(options, "destination", args, {"dest-grpc": 8086, "dest-admin": 9996}, [])


def _validators(options: Options) -> list[JSON]:
    """Beside destination in its pod: the one in Go is its own program, the one in Rust an image of its own."""
    profiles = _container(
        options, "sp-validator", ["sp-validator", "-log-level=info", "-log-format=plain"],
        {"sp-validator": hooks.SP_VALIDATOR_PORT, "spval-admin": 9997},
        [{"mountPath": serving.TLS_MOUNT, "name": "sp-tls", "readOnly": True}],
    )  # fmt: skip
    policy = _container(
        options, "policy",
        [
            "--admin-addr=0.0.0.0:9990", f"--control-plane-namespace={options.namespace}", "--grpc-addr=0.0.0.0:8090",
            f"--server-addr=0.0.0.0:{hooks.POLICY_PORT}", f"--server-tls-key={serving.TLS_MOUNT}/tls.key",
            f"--server-tls-certs={serving.TLS_MOUNT}/tls.crt",
        ],
        {"policy-grpc": 8090, "policy-admin": 9990, "policy-https": hooks.POLICY_PORT},
        [{"mountPath": serving.TLS_MOUNT, "name": "policy-tls", "readOnly": True}],
    )  # fmt: skip
    policy["image"] = f"cr.l5d.io/linkerd/policy-controller:{options.version}"
    if options.stale_policy_validator:
        policy["env"] = [{"name": serving.NO_RELOAD_ENV, "value": "true"}]
    return [profiles, policy]


def _destination_volumes() -> list[JSON]:
    return [
        {"name": "sp-tls", "secret": {"secretName": "linkerd-sp-validator-k8s-tls"}},
        {"name": "policy-tls", "secret": {"secretName": "linkerd-policy-validator-k8s-tls"}},
    ]


def _injector(options: Options) -> JSON:
    args = ["proxy-injector", "-log-level=info", f"-linkerd-namespace={options.namespace}"]
    mounts: list[JSON] = [
        {"mountPath": injector.VALUES_FILE.rpartition("/")[0], "name": "config"},
        {"mountPath": injector.ROOTS_FILE.rpartition("/")[0], "name": "trust-roots"},
        {"mountPath": serving.TLS_MOUNT, "name": "tls", "readOnly": True},
    ]
    ports = {"proxy-injector": injector.PORT, "injector-admin": injector.ADMIN_PORT}
    return _container(options, "proxy-injector", args, ports, mounts)


def _injector_volumes() -> list[JSON]:
    return [
        {"name": "config", "configMap": {"name": "linkerd-config"}},
        {"name": "trust-roots", "configMap": {"name": sidecar.ROOTS_CONFIG_MAP}},
        {"name": "tls", "secret": {"secretName": "linkerd-proxy-injector-k8s-tls"}},
    ]
