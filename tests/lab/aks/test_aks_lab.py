"""The AKS add-on in the lab: new secret versions reach every istiod and every workload by each way of delivery."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from infra.lab import pki
from infra.lab.aks import crds, hierarchy, validator
from infra.lab.aks.install import NAMESPACE, AksOptions
from infra.lab.client import Informer
from infra.lab.procedures.aks_two_step import open_vault, upload
from infra.lab.systems.aks_istio import AksIstio
from infra.lab.up import Lab, Options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from infra.lab.aks.addon import Addon

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

JSON = dict[str, Any]
LEAF_SECONDS = 12
CONFIG_MAPS = "/api/v1/configmaps"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


def run(directory: Path, script: Callable[[Lab], Awaitable[None]], options: AksOptions, **more: Any) -> None:
    """Run a script against a lab of its own in this process."""

    async def whole() -> None:
        chosen = Options(directory, system="aks-istio", size="small", probes_per_second=30, aks=options, **more)
        lab = await Lab(chosen).start()
        try:
            await script(lab)
        finally:
            await lab.stop()

    asyncio.run(whole())


def system(lab: Lab) -> AksIstio:
    assert isinstance(lab.system, AksIstio)
    return lab.system


def addon(lab: Lab) -> Addon:
    return system(lab).addon


async def put(lab: Lab, texts: dict[str, str]) -> dict[str, str]:
    """Upload all four; `secret/NAME` -> version."""
    async with open_vault(lab.options.directory / "keyvault" / "vault.json") as vault:
        await upload(vault, texts)
        return {
            f"secret/{name}": (await vault.get_secret(name)).properties.version or ""
            for name in ("root-cert", "ca-cert", "ca-key", "cert-chain")
        }


async def until(
    lab: Lab, path: str, condition: Callable[[dict[tuple[str, str], JSON]], bool], seconds: float = 40
) -> dict[tuple[str, str], JSON]:
    informer = Informer(lab.client, path)
    try:
        await informer.wait_for(condition, seconds)
        return dict(informer.objects)
    finally:
        await informer.stop()


async def published(lab: Lab, roots: str) -> None:
    """Every namespace that has the mesh's roots has these."""
    await until(
        lab,
        CONFIG_MAPS,
        lambda found: all(
            item["data"]["root-cert.pem"] == roots for (_, name), item in found.items() if name == "istio-ca-root-cert"
        ),
    )


async def logs(lab: Lab, name: str) -> str:
    return await lab.client.get_text(f"{PODS}/{name}/log")


async def logged(lab: Lab, names: Iterable[str], line: str, seconds: float = 20) -> None:
    """Every one of these pods has written a line with this in it."""
    async with asyncio.timeout(seconds):
        for name in names:
            while line not in await logs(lab, name):
                await asyncio.sleep(0.2)


async def every_proxy(lab: Lab, roots: set[str], seconds: float = LEAF_SECONDS * 3) -> None:
    """Every live proxy holds exactly these roots."""
    async with asyncio.timeout(seconds):
        while not all(
            {pki.fingerprint(root) for root in proxy.material.roots} == roots
            for proxy in system(lab).mesh.proxies.values()
            if proxy.material is not None and not proxy.stopping
        ):
            await asyncio.sleep(0.2)


def test_both_revisions_take_new_versions_up_from_their_csi_volumes_without_a_restart(tmp_path: Path) -> None:
    new = hierarchy.mint("B", now=datetime.now(UTC))

    async def script(lab: Lab) -> None:
        old = addon(lab).ca
        pods = await lab.client.list(PODS, labelSelector="app=istiod")
        names = {item["metadata"]["name"]: item["metadata"]["labels"]["istio.io/rev"] for item in pods["items"]}
        assert sorted(set(names.values())) == ["asm-1-29", "asm-1-30"]
        both = old.root.certificate_pem + new.root.certificate_pem
        versions = await put(lab, old.texts(roots=both))
        statuses = await until(
            lab,
            crds.pod_statuses(NAMESPACE),
            lambda found: (
                len(found) == len(names)
                and all(
                    {o["id"]: o["version"] for o in item["status"]["objects"]} == versions for item in found.values()
                )
            ),
        )
        assert {item["status"]["secretProviderClassName"] for item in statuses.values()} == {
            "istiod-spc-asm-1-29",
            "istiod-spc-asm-1-30",
        }
        await published(lab, both)
        # Each replica takes the files up at its own time.
        await logged(lab, names, "Updating new ROOT-CA")
        await logged(lab, names, "Update trust anchor with new root cert")
        await every_proxy(lab, {old.root.fingerprint, new.root.fingerprint})
        # A poll between two uploads finds a key that is not the certificate's: refused, and the old CA goes on.
        await put(lab, {**old.texts(roots=both), "ca-key.pem": new.intermediate.key_pem})
        await logged(lab, names, "Failed to update new Plug-in CA certs")
        await put(lab, new.texts(roots=both))
        await logged(lab, names, "Istiod has detected the newly added intermediate CA")
        assert lab.prober is not None
        assert lab.prober.counts.failed == 0
        after = await lab.client.list(PODS, labelSelector="app=istiod")
        assert {item["metadata"]["name"] for item in after["items"]} == set(names)

    options = AksOptions(revisions=("asm-1-29", "asm-1-30"), leaf_seconds=LEAF_SECONDS, replicas=1, poll_seconds=0.5)
    run(tmp_path, script, options)


