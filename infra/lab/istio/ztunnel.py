"""ztunnel, Istio's node proxy for ambient pods: its DaemonSet and its program.

It holds one leaf for each service account with an ambient pod on its node, each with the roots that came with it; it
asks istiod in its own name for those identities (CA_TRUSTED_NODE_ACCOUNTS) and renews at half of their life. What it
holds shows in `/config_dump` on 15000. Which pods are its own the lab's ztunnel reads from the API server, where a real
one has it from istiod; and it carries no traffic: a lab has no packet filter to redirect it.
"""

from __future__ import annotations

import asyncio
import base64
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from infra.lab.client import Informer
from infra.lab.istio import sidecar
from infra.lab.istio.agent import seconds
from infra.lab.istio.authority import Authority, CsrError
from infra.lab.istio.material import Key
from infra.lab.linkerd import httpd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from infra.lab.istio.manifests import Options
    from infra.lab.kubelet.runtime import Container

JSON = dict[str, Any]

NAME = "ztunnel"
READY_PORT = 15021
MODE = "istio.io/dataplane-mode"
AMBIENT = "ambient"
RETRY_SECONDS = 0.5
RENEW_AT = 0.5
FOLLOW_SECONDS = 1.0


@dataclass(frozen=True)
class Held:
    """What is held for one identity: a chain (leaf first) with its roots, or the reason why there is none."""

    chain: tuple[x509.Certificate, ...] = ()
    roots: tuple[x509.Certificate, ...] = ()
    problem: str = ""


