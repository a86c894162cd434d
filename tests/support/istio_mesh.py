"""A small Istio to be read: two istiods, sidecars, a gateway, a ztunnel, and the places that repeat the roots."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from capstan.cluster.resources import CONFIG_MAPS, MUTATING_WEBHOOKS, SECRETS, VALIDATING_WEBHOOKS
from capstan.systems.istio.source import CaFiles, Mode
from tests.support.mesh import Answer, Mesh, SigningService, envoy, intermediate, leaf, pem, root

if TYPE_CHECKING:
    from collections.abc import Callable

    from capstan.cluster.client import Cluster
    from capstan.pki.mint import Minted
    from tests.support.apiserver import Running

SYSTEM = "istio-system"
VERSION = "1.30.1"


class Held:
    """A CA source that holds what the test says."""

    mode = Mode.PLUG_IN
    where = "the test's CA"

    def __init__(self, files: CaFiles) -> None:
        self.files = files

    def read(self) -> CaFiles:
        return self.files


class IstioMesh:
    """Istio 1.30.1 with a plug-in CA, all in order.

    Attributes:
        old, new: Two roots, of which the first is in use.
        issuer: The signing CA.
        source: Where its files are kept.
        signers: The signing service of each istiod, by pod.
        connected: Whom `/debug/connections` of every istiod lists.
        admin: What each Envoy answers, by (namespace, pod).
    """

    def __init__(self, running: Running, cluster: Cluster, *, env: dict[str, str] | None = None) -> None:
        self.cluster = cluster
        self.mesh = Mesh(running, cluster)
        self.old, self.new = root("old"), root("new")
        self.issuer = intermediate("Intermediate CA", self.old)
        self.source: Any = Held(CaFiles(pem(self.old), pem(self.issuer), pem(self.issuer, self.old), "1"))
        self.signers: dict[str, SigningService] = {}
        self.connected: list[str] = []
        self.admin: dict[tuple[str, str], dict[str, Answer]] = {}
        self._env = env or {"ISTIO_MULTIROOT_MESH": "true"}
        self.debug: Callable[[str], Answer] = self.told
        self.mesh.account("capstan-system", "capstan")

    def control_plane(self, *, revision: str = "default", version: str = VERSION, replicas: int = 2) -> None:
        """A revision of istiod with its mesh configuration."""
        name = "istiod" if revision == "default" else f"istiod-{revision}"
        labels = {"app": "istiod", "istio": "pilot", "istio.io/rev": revision}
        owner = self.mesh.deployment(SYSTEM, name, istiod_template(labels, self._env, version), replicas=replicas)
        for index in range(replicas):
            self.istiod(f"{name}-abc-{index}", labels, owner, version)

    def istiod(self, pod: str, labels: dict[str, str], owner: dict[str, Any], version: str = VERSION) -> None:
        """One replica."""
        spec = istiod_template(labels, self._env, version)["spec"]
        address = self.mesh.pod(SYSTEM, pod, spec, labels={**labels, "pod-template-hash": "abc"}, owner=owner)
        chain = pem(self.issuer, self.old)
        self.signers[pod] = SigningService(self.issuer, chain=chain, roots=self.source.files.root_cert)
        self.mesh.ports.grpc_ca(address, self.signers[pod])
        self.mesh.ports.http(address, 15014, lambda path: self.debug(path))

    def told(self, path: str) -> Answer:
        """The monitoring port of every istiod."""
        if path != "/debug/connections":
            return 404, b""
        clients = [
            {"connectionId": f"{name}-{index}", "address": "10.0.0.1:1"} for index, name in enumerate(self.connected)
        ]
        return 200, json.dumps({"totalClients": len(clients), "clients": clients}).encode()

    def proxy(
        self,
        namespace: str,
        name: str,
        *,
        chain: str | None = None,
        roots: str | None = None,
        spec: dict[str, Any] | None = None,
        answers: dict[str, Answer] | None = None,
        **metadata: Any,
    ) -> None:
        """A pod with a sidecar; by default with a leaf of the signing CA and the CA's roots."""
        address = self.mesh.pod(namespace, name, spec or sidecar_spec(), **metadata)
        held = chain if chain is not None else self.leaf_chain()
        given = envoy(held, roots if roots is not None else self.source.files.root_cert)
        self.admin[namespace, name] = answers if answers is not None else given
        self.mesh.ports.http(address, 15000, lambda path: self.admin[namespace, name].get(path, (404, b"")))
        self.connected.append(f"{name}.{namespace}")

    def leaf_chain(self, issuer: Minted | None = None, above: Minted | None = None) -> str:
        """A fresh leaf and what stands above it."""
        by = issuer or self.issuer
        return pem(leaf(by), by, above or self.old)

    def places(self, *namespaces: str, roots: str | None = None) -> None:
        """ConfigMaps, and the two webhook configurations."""
        text = roots if roots is not None else self.source.files.root_cert
        for namespace in namespaces:
            self.mesh.namespace(namespace)
            metadata = {"name": "istio-ca-root-cert", "namespace": namespace, "labels": {"istio.io/config": "true"}}
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"root-cert.pem": text}}
            self.cluster.create(CONFIG_MAPS, body)
        self.webhooks("default", text)

    def webhooks(self, revision: str, text: str) -> None:
        """The configurations of one revision."""
        suffix = "" if revision == "default" else f"-{revision}"
        ca = base64.b64encode(text.encode()).decode()
        for resource, name, hooks in (
            (MUTATING_WEBHOOKS, f"istio-sidecar-injector{suffix}", ("rev.namespace", "rev.object")),
            (VALIDATING_WEBHOOKS, f"istio-validator{suffix}-{SYSTEM}", ("rev.validation",)),
        ):
            rule = {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
            service = {"name": f"istiod{suffix}", "namespace": SYSTEM, "path": "/", "port": 443}
            entries = [
                {
                    "name": f"{hook}.sidecar-injector.istio.io", "sideEffects": "None", "failurePolicy": "Ignore",
                    "admissionReviewVersions": ["v1"], "clientConfig": {"service": service, "caBundle": ca},
                    "namespaceSelector": {"matchLabels": {"never": "matched"}},
                    "rules": [rule],
                }
                for hook in hooks
            ]  # fmt: skip
            metadata = {"name": name, "labels": {"istio.io/rev": revision}}
            body = {
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "metadata": metadata,
                "webhooks": entries,
            }
            self.cluster.create(resource, body)

    def cacerts(self, data: dict[str, str] | None = None, *, kind: str = "Opaque") -> None:
        """The Secret of the plug-in CA."""
        files = self.source.files
        texts = data or {
            "ca-cert.pem": files.ca_cert, "ca-key.pem": self.issuer.key.pem().decode(),
            "cert-chain.pem": files.cert_chain, "root-cert.pem": files.root_cert,
        }  # fmt: skip
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in texts.items()}
        metadata = {"name": "cacerts", "namespace": SYSTEM}
        self.mesh.namespace(SYSTEM)
        body = {"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata, "data": encoded}
        self.cluster.create(SECRETS, body)

    def standard(self) -> IstioMesh:
        """Everything in order: a control plane of two replicas, two sidecars and a gateway."""
        self.cacerts()
        self.control_plane()
        self.places(SYSTEM, "shop")
        self.proxy("shop", "web-1")
        self.proxy("shop", "cart-1", spec=sidecar_spec(native=True))
        self.proxy(SYSTEM, "gateway-1", spec=sidecar_spec(args=("proxy", "router")), labels={"istio": "ingressgateway"})
        return self

    def close(self) -> None:
        """Stop every port."""
        self.mesh.close()


def istiod_template(labels: dict[str, str], env: dict[str, str], version: str) -> dict[str, Any]:
    """The pod template of istiod, as its chart has it in what counts here."""
    container = {
        "name": "discovery", "image": f"docker.io/istio/pilot:{version}",
        "env": [{"name": key, "value": value} for key, value in env.items()],
        "volumeMounts": [{"name": "cacerts", "mountPath": "/etc/cacerts", "readOnly": True}],
    }  # fmt: skip
    volumes = [{"name": "cacerts", "secret": {"secretName": "cacerts", "optional": True}}]
    return {"metadata": {"labels": labels}, "spec": {"containers": [container], "volumes": volumes}}


def sidecar_spec(
    *,
    native: bool = False,
    args: tuple[str, ...] = ("proxy", "sidecar"),
    env: dict[str, str] | None = None,
    version: str = VERSION,
) -> dict[str, Any]:
    """A pod's spec with an injected proxy."""
    proxy: dict[str, Any] = {
        "name": "istio-proxy", "image": f"docker.io/istio/proxyv2:{version}", "args": list(args),
        "env": [{"name": key, "value": value} for key, value in (env or {}).items()],
    }  # fmt: skip
    application = {"name": "app", "image": "app:1"}
    if native:
        return {"containers": [application], "initContainers": [{**proxy, "restartPolicy": "Always"}]}
    return {"containers": [application, proxy]}
