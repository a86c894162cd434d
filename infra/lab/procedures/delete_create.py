"""A new plug-in CA by `kubectl delete secret cacerts` and `kubectl create secret generic cacerts`, then a restart of
istiod: the recipe of many answers and posts.

By default the new CA has a new root, and workloads that renew first no longer trust the others. With --same-root only
the intermediate is new, which would be harmless; but a node is drained between the two commands, and the istiod that
starts there finds no CA, makes itself a self-signed one and signs with it.
"""

from __future__ import annotations

import asyncio
import base64
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from infra.lab.aks import hierarchy
from infra.lab.client import Informer
from infra.lab.istio.hierarchy import mint_intermediate
from infra.lab.pki import KeyPair
from infra.lab.procedures import judged
from infra.lab.services import is_ready

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from infra.lab.procedures.judged import Script

NAMESPACE = "istio-system"
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
READY_SECONDS = 60.0


async def run(script: Script) -> None:
    """Delete, create, restart."""
    now = datetime.now(UTC)
    if script.arguments.same_root:
        root = offline_root(script.directory / "offline-ca")
        new = hierarchy.Hierarchy(root, mint_intermediate(root, now=now, common_name="Intermediate CA 2"))
    else:
        new = hierarchy.mint("B", now=now)
    await script.step("kubectl delete secret cacerts", script.client.delete(f"{SECRETS}/cacerts"))
    if script.arguments.same_root:
        await script.step("meanwhile a node is drained, and an istiod starts anew", reschedule(script))
    texts = new.texts()
    await script.step("kubectl create secret generic cacerts", create(script, texts))
    stamp = now.isoformat(timespec="seconds")
    await script.step("kubectl rollout restart deployment istiod", script.restart_istiods(NAMESPACE, stamp))
    roots = texts[hierarchy.ROOT_CERT]
    await script.step("wait until istiod publishes the new CA's root", script.published(NAMESPACE, roots))


async def create(script: Script, texts: Mapping[str, str]) -> None:
    """What `kubectl create secret generic cacerts --from-file ...` sends."""
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "cacerts", "namespace": NAMESPACE},
        "type": "Opaque",
        "data": {file: base64.b64encode(text.encode()).decode() for file, text in texts.items()},
    }
    await script.client.create(SECRETS, body)


async def reschedule(script: Script) -> None:
    """Delete the pods of istiod, as a drain does, and wait until others are ready."""
    found = (await script.client.list(PODS, labelSelector="app=istiod"))["items"]
    old = {item["metadata"]["uid"] for item in found}
    for item in found:
        await script.client.delete(f"{PODS}/{item['metadata']['name']}")
    informer = Informer(script.client, PODS, labelSelector="app=istiod")
    try:
        await informer.wait_for(
            lambda now: any(is_ready(item) and item["metadata"]["uid"] not in old for item in now.values()),
            READY_SECONDS,
        )
    finally:
        await informer.stop()
    await asyncio.sleep(await script.leaf_seconds() / 2)  # the drain of a node takes its time; leaves are renewed


def offline_root(directory: Path) -> KeyPair:
    """The lab's offline root: certificate and key."""
    key = load_pem_private_key((directory / "root-key.pem").read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{directory}/root-key.pem holds no elliptic key")
    return KeyPair(x509.load_pem_x509_certificate((directory / "root-cert.pem").read_bytes()), key)


if __name__ == "__main__":
    parser = judged.parser(__doc__ or "")
    parser.add_argument("--same-root", action="store_true", help="a new intermediate under the same root")
    sys.exit(judged.main("delete-create", run, parser.parse_args()))
