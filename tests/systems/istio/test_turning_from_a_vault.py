"""An add-on's istiods follow a Key Vault: the driver is waited for, by what it can be seen to have brought."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.resources import DEPLOYMENTS, PODS, Resource
from capstan.errors import GateTimedOut, InvalidCertificate, NotFound
from capstan.systems.istio.delivery import POD_STATUSES
from capstan.systems.istio.key_vault import KeyVaultSource, ObjectNames
from capstan.systems.istio.settle import await_chain
from capstan.vaults.secret_texts import SecretTexts
from infra.lab.aks import crds
from infra.lab.keyvault import KeyVault
from tests.support.istio_mesh import SYSTEM
from tests.support.mesh import pem
from tests.systems.istio.turning import TurningMesh, now
from tests.vaults.harness import StaticCredential

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.apiserver import Running

DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
NAMES = ObjectNames()


@pytest.fixture
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyVault]:
    made = KeyVault(tmp_path_factory.mktemp("keyvault"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(made.start(), loop).result(10)
    made.accept_token("lab-token")
    yield made
    asyncio.run_coroutine_threadsafe(made.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


class VaultMesh(TurningMesh):
    """Its CA's source is a vault; the Secret in the cluster is what the driver has made of it."""

    def __init__(self, running: Running, vault: KeyVault) -> None:
        super().__init__(running, env={"ISTIO_MULTIROOT_MESH": "true"})
        self.texts = SecretTexts(vault.url, StaticCredential(), connection_verify=str(vault.ca_file))
        self.source = KeyVaultSource(self.texts, NAMES, cluster_name="east", now=now)
        issuer, old = self.mesh.issuer, self.mesh.old
        for name, text in {
            "root-cert": pem(old), "ca-cert": pem(issuer), "cert-chain": pem(issuer, old),
            "ca-key": issuer.key.pem().decode(),
        }.items():  # fmt: skip
            self.texts.put(name, text, {})

    def add_root(self) -> None:
        """What Capstan writes in phase trust."""
        self.source.ensure(root_cert=pem(self.mesh.old, self.mesh.new))

    def mount(self) -> None:
        """From now on the driver mounts the secrets into istiod itself."""
        for item in crds.definitions():
            self.cluster.create(DEFINITIONS, item)
        for _ in range(500):
            try:
                self.cluster.list(POD_STATUSES, SYSTEM)
                break
            except NotFound:
                continue
        csi = {"driver": "secrets-store.csi.k8s.io", "volumeAttributes": {"secretProviderClass": "istio-ca"}}
        volume = {"name": "cacerts", "csi": csi}
        item = self.cluster.get(DEPLOYMENTS, "istiod", SYSTEM)
        item["spec"]["template"]["spec"]["volumes"] = [volume]
        self.cluster.replace(DEPLOYMENTS, item)
        self.rolled_out(SYSTEM, "istiod")
        for pod in self.cluster.list(PODS, SYSTEM).items:
            old, metadata = pod["metadata"]["name"], pod["metadata"]
            self.end_pod(SYSTEM, old)
            name, signer = old.replace("istiod-abc", "istiod-abc-csi"), self.mesh.signers.pop(old)
            spec = {**item["spec"]["template"]["spec"], "volumes": [volume]}
            address = self.mesh.mesh.pod(
                SYSTEM, name, spec, labels=metadata["labels"], owner=metadata["ownerReferences"][0]
            )
            self.mesh.mesh.ports.grpc_ca(address, signer)
            self.mesh.mesh.ports.http(address, 15014, self.mesh.told)
            self.mesh.signers[name] = signer

    def mounted(self, *, latest: bool) -> None:
        """What the driver says that each pod's volume holds."""
        versions = self.source.kept().versions
        for item in self.cluster.list(POD_STATUSES, SYSTEM).items:
            self.cluster.delete(POD_STATUSES, item["metadata"]["name"], SYSTEM)
        for name in self.mesh.signers:
            objects = [
                {"id": f"secret/{key}", "version": version if latest else "0" * 32} for key, version in versions.items()
            ]
            body: dict[str, Any] = {
                "apiVersion": POD_STATUSES.api_version, "kind": POD_STATUSES.kind,
                "metadata": {"name": f"{name}-istio-ca", "namespace": SYSTEM},
                "status": {"podName": name, "secretProviderClassName": "istio-ca", "objects": objects},
            }  # fmt: skip
            self.cluster.create(POD_STATUSES, body)