@pytest.mark.long
def test_in_2023_the_cron_job_restarts_istiod_for_a_new_root_and_says_so(tmp_path: Path) -> None:
    new = hierarchy.mint("B", now=datetime.now(UTC))

    async def script(lab: Lab) -> None:
        old = addon(lab).ca
        secret = await lab.client.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/cacerts")
        assert (secret["type"], sorted(secret["data"])) == ("opaque", sorted(hierarchy.FILES))
        both = old.root.certificate_pem + new.root.certificate_pem
        await put(lab, old.texts(roots=both))
        await published(lab, both)
        found = await until(
            lab,
            PODS,
            lambda pods: any(
                name.startswith(f"{validator.NAME}-") and item["status"].get("phase") == "Succeeded"
                for (_, name), item in pods.items()
            ),
        )
        runs = [name for _, name in found if name.startswith(f"{validator.NAME}-")]
        texts = [await logs(lab, name) for name in runs]
        assert any(
            text.splitlines()
            == [
                "Root certificate update detected. Restarting deployment...",
                "deployment.apps/istiod-asm-1-17 restarted",
                "Deployment istiod-asm-1-17 restarted.",
            ]
            for text in texts
        )
        (name, *_) = [name for _, name in found if name.startswith("istiod-asm-1-17-")]
        assert "Added 2 certs to trust domain cluster.local in peer cert verifier" in await logs(lab, name)
        await every_proxy(lab, {old.root.fingerprint, new.root.fingerprint})
        assert lab.prober is not None
        assert lab.prober.counts.failed == 0

    run(
        tmp_path,
        script,
        AksOptions(ca_delivery="cronjob", leaf_seconds=LEAF_SECONDS, replicas=1, poll_seconds=0.5, validator_seconds=3),
    )


def test_a_mesh_enabled_through_resource_manager_signs_with_the_vaults_ca(tmp_path: Path) -> None:
    async def script(lab: Lab) -> None:
        azure = addon(lab)
        assert azure.arm is not None
        cluster = azure.arm.clusters.get("lab", "lab-aks")
        body = dict(azure.arm.clusters.document(cluster))
        plugin = {
            "keyVaultId": "/subscriptions/s/resourceGroups/lab/providers/Microsoft.KeyVault/vaults/capstan-lab",
            "rootCertObjectName": "root-cert",
            "certObjectName": "ca-cert",
            "keyObjectName": "ca-key",
            "certChainObjectName": "cert-chain",
        }
        istio = {"revisions": ["asm-1-30"], "certificateAuthority": {"plugin": plugin}}
        body["properties"] |= {"serviceMeshProfile": {"mode": "Istio", "istio": istio}}
        cluster, _ = azure.arm.clusters.put("lab", "lab-aks", body)
        async with asyncio.timeout(60):
            while cluster.state == "Updating":
                await asyncio.sleep(0.1)
        assert (cluster.state, cluster.operation and cluster.operation.error) == ("Succeeded", None)
        await published(lab, azure.ca.root.certificate_pem)
        pods = await lab.client.list(PODS, labelSelector="app=istiod")
        assert len(pods["items"]) == 1

    options = AksOptions(leaf_seconds=LEAF_SECONDS, replicas=1)
    run(tmp_path, script, options, aks_enabled=False)


def test_the_documented_two_step_drops_handshakes(tmp_path: Path) -> None:
    """As the procedure does it, with its two waits; ours keeps them all, which the rotation's own tests show."""
    new = hierarchy.mint("B", now=datetime.now(UTC))

    async def script(lab: Lab) -> None:
        old = addon(lab).ca
        both = old.root.certificate_pem + new.root.certificate_pem
        await put(lab, old.texts(roots=both))
        await published(lab, both)
        await asyncio.sleep(LEAF_SECONDS)
        assert lab.prober is not None
        assert lab.prober.counts.failed == 0
        await put(lab, new.texts())
        await every_proxy(lab, {new.root.fingerprint})
        assert lab.prober.counts.failed > 0

    run(tmp_path, script, AksOptions(leaf_seconds=LEAF_SECONDS, replicas=1, poll_seconds=0.5))