class Ztunnel:
    """One running ztunnel.

    Attributes:
        held: What it holds, by SPIFFE ID.
    """

    def __init__(self, container: Container, resolve: Callable[[str], str]) -> None:
        self.container = container
        self.held: dict[str, Held] = {}
        env = container.env
        self._trust_domain = env.get("TRUST_DOMAIN") or "cluster.local"
        self._cluster = env.get("CLUSTER_ID") or "Kubernetes"
        self._ttl = seconds(env.get("SECRET_TTL") or "24h")
        roots = container.path(f"{sidecar.ROOTS_MOUNT}/{sidecar.ROOTS_KEY}")
        self._authority = Authority(env["CA_ADDRESS"], resolve, roots=roots, token=container.path(sidecar.TOKEN_FILE))
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def uid(self) -> str:
        """The pod's uid."""
        return str(self.container.pod["metadata"]["uid"])

    async def run(self) -> int:
        """From start to exit code."""
        client = self.container.client(user_agent="ztunnel")
        namespaces = await Informer(client, "/api/v1/namespaces").synced()
        pods = await Informer(client, "/api/v1/pods", fieldSelector=f"spec.nodeName={self.container.node}").synced()
        admin = await httpd.start(self.container.ip, sidecar.ADMIN_PORT, self._admin)
        ready = await httpd.start(self.container.ip, READY_PORT, self._ready)
        following = asyncio.create_task(self._follow(namespaces, pods))
        self.container.set_ready(True)
        try:
            await self.container.stopping.wait()
        finally:
            tasks = [following, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._authority.close()
            for item in (admin, ready, namespaces, pods):
                await item.stop()
        return 0

    async def _follow(self, namespaces: Informer, pods: Informer) -> None:
        """Hold certificates for the identities on this node, and for no others."""
        while True:
            wanted = identities(pods.objects.values(), namespaces, self._trust_domain)
            for identity in wanted - self._tasks.keys():
                self._tasks[identity] = asyncio.create_task(self._hold(identity))
            for identity in self._tasks.keys() - wanted:
                self._tasks.pop(identity).cancel()
                self.held.pop(identity, None)
            waits = [asyncio.create_task(informer.changed()) for informer in (namespaces, pods)]
            try:
                await asyncio.wait(waits, timeout=FOLLOW_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def _hold(self, identity: str) -> None:
        self.held[identity] = Held(problem="Initializing")
        while True:
            try:
                self.held[identity] = await self._sign(identity)
            except CsrError as error:
                # A leaf that is still there is kept (since ztunnel 1.24); without one the reason shows.
                if not self.held[identity].chain:
                    self.held[identity] = Held(problem=f"Unavailable: {error}")
                await asyncio.sleep(RETRY_SECONDS)
                continue
            left = (self.held[identity].chain[0].not_valid_after_utc - datetime.now(UTC)).total_seconds()
            await asyncio.sleep(max(left * RENEW_AT * random.uniform(0.98, 1.0), RETRY_SECONDS))

    async def _sign(self, identity: str) -> Held:
        key = Key.generate(identity, elliptic=True)
        metadata = {"ClusterID": self._cluster, "ImpersonatedIdentity": identity}
        chain = await self._authority.sign(key.csr_pem, self._ttl, metadata)
        try:
            certificates = x509.load_pem_x509_certificates("\n".join(chain[:-1]).encode())
            roots = x509.load_pem_x509_certificates(chain[-1].encode())
        except ValueError as error:
            raise CsrError(f"unusable answer: {error}") from error
        return Held(tuple(certificates), tuple(roots))

    async def _admin(self, request: httpd.Request) -> httpd.Response:
        if request.path == "/config_dump":
            return httpd.Response.json({"workloads": [], "certificates": dump(self.held)})
        return httpd.NOT_FOUND

    async def _ready(self, request: httpd.Request) -> httpd.Response:
        return httpd.Response.text("") if request.path == "/healthz/ready" else httpd.NOT_FOUND


def identities(pods: Iterable[JSON], namespaces: Informer, trust_domain: str) -> set[str]:
    """SPIFFE IDs of the ambient pods among `pods`: by their own label or their namespace's, without a sidecar."""
    found = set()
    for pod in pods:
        metadata = pod["metadata"]
        namespace = namespaces.get("", metadata["namespace"])
        labels = (namespace or {"metadata": {}})["metadata"].get("labels") or {}
        mode = (metadata.get("labels") or {}).get(MODE, labels.get(MODE, ""))
        has_sidecar = "sidecar.istio.io/status" in (metadata.get("annotations") or {})
        running = (pod.get("status") or {}).get("phase") in ("Pending", "Running")
        if mode == AMBIENT and running and not has_sidecar and not pod["spec"].get("hostNetwork"):
            account = pod["spec"].get("serviceAccountName") or "default"
            found.add(f"spiffe://{trust_domain}/ns/{metadata['namespace']}/sa/{account}")
    return found


def dump(held: dict[str, Held]) -> list[JSON]:
    """`certificates` of a ztunnel's /config_dump."""
    return [
        {
            "identity": identity,
            "state": found.problem or "Available",
            "certChain": [_certificate(certificate) for certificate in found.chain],
            "rootCerts": [_certificate(certificate) for certificate in found.roots],
        }
        for identity, found in sorted(held.items())
    ]


def objects(options: Options) -> list[JSON]:
    """ServiceAccount, RBAC and DaemonSet, as the chart ztunnel creates them (the right to read pods is the lab's)."""
    from infra.lab.istio.manifests import granted

    read = {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["get", "list", "watch"]}
    settings = options.settings
    labels = {"app": NAME, "sidecar.istio.io/inject": "false", MODE: "none"}
    env: list[JSON] = [
        {"name": "CA_ADDRESS", "value": settings.ca_address},
        {"name": "XDS_ADDRESS", "value": settings.ca_address},
        {"name": "CLUSTER_ID", "value": settings.cluster_id},
        {"name": "TRUST_DOMAIN", "value": options.trust_domain},
        {"name": "SECRET_TTL", "value": f"{options.leaf_seconds}s"},
    ]
    fields = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "NODE_NAME": "spec.nodeName",
        "INSTANCE_IP": "status.podIP",
        "SERVICE_ACCOUNT": "spec.serviceAccountName",
    }
    env += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    token = {"audience": sidecar.TOKEN_AUDIENCE, "expirationSeconds": 43200, "path": "istio-token"}
    container = {
        "name": "istio-proxy",
        "image": f"{options.hub}/ztunnel:{options.image_tag}",
        "args": ["proxy", "ztunnel"],
        "ports": [{"containerPort": 15020, "name": "ztunnel-stats", "protocol": "TCP"}],
        "env": env,
        "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": READY_PORT}},
        "volumeMounts": [
            {"mountPath": sidecar.ROOTS_MOUNT, "name": "istiod-ca-cert"},
            {"mountPath": sidecar.TOKEN_MOUNT, "name": "istio-token"},
        ],
    }
    metadata = {"name": NAME, "namespace": options.namespace, "labels": {"app": NAME}}
    return [
        *granted(options, NAME, f"ztunnel-{options.namespace}", [read]),
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": metadata,
            "spec": {
                "selector": {"matchLabels": {"app": NAME}},
                "updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "template": {
                    "metadata": {"labels": labels, "annotations": {"sidecar.istio.io/inject": "false"}},
                    "spec": {
                        "serviceAccountName": NAME,
                        "containers": [container],
                        "volumes": [
                            {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
                            {"name": "istiod-ca-cert", "configMap": {"name": sidecar.ROOTS_CONFIG_MAP}},
                        ],
                    },
                },
            },
        },
    ]


def _certificate(certificate: x509.Certificate) -> JSON:
    return {
        "pem": base64.b64encode(certificate.public_bytes(Encoding.PEM)).decode(),
        "serialNumber": str(certificate.serial_number),
        "validFrom": certificate.not_valid_before_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "expirationTime": certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
