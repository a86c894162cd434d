"""A Linkerd of which only what its control plane reads is there: roots, issuer and identity, and no proxy yet."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from capstan.cluster.resources import CONFIG_MAPS, DEPLOYMENTS, NAMESPACES, SECRETS
from capstan.pki.bundle import Bundle

if TYPE_CHECKING:
    from capstan.cluster.client import Cluster
    from capstan.cluster.resources import Resource
    from capstan.pki.inspect import Certificate
    from capstan.pki.keys import PrivateKey
    from capstan.pki.mint import Minted


def install(cluster: Cluster, root: Minted, issuer: Minted) -> None:
    """What `linkerd install` writes, as far as roots and issuer are in it."""
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "linkerd"}})
    write_roots(cluster, root.certificate)
    write_issuer(cluster, issuer.certificate, issuer.key)
    labels = {"linkerd.io/control-plane-component": "identity"}
    cluster.create(DEPLOYMENTS, {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "linkerd-identity", "namespace": "linkerd", "labels": labels},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "identity", "image": "cr.l5d.io/linkerd/controller:edge-26.8.3"}]},
        }},
    })  # fmt: skip


def write_roots(cluster: Cluster, *roots: Certificate) -> None:
    """The two places that declare the roots."""
    text = Bundle.of(*roots).pem()
    values = json.dumps({"identityTrustAnchorsPEM": text, "identityTrustDomain": "cluster.local"})
    for name, data in (
        ("linkerd-config", {"values": values}),
        ("linkerd-identity-trust-roots", {"ca-bundle.crt": text}),
    ):
        _write(cluster, CONFIG_MAPS, {"kind": "ConfigMap", "metadata": {"name": name}, "data": data})


def write_issuer(cluster: Cluster, certificate: Certificate, key: PrivateKey) -> None:
    """The Secret that identity signs with."""
    texts = {"crt.pem": certificate.pem(), "key.pem": key.pem().decode()}
    data = {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}
    body = {"kind": "Secret", "type": "Opaque", "metadata": {"name": "linkerd-identity-issuer"}, "data": data}
    _write(cluster, SECRETS, body)


def _write(cluster: Cluster, resource: Resource, body: dict[str, Any]) -> None:
    body = {"apiVersion": "v1", **body, "metadata": {**body["metadata"], "namespace": "linkerd"}}
    there = cluster.find(resource, body["metadata"]["name"], "linkerd")
    if there is None:
        cluster.create(resource, body)
    else:
        cluster.replace(resource, {**there, "data": body["data"]})