@pytest.fixture
def mesh(fresh_api: Running, vault: KeyVault) -> Iterator[VaultMesh]:
    made = VaultMesh(fresh_api, vault)
    yield made
    made.close()


def test_a_synced_secret_is_waited_for_and_then_each_istiod(mesh: VaultMesh) -> None:
    mesh.add_root()

    def driver(seconds: float) -> None:
        if seconds > 20:
            mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
        if seconds > 40:
            mesh.take()

    mesh.while_waiting, mesh.pace = driver, 8.0
    report = mesh.settle(roots={mesh.old, mesh.new})
    assert report.restarted == ()
    assert any("waiting for the secrets-store CSI driver" in line for line in mesh.said)


def test_a_synced_secret_that_nobody_renews_is_an_error_that_says_what_to_switch_on(mesh: VaultMesh) -> None:
    mesh.add_root()
    mesh.pace = 50.0
    with pytest.raises(GateTimedOut, match="the vault's secrets do not come to the cluster") as caught:
        mesh.settle(roots={mesh.old, mesh.new})
    assert "root-cert.pem" in caught.value.observed
    assert "--enable-secret-rotation" in caught.value.next_command
    assert mesh.stamps() == "", "a restart would have mounted the old bytes again"


def test_volumes_that_the_driver_does_not_renew_are_filled_anew_by_a_restart(mesh: VaultMesh) -> None:
    mesh.mount()
    mesh.add_root()
    mesh.mounted(latest=False)
    mesh.pace = 50.0

    def restarted() -> None:
        mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
        mesh.take()

    mesh.on_restart = restarted
    report = mesh.settle(roots={mesh.old, mesh.new})
    assert [entry.owner.name for entry in report.restarted] == ["istiod"]
    assert any("still has" in line and "root-cert@00000000" in line for line in mesh.said)


def test_a_chain_is_waited_for_until_every_pod_has_it_and_no_longer_than_two_looks_of_the_driver(
    mesh: VaultMesh,
) -> None:
    mesh.mount()
    mesh.mounted(latest=False)
    mesh.while_waiting = lambda seconds: mesh.mounted(latest=True) if seconds > 30 else None
    mesh.pace = 10.0
    await_chain(mesh.cluster, SYSTEM, mesh.source)
    assert 30 < mesh.slept < 100
    mesh.mounted(latest=False)
    mesh.while_waiting, began = lambda _seconds: None, mesh.cluster.clock()
    await_chain(mesh.cluster, SYSTEM, mesh.source)
    assert mesh.cluster.clock() - began >= 300


def test_a_run_that_died_between_certificate_and_key_can_be_gone_on_with(mesh: VaultMesh) -> None:
    # The next run looks after the roots first. Nothing is started with files that belong to two CAs, and nothing stands
    # in the way of the switch, which alone puts an end to that.
    mesh.mesh.connected.append("vm-1.machines")  # for whom istiod would be restarted
    mesh.add_root()
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    mesh.take()
    mesh.texts.put("cert-chain", pem(mesh.second, mesh.mesh.new, mesh.mesh.issuer), {})
    mesh.texts.put("ca-cert", pem(mesh.second), {})
    report = mesh.settle(roots={mesh.old, mesh.new})
    assert report.restarted == ()
    assert ["half written" in reason for reason in (entry.reason for entry in report.skipped)] == [True]
    assert mesh.stamps() == ""
    with pytest.raises(InvalidCertificate, match="does not match the key"):
        mesh.settle(roots=None, issuer=mesh.second)
