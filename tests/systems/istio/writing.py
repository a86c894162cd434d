"""Hierarchies and Secrets as Istio's own tools make them, for tests that change a CA."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from capstan.cluster.resources import NAMESPACES, SECRETS
from capstan.pki.keys import PrivateKey
from capstan.systems.base import IssuerMaterial
from capstan.systems.istio.source import CaFiles
from tests.pki.ca import NOW, Pair, make

if TYPE_CHECKING:
    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.pki.inspect import Certificate


def clock() -> datetime:
    return NOW


def pem(*certificates: Certificate) -> str:
    return "".join(f"{each.pem()}\n" for each in certificates)


@dataclass
class Ca:
    """A root and an intermediate below it."""

    root: Pair
    issuer: Pair

    @classmethod
    def of(cls, letter: str, **shape: Any) -> Ca:
        root = make(f"Root {letter}", **shape)
        return cls(root, make(f"Intermediate {letter}", root, path_length=0, **shape))

    @property
    def material(self) -> IssuerMaterial:
        return IssuerMaterial((self.issuer.certificate,), self.key)

    @property
    def key(self) -> PrivateKey:
        return PrivateKey(self.issuer.key)

    def files(self, roots: str | None = None) -> CaFiles:
        own = pem(self.root.certificate)
        signer = pem(self.issuer.certificate)
        return CaFiles(own if roots is None else roots, signer, signer + own, "")

    def entries(self, roots: str | None = None) -> dict[str, str]:
        files = self.files(roots)
        return {
            "root-cert.pem": files.root_cert,
            "ca-cert.pem": files.ca_cert,
            "cert-chain.pem": files.cert_chain,
            "ca-key.pem": self.key.pem().decode(),
        }


def new_namespace(cluster: Cluster) -> str:
    name = f"t-{secrets.token_hex(4)}"
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


def make_secret(
    cluster: Cluster, namespace: str, entries: dict[str, str], name: str = "cacerts", kind: str = "Opaque", **meta: Any
) -> Object:
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, **meta},
        "type": kind,
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in entries.items()},
    }
    return cluster.create(SECRETS, body)


def entries_of(cluster: Cluster, namespace: str, name: str = "cacerts") -> dict[str, str]:
    data = cluster.get(SECRETS, name, namespace)["data"]
    return {key: base64.b64decode(text).decode() for key, text in data.items()}


def real_now() -> datetime:
    return datetime.now(UTC)
