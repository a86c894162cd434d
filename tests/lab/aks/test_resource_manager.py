"""Azure Resource Manager's endpoint answers Microsoft's own client of managed clusters as the service does."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from azure.core import MatchConditions
from azure.core.credentials import AccessToken
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.mgmt.containerservice import ContainerServiceClient
from azure.mgmt.containerservice import models as aks

from infra.lab.aks.arm import ResourceManager
from infra.lab.aks.arm.errors import ArmError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JSON = dict[str, Any]
SUBSCRIPTION = "00000000-0000-0000-0000-00000000c0de"
VAULT_ID = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/lab/providers/Microsoft.KeyVault/vaults/example-vault"
NAMES = {
    "key_vault_id": VAULT_ID,
    "root_cert_object_name": "root-cert",
    "cert_object_name": "ca-cert",
    "key_object_name": "ca-key",
    "cert_chain_object_name": "cert-chain",
}
FIELDS = ["keyVaultId", "rootCertObjectName", "certObjectName", "keyObjectName", "certChainObjectName"]


class Endpoint:
    """The endpoint on a loop in a thread of its own; `applied` has every change, `refuse` makes one fail."""

    def __init__(self, directory: Path) -> None:
        self.applied: list[tuple[JSON, JSON | None]] = []
        self.refuse: Exception | None = None
        self.hold = threading.Event()
        self.hold.set()
        self.directory = directory
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.arm = ResourceManager(
            directory, SUBSCRIPTION, "lab-token".__eq__, self._apply, vaults={"example-vault": "https://127.0.0.1:1"}
        )
        self.run(self.arm.start())

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def stop(self) -> None:
        self.hold.set()
        self.run(self.arm.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()

    def client(self, token: str = "lab-token", **options: Any) -> ContainerServiceClient:
        class Credential:
            def get_token(self, *_: str, **__: Any) -> AccessToken:
                return AccessToken(token, 2**33)

        return ContainerServiceClient(
            Credential(),
            SUBSCRIPTION,
            base_url=self.arm.url,
            connection_verify=str(self.directory / "ca.crt"),
            retry_total=0,
            **options,
        )

    async def _apply(self, new: JSON, old: JSON | None) -> None:
        while not self.hold.is_set():
            await asyncio.sleep(0.01)
        if self.refuse is not None:
            raise self.refuse
        self.applied.append((json.loads(json.dumps(new)), old))


@pytest.fixture(scope="module")
def shared_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    found = Endpoint(tmp_path_factory.mktemp("arm"))
    yield found
    found.stop()


@pytest.fixture
def endpoint(shared_endpoint: Endpoint) -> Endpoint:
    """One cluster `mesh` in group `lab`, without a mesh."""
    shared_endpoint.applied.clear()
    shared_endpoint.refuse = None
    shared_endpoint.hold.set()
    body = {
        "location": "westeurope",
        "tags": {"owner": "us"},
        "identity": {"type": "SystemAssigned"},
        "properties": {"dnsPrefix": "mesh", "kubernetesVersion": "1.34.4"},
    }
    shared_endpoint.arm.clusters.add("lab", "mesh", body)
    return shared_endpoint


def with_mesh(cluster: aks.ManagedCluster, *revisions: str, **names: Any) -> aks.ManagedCluster:
    """The body that `az aks mesh enable --key-vault-id ...` sends."""
    cluster.addon_profiles = {
        "azureKeyvaultSecretsProvider": aks.ManagedClusterAddonProfile(
            enabled=True, config={"enableSecretRotation": "true", "rotationPollInterval": "20s"}
        )
    }
    authority = aks.IstioCertificateAuthority(plugin=aks.IstioPluginCertificateAuthority(**{**NAMES, **names}))
    istio = aks.IstioServiceMesh(revisions=list(revisions) or ["asm-1-30"], certificate_authority=authority)
    cluster.service_mesh_profile = aks.ServiceMeshProfile(mode="Istio", istio=istio)
    return cluster


def put(endpoint: Endpoint, cluster: aks.ManagedCluster, **options: Any) -> Any:
    """Create or update, until the operation has ended."""
    operations = endpoint.client(polling_interval=0.05).managed_clusters
    return operations.begin_create_or_update("lab", "mesh", cluster, **options).result()


def test_a_cluster_is_read_with_what_the_service_adds(endpoint: Endpoint) -> None:
    found = endpoint.client().managed_clusters.get("lab", "mesh")
    assert (found.name, found.location, found.tags) == ("mesh", "westeurope", {"owner": "us"})
    assert found.provisioning_state == "Succeeded"
    assert found.id == (
        f"/subscriptions/{SUBSCRIPTION}/resourcegroups/lab/providers/Microsoft.ContainerService/managedClusters/mesh"
    )
    assert found.type == "Microsoft.ContainerService/ManagedClusters"
    assert found.e_tag
    assert found.service_mesh_profile is None


def test_clusters_are_listed_by_group_and_subscription(endpoint: Endpoint) -> None:
    operations = endpoint.client().managed_clusters
    assert [each.name for each in operations.list()] == ["mesh"]
    assert [each.name for each in operations.list_by_resource_group("LAB")] == ["mesh"]


def test_enabling_the_mesh_takes_a_while_and_every_field_comes_back(endpoint: Endpoint) -> None:
    endpoint.hold.clear()
    operations = endpoint.client().managed_clusters
    cluster = with_mesh(operations.get("lab", "mesh"), "asm-1-29", "asm-1-30")
    poller = operations.begin_create_or_update("lab", "mesh", cluster, polling_interval=0.05)
    assert not poller.done()
    assert operations.get("lab", "mesh").provisioning_state == "Updating"
    with pytest.raises(ResourceExistsError, match="in progress update managed cluster operation"):
        operations.begin_create_or_update("lab", "mesh", cluster)
    endpoint.hold.set()
    for found in (poller.result(), operations.get("lab", "mesh")):
        assert found.provisioning_state == "Succeeded"
        assert found.dns_prefix == "mesh"
        istio = found.service_mesh_profile.istio
        assert (found.service_mesh_profile.mode, istio.revisions) == ("Istio", ["asm-1-29", "asm-1-30"])
        assert {name: getattr(istio.certificate_authority.plugin, name) for name in NAMES} == NAMES
        addon = found.addon_profiles["azureKeyvaultSecretsProvider"]
        assert addon.config == {"enableSecretRotation": "true", "rotationPollInterval": "20s"}
        assert addon.identity.object_id
        assert "azurekeyvaultsecretsprovider-mesh" in addon.identity.resource_id
    (new, old), *_ = endpoint.applied
    assert new["serviceMeshProfile"]["mode"] == "Istio"
    assert old == {"dnsPrefix": "mesh", "kubernetesVersion": "1.34.4"}


def test_a_change_that_fails_while_it_is_carried_out_says_so_at_the_end_and_is_undone(endpoint: Endpoint) -> None:
    endpoint.refuse = ArmError(400, "ControlPlaneAddOnsNotReady", "istiod is not ready")
    operations = endpoint.client().managed_clusters
    with pytest.raises(HttpResponseError, match="ControlPlaneAddOnsNotReady") as failed:
        put(endpoint, with_mesh(operations.get("lab", "mesh")))
    assert "istiod is not ready" in str(failed.value)
    found = operations.get("lab", "mesh")
    assert (found.provisioning_state, found.service_mesh_profile) == ("Failed", None)


def test_an_etag_lets_only_the_one_who_has_read_the_newest_write(endpoint: Endpoint) -> None:
    operations = endpoint.client().managed_clusters
    first = operations.get("lab", "mesh")
    etag = first.e_tag
    first.tags = {"owner": "first"}
    written = put(endpoint, first, etag=etag, match_condition=MatchConditions.IfNotModified)
    assert written.tags == {"owner": "first"}
    assert written.e_tag != etag
    with pytest.raises(ResourceModifiedError, match="does not match etag"):
        put(endpoint, first, etag=etag, match_condition=MatchConditions.IfNotModified)
    with pytest.raises(ResourceExistsError):
        put(endpoint, first, match_condition=MatchConditions.IfMissing)
    assert operations.get("lab", "mesh").tags == {"owner": "first"}


def test_a_mesh_that_runs_keeps_its_kind_of_certificate_authority(endpoint: Endpoint) -> None:
    operations = endpoint.client().managed_clusters
    self_signed = operations.get("lab", "mesh")
    istio = aks.IstioServiceMesh(revisions=["asm-1-30"])
    self_signed.service_mesh_profile = aks.ServiceMeshProfile(mode="Istio", istio=istio)
    put(endpoint, self_signed)
    with pytest.raises(HttpResponseError, match="Disable the service mesh first") as refused:
        put(endpoint, with_mesh(operations.get("lab", "mesh")))
    assert refused.value.status_code == 400
    assert operations.get("lab", "mesh").service_mesh_profile.istio.certificate_authority is None


@pytest.mark.parametrize(("argument", "field"), list(zip(NAMES, FIELDS, strict=True)))
def test_a_plug_in_authority_needs_all_five_of_its_names(endpoint: Endpoint, argument: str, field: str) -> None:
    operations = endpoint.client().managed_clusters
    with pytest.raises(HttpResponseError, match=f"plugin.{field} is missing") as refused:
        put(endpoint, with_mesh(operations.get("lab", "mesh"), **{argument: None}))
    assert refused.value.status_code == 400
    assert refused.value.error is not None
    assert refused.value.error.target == f"properties.serviceMeshProfile.istio.certificateAuthority.plugin.{field}"
    assert endpoint.applied == []


@pytest.mark.parametrize("wrong", ["example-vault", VAULT_ID.replace("KeyVault", "Storage"), VAULT_ID + "/secrets/x"])
def test_what_is_no_key_vaults_id_is_refused(endpoint: Endpoint, wrong: str) -> None:
    operations = endpoint.client().managed_clusters
    with pytest.raises(HttpResponseError, match="not a valid Key Vault resource ID"):
        put(endpoint, with_mesh(operations.get("lab", "mesh"), key_vault_id=wrong))


def test_a_plug_in_authority_needs_the_secrets_provider(endpoint: Endpoint) -> None:
    cluster = with_mesh(endpoint.client().managed_clusters.get("lab", "mesh"))
    cluster.addon_profiles = {"azureKeyvaultSecretsProvider": aks.ManagedClusterAddonProfile(enabled=False)}
    with pytest.raises(HttpResponseError, match="secrets provider add-on must be enabled"):
        put(endpoint, cluster)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [({"rotationPollInterval": "two minutes"}, "no duration"), ({"enableSecretRotation": "maybe"}, "true or false")],
)
def test_settings_of_the_secrets_provider_that_cannot_be_are_refused(
    endpoint: Endpoint, config: dict[str, str], complaint: str
) -> None:
    cluster = endpoint.client().managed_clusters.get("lab", "mesh")
    addon = aks.ManagedClusterAddonProfile(enabled=True, config=config)
    cluster.addon_profiles = {"azureKeyvaultSecretsProvider": addon}
    with pytest.raises(HttpResponseError, match=complaint):
        put(endpoint, cluster)


@pytest.mark.parametrize("revisions", [("asm-1-28", "asm-1-29", "asm-1-30"), ("1.30",)])
def test_more_than_two_revisions_or_an_unknown_form_are_refused(endpoint: Endpoint, revisions: tuple[str, ...]) -> None:
    cluster = with_mesh(endpoint.client().managed_clusters.get("lab", "mesh"), *revisions)
    with pytest.raises(HttpResponseError, match="evision"):
        put(endpoint, cluster)


def test_what_is_not_there_is_not_found_by_its_own_code(endpoint: Endpoint) -> None:
    operations = endpoint.client().managed_clusters
    for group, name, code in (("lab", "other", "ResourceNotFound"), ("nowhere", "mesh", "ResourceGroupNotFound")):
        with pytest.raises(ResourceNotFoundError) as missing:
            operations.get(group, name)
        assert missing.value.error is not None
        assert missing.value.error.code == code


def test_a_token_of_nobody_is_refused(endpoint: Endpoint) -> None:
    with pytest.raises(ClientAuthenticationError) as refused:
        endpoint.client(token="forged").managed_clusters.get("lab", "mesh")
    assert refused.value.error is not None
    assert refused.value.error.code == "InvalidAuthenticationToken"


def test_a_key_vaults_resource_says_where_the_vault_is(endpoint: Endpoint) -> None:
    found = ask(endpoint, VAULT_ID).json()
    assert (found["name"], found["properties"]["vaultUri"]) == ("example-vault", "https://127.0.0.1:1/")
    missing = ask(endpoint, VAULT_ID + "s")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "ResourceNotFound")


def test_who_may_read_a_vaults_secrets_is_told_for_all_or_for_one(endpoint: Endpoint) -> None:
    ours, other = "00000000-0000-0000-0000-0000000000aa", "00000000-0000-0000-0000-0000000000bb"
    endpoint.arm.grants[:] = [("example-vault", ours), ("example-vault", other), ("elsewhere", ours)]
    path = f"{VAULT_ID}/providers/Microsoft.Authorization/roleAssignments"

    def holders(query: str) -> list[str]:
        answer = ask(endpoint, path, f"api-version=2022-04-01{query}")
        assert all(
            item["properties"]["roleDefinitionId"].endswith("/4633458b-17de-408a-b874-0445c86b69e6")
            for item in answer.json()["value"]
        )
        return [item["properties"]["principalId"] for item in answer.json()["value"]]

    assert holders("") == [ours, other]
    assert holders(f"&$filter=assignedTo('{ours}')") == [ours]
    assert holders("&$filter=assignedTo('00000000-0000-0000-0000-0000000000cc')") == []
    refused = ask(endpoint, path, "api-version=2022-04-01&$filter=nonsense")
    assert refused.json()["error"]["code"] == "UnsupportedQuery"


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        (VAULT_ID, "", "MissingApiVersionParameter"),
        (VAULT_ID, "api-version=latest", "InvalidApiVersionParameter"),
        (VAULT_ID.replace("c0de", "0000"), "api-version=2026-08-01", "SubscriptionNotFound"),
        ("/nothing", "api-version=2026-08-01", "InvalidResourceType"),
    ],
)
def test_requests_beside_the_api_are_refused_by_code(endpoint: Endpoint, path: str, query: str, code: str) -> None:
    assert ask(endpoint, path, query).json()["error"]["code"] == code


def test_the_file_beside_the_vaults_says_where_it_is(endpoint: Endpoint) -> None:
    told = json.loads((endpoint.directory / "arm.json").read_text())
    assert (told["url"], told["ca"]) == (endpoint.arm.url, str(endpoint.directory / "ca.crt"))
    assert (endpoint.directory / "arm.json").stat().st_mode & 0o077 == 0


def ask(endpoint: Endpoint, path: str, query: str = "api-version=2026-08-01") -> httpx.Response:
    trusted = ssl.create_default_context(cafile=str(endpoint.directory / "ca.crt"))
    with httpx.Client(verify=trusted, trust_env=False) as client:
        return client.get(f"{endpoint.arm.url}{path}?{query}", headers={"authorization": "Bearer lab-token"})
