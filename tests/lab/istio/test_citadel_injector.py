"""The injector of Citadel's days: served by a leaf of Citadel's, trusted through a caBundle that it fills in itself."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography import x509

from infra.lab import pki
from infra.lab.apiserver import ApiServer
from infra.lab.client import KubeClient
from infra.lab.istio import citadel_manifests, injector
from infra.lab.istio.citadel.workloads import dns_names
from infra.lab.istio.options import Options
from infra.lab.kubelet.runtime import SERVICE_ACCOUNT_DIRECTORY, Container
from infra.lab.objects import create

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SERVICE = "istio-sidecar-injector.istio-system.svc"
ACCOUNT = "istio-sidecar-injector-service-account"


def write(directory: Path, root: pki.KeyPair) -> None:
    """A leaf of this root for the injector's Service, as the mounted Secret has it."""
    now = datetime.now(UTC)
    issuer = pki.mint_issuer(root, now=now)
    leaf = pki.mint_serving([SERVICE], now=now)
    signed = (
        x509.CertificateBuilder()
        .subject_name(leaf.certificate.subject)
        .issuer_name(issuer.certificate.subject)
        .public_key(leaf.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issuer.certificate.not_valid_before_utc)
        .not_valid_after(issuer.certificate.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVICE)]), critical=False)
        .sign(issuer.key, issuer.certificate.signature_hash_algorithm)
    )
    texts = {
        "cert-chain.pem": pki.to_pem(signed) + issuer.certificate_pem,
        "key.pem": leaf.key_pem,
        "root-cert.pem": root.certificate_pem,
    }
    directory.mkdir(exist_ok=True)
    for name, text in texts.items():
        (directory / name).write_text(text)


@contextlib.asynccontextmanager
async def served(directory: Path) -> AsyncIterator[tuple[KubeClient, Container]]:
    """An API server with the webhook's configuration, and an injector whose files are in `certs`."""
    api = ApiServer(directory / "api")
    await api.start()
    client = KubeClient.from_kubeconfig(api.kubeconfig)
    options = Options(ca="citadel", version="1.4.3")
    token = directory / "account"
    token.mkdir()
    (token / "ca.crt").write_text(api.ca_pem)
    await create(client, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}})
    for item in citadel_manifests.objects(options):
        if item["kind"] in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding"):
            await create(client, item)
    path = f"/api/v1/namespaces/istio-system/serviceaccounts/{ACCOUNT}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    (token / "token").write_text((await client.create(path, body))["status"]["token"])
    await create(client, citadel_manifests.webhook(options))
    container = Container(
        pod={"metadata": {"name": "injector-0", "namespace": "istio-system", "uid": "u"}},
        name="sidecar-injector-webhook",
        image="docker.io/istio/sidecar_injector:1.4.3",
        root=directory / "layer",
        args=["--reconcileWebhookConfig=true"],
        env={},
        ip=f"127.251.{random.randint(1, 254)}.{random.randint(2, 254)}",
        api=api.url,
        mounts={SERVICE_ACCOUNT_DIRECTORY: token, injector.CERTIFICATES: directory / "certs"},
    )
    running = asyncio.create_task(injector.program(container))
    try:
        yield client, container
    finally:
        container.stopping.set()
        await asyncio.gather(running, return_exceptions=True)
        await container.close()
        await client.close()
        await api.stop()


async def bundle(client: KubeClient) -> str:
    item = await client.get(f"{injector.CONFIGURATIONS}/{injector.CONFIGURATION}")
    return base64.b64decode(item["webhooks"][0]["clientConfig"].get("caBundle") or "").decode()


async def becomes(client: KubeClient, text: str) -> None:
    async with asyncio.timeout(10):
        while await bundle(client) != text:
            await asyncio.sleep(0.02)


async def trusted(container: Container, root: pki.KeyPair) -> bool:
    """Whether an API server that has this root as caBundle would talk to the injector."""
    context = ssl.create_default_context(cadata=root.certificate_pem)
    try:
        _, writer = await asyncio.open_connection(container.ip, injector.PORT, ssl=context, server_hostname=SERVICE)
    except ssl.SSLCertVerificationError:
        return False
    writer.close()
    return True


def test_its_webhook_is_trusted_by_the_root_beside_its_leaf_and_both_follow_the_mounted_files(tmp_path: Path) -> None:
    old, new = (pki.mint_root(now=datetime.now(UTC), name=name) for name in ("old", "new"))
    write(tmp_path / "certs", old)

    async def script() -> None:
        async with served(tmp_path) as (client, container):
            # 1. The caBundle was empty; the injector fills in the root it was given.
            await becomes(client, old.certificate_pem)
            assert await trusted(container, old)
            # 2. Somebody else's hand on it is taken back.
            hook = {"name": injector.WEBHOOK, "clientConfig": {"caBundle": base64.b64encode(b"x").decode()}}
            path = f"{injector.CONFIGURATIONS}/{injector.CONFIGURATION}"
            await client.patch(path, {"webhooks": [hook]}, "strategic")
            await becomes(client, old.certificate_pem)
            # 3. The kubelet brings the Secret that Citadel has rewritten: leaf and caBundle follow without a restart.
            write(tmp_path / "certs", new)
            await becomes(client, new.certificate_pem)
            async with asyncio.timeout(10):
                while not await trusted(container, new):
                    await asyncio.sleep(0.02)
            assert not await trusted(container, old)

    asyncio.run(script())


def test_leaves_of_webhooks_carry_the_names_of_their_services_and_others_what_was_asked_for() -> None:
    names = dns_names("istio-system", "istio-pilot-service-account.istio-system:istio-pilot.istio-system,no:such:form")
    assert names[f"{ACCOUNT}.istio-system"] == (SERVICE, "istio-sidecar-injector.istio-system")
    assert names["istio-pilot-service-account.istio-system"] == ("istio-pilot.istio-system",)
    assert set(names) == {
        f"{ACCOUNT}.istio-system",
        "istio-galley-service-account.istio-system",
        "istio-pilot-service-account.istio-system",
    }
