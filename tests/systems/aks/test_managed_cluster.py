"""The managed cluster's profile is read, and the add-on enabled with a plug-in CA, through Microsoft's own client."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from azure.core.credentials import AccessToken

from capstan.config import PluginCa
from capstan.errors import (
    Conflict,
    Denied,
    GateRefused,
    GateTimedOut,
    InvalidInput,
    NotFound,
    ServerFault,
    VerificationFailed,
)
from capstan.systems.aks import enable, roles
from capstan.systems.aks.arm import Arm, ClusterId, open_arm
from capstan.systems.aks.checks import checks
from capstan.systems.aks.profile import Plugin, Profile, SecretsProvider, read_profile
from capstan.systems.istio.key_vault import open_key_vault
from infra.lab.aks.arm import ResourceManager
from infra.lab.aks.arm.errors import ArmError
from tests.systems.istio.writing import real_now

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JSON = dict[str, Any]
SUBSCRIPTION = "00000000-0000-0000-0000-00000000c0de"
CLUSTER = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/lab/providers/Microsoft.ContainerService/managedClusters/east"
VAULT_ID = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/lab/providers/Microsoft.KeyVault/vaults/example-vault"
DEFINITIONS = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Authorization/roleDefinitions"
VAULT_URL = "https://example-vault.vault.example"
PLUGIN = Plugin(VAULT_ID, "my-root", "my-ca", "my-key", "my-chain")
PLUGIN_JSON = {
    "keyVaultId": VAULT_ID, "rootCertObjectName": "my-root", "certObjectName": "my-ca", "keyObjectName": "my-key",
    "certChainObjectName": "my-chain",
}  # fmt: skip
VAULT_READER = "21090545-7ca7-4776-b22c-e363652d74d2"  # Key Vault Reader, which AKS asked for once
BUILT_IN_READER = {
    "roleName": "Key Vault Reader",
    "permissions": [
        {
            "actions": ["Microsoft.KeyVault/vaults/read"],
            "dataActions": [
                "Microsoft.KeyVault/vaults/*/read",
                "Microsoft.KeyVault/vaults/secrets/readMetadata/action",
            ],
            "notDataActions": [],
        }
    ],
}
PROVIDER_JSON = {"enabled": True, "config": {"enableSecretRotation": "true", "rotationPollInterval": "30s"}}


def cluster_body(mesh: JSON | None = None, provider: JSON | None = None) -> JSON:
    properties: JSON = {"kubernetesVersion": "1.34", "agentPoolProfiles": [{"name": "pool", "count": 3}]}
    if mesh is not None:
        properties["serviceMeshProfile"] = mesh
    if provider is not None:
        properties["addonProfiles"] = {"azureKeyvaultSecretsProvider": provider}
    return {"location": "westeurope", "tags": {"team": "mesh"}, "properties": properties}


def mesh(plugin: JSON | None = PLUGIN_JSON, *revisions: str) -> JSON:
    istio: JSON = {"revisions": list(revisions or ("asm-1-29",))}
    if plugin is not None:
        istio["certificateAuthority"] = {"plugin": plugin}
    return {"mode": "Istio", "istio": istio}


class Manager(ResourceManager):
    """The lab's endpoint, with roles and access policies on the vault."""

    roles: tuple[str, ...] | None = None
    at: tuple[str, ...] = ("",)
    definitions: dict[str, JSON] | None = None
    policies: tuple[JSON, ...] | None = None

    def _answer(self, method: str, path: str, *more: Any) -> tuple[int, JSON]:
        if path.endswith("/providers/Microsoft.Authorization/roleAssignments"):
            if self.roles is None:
                raise ArmError(403, "AuthorizationFailed", "The client may not read role assignments.")
            return 200, {
                "value": [
                    {"properties": {"roleDefinitionId": f"{DEFINITIONS}/{role}", "scope": f"{VAULT_ID}{below}"}}
                    for role in self.roles
                    for below in self.at
                ]
            }
        if path.startswith(DEFINITIONS):
            if self.definitions is None:
                raise ArmError(403, "AuthorizationFailed", "The client may not read role definitions.")
            return 200, {"properties": self.definitions[path.rpartition("/")[2]]}
        status, answer = super()._answer(method, path, *more)
        if path.endswith("/vaults/example-vault") and self.policies is not None:
            answer["properties"] |= {"enableRbacAuthorization": False, "accessPolicies": list(self.policies)}
        return status, answer


class Endpoint:
    """Resource Manager in a thread of its own."""

    def __init__(self, directory: Path) -> None:
        self.applied: list[JSON] = []
        self.refuse: Exception | None = None
        self.hold = 0.0
        self.directory = directory
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.manager = Manager(
            directory, SUBSCRIPTION, "lab-token".__eq__, self._apply, vaults={"example-vault": VAULT_URL}
        )
        self.run(self.manager.start())

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def holds(self, body: JSON) -> None:
        """The one cluster there is."""
        self.manager.clusters._clusters.clear()
        self.manager.clusters.add("lab", "east", body)
        self.applied.clear()
        self.refuse, self.hold = None, 0.0
        self.manager.roles = self.manager.policies = self.manager.definitions = None
        self.manager.at = ("",)

    @property
    def body(self) -> JSON:
        return self.manager.clusters.get("lab", "east").body

    def open(self, token: str = "lab-token", cluster: str = CLUSTER) -> Arm:
        environment = {"CAPSTAN_ARM_URL": self.manager.url}
        ca = str(self.directory / "ca.crt")
        return open_arm(cluster, Token(token), environment, connection_verify=ca)

    def stop(self) -> None:
        self.run(self.manager.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()

    async def _apply(self, new: JSON, old: JSON | None) -> None:
        await asyncio.sleep(self.hold)
        if self.refuse is not None:
            raise self.refuse
        self.applied.append(new)


class Token:
    def __init__(self, token: str) -> None:
        self._token = token

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3600)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    endpoint = Endpoint(tmp_path_factory.mktemp("arm"))
    yield endpoint
    endpoint.stop()


# --- reading -----------------------------------------------------------------------------------------------------


def test_a_profile_names_vault_objects_revisions_and_how_secrets_come(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body(mesh(PLUGIN_JSON, "asm-1-29", "asm-1-30"), PROVIDER_JSON))
    profile = read_profile(endpoint.open())
    assert profile.mesh
    assert profile.revisions == ("asm-1-29", "asm-1-30")
    assert profile.required_plugin() == Plugin(VAULT_ID, "my-root", "my-ca", "my-key", "my-chain", VAULT_URL)
    assert (profile.provider.enabled, profile.provider.rotation, profile.provider.interval) == (True, True, "30s")
    assert profile.provider.identity
    assert not enable.why_no_rotation(profile)


def test_a_rotation_needs_the_clusters_id_alone(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.holds(cluster_body(mesh(), PROVIDER_JSON))
    monkeypatch.setenv("CAPSTAN_ARM_URL", endpoint.manager.url)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(endpoint.directory / "ca.crt"))

    class Named:
        name = "east"

    source = open_key_vault(Named(), PluginCa(cluster_id=CLUSTER), now=real_now, credential=Token("lab-token"))
    assert source.vault.url == VAULT_URL
    assert source.names.all == ("my-root", "my-ca", "my-key", "my-chain")


def test_a_self_signed_add_on_has_no_plug_in_ca_to_rotate(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body(mesh(None)))
    with pytest.raises(InvalidInput, match="self-signed root in the cluster"):
        read_profile(endpoint.open()).required_plugin()
    endpoint.holds(cluster_body())
    with pytest.raises(InvalidInput, match="not enabled"):
        read_profile(endpoint.open()).required_plugin()


@pytest.mark.parametrize(
    ("provider", "why"), [(None, "not enabled"), ({"enabled": True, "config": {}}, "secret rotation is off")]
)
def test_a_provider_that_brings_no_new_versions_is_noticed(endpoint: Endpoint, provider: JSON | None, why: str) -> None:
    endpoint.holds(cluster_body(mesh(), provider))
    assert why in enable.why_no_rotation(read_profile(endpoint.open()))


@pytest.mark.parametrize("text", ["", "east", CLUSTER.replace("managedClusters", "clusters"), f"{CLUSTER}/x"])
def test_what_is_no_clusters_id_is_refused_with_the_command_that_prints_it(text: str) -> None:
    with pytest.raises(InvalidInput, match="az aks show"):
        ClusterId.parse(text)


def test_ids_are_read_whatever_their_case() -> None:
    assert ClusterId.parse(CLUSTER.lower()) == ClusterId(SUBSCRIPTION, "lab", "east")


def test_missing_clusters_wrong_tokens_and_unknown_cas_are_told_apart(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body())
    with pytest.raises(NotFound, match="west"):
        read_profile(endpoint.open(cluster=CLUSTER.replace("east", "west")))
    with pytest.raises(Denied) as caught:
        read_profile(endpoint.open("another-token"))
    assert "az login" in caught.value.next_command
    arm = open_arm(CLUSTER, Token("lab-token"), {"CAPSTAN_ARM_URL": endpoint.manager.url})
    with pytest.raises(VerificationFailed, match="REQUESTS_CA_BUNDLE"):
        read_profile(arm)
    with pytest.raises(InvalidInput, match="CAPSTAN_ARM_URL"):
        open_arm(CLUSTER, Token("lab-token"), {"CAPSTAN_ARM_URL": "http://example"})


# --- enabling ----------------------------------------------------------------------------------------------------


def test_enabling_sends_the_documented_body_once_and_keeps_everything_else(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body())
    arm = endpoint.open()
    after = enable.enable_plugin_ca(arm, PLUGIN, revision="asm-1-30", interval="1m", seconds=20)
    (sent,) = endpoint.applied
    assert sent["serviceMeshProfile"] == mesh(PLUGIN_JSON, "asm-1-30")
    provider = sent["addonProfiles"]["azureKeyvaultSecretsProvider"]
    assert provider["enabled"] is True
    assert provider["config"] == {"enableSecretRotation": "true", "rotationPollInterval": "1m"}
    assert sent["agentPoolProfiles"][0]["name"] == "pool"
    assert endpoint.body["tags"] == {"team": "mesh"}
    assert after.plugin is not None
    assert enable.enable_plugin_ca(arm, PLUGIN, seconds=20) == after
    assert len(endpoint.applied) == 1


def test_a_running_self_signed_mesh_is_never_given_a_plug_in_ca(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body(mesh(None), PROVIDER_JSON))
    with pytest.raises(GateRefused, match="mesh disable") as caught:
        enable.enable_plugin_ca(endpoint.open(), PLUGIN, seconds=20)
    assert "custom resources" in caught.value.next_command
    assert endpoint.applied == []


def test_another_plug_in_ca_is_never_put_in_the_place_of_one(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body(mesh({**PLUGIN_JSON, "keyObjectName": "other"}), PROVIDER_JSON))
    with pytest.raises(GateRefused, match="another plug-in CA"):
        enable.enable_plugin_ca(endpoint.open(), PLUGIN, seconds=20)


def test_rotation_of_secrets_is_switched_on_where_the_plug_in_ca_is_there_already(endpoint: Endpoint) -> None:
    off = {"enabled": True, "config": {"enableSecretRotation": "false"}}
    endpoint.holds(cluster_body(mesh(PLUGIN_JSON, "asm-1-28"), off))
    after = enable.enable_plugin_ca(endpoint.open(), PLUGIN, revision="asm-1-30", seconds=20)
    assert after.provider.rotation
    assert after.provider.interval == "2m"
    assert after.revisions == ("asm-1-28",)


@pytest.mark.parametrize("field", ["vault_id", "root_cert", "ca_cert", "ca_key", "cert_chain"])
def test_all_five_values_are_needed(endpoint: Endpoint, field: str) -> None:
    endpoint.holds(cluster_body())
    values = {name: getattr(PLUGIN, name) for name in ("vault_id", "root_cert", "ca_cert", "ca_key", "cert_chain")}
    with pytest.raises(InvalidInput, match=field):
        enable.enable_plugin_ca(endpoint.open(), Plugin(**{**values, field: ""}), seconds=20)
    assert endpoint.applied == []


def test_what_is_no_vaults_id_is_refused(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body())
    wrong = Plugin("https://example-vault.vault.azure.net", "a", "b", "c", "d")
    with pytest.raises(InvalidInput, match="az keyvault show"):
        enable.enable_plugin_ca(endpoint.open(), wrong, seconds=20)


def test_a_cluster_that_is_being_changed_is_waited_for_by_the_caller(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body())
    endpoint.manager.clusters.get("lab", "east").state = "Updating"
    with pytest.raises(Conflict, match="somebody else"):
        enable.enable_plugin_ca(endpoint.open(), PLUGIN, seconds=20)


def test_a_change_in_between_is_a_conflict(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.holds(cluster_body())
    arm = endpoint.open()
    seen = arm.client.managed_clusters.get

    def then_changed(*arguments, **options):
        cluster = seen(*arguments, **options)
        endpoint.manager.clusters.get("lab", "east").etag = "moved on"
        return cluster

    monkeypatch.setattr(arm.client.managed_clusters, "get", then_changed)
    with pytest.raises(Conflict, match="412"):
        enable.enable_plugin_ca(arm, PLUGIN, seconds=20)
    assert endpoint.applied == []


def test_azures_refusal_after_the_start_is_told_in_its_words(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body())
    endpoint.refuse = ArmError(400, "KeyVaultSecretNotFound", "The secret my-root was not found.")
    with pytest.raises(Exception, match="my-root"):
        enable.enable_plugin_ca(endpoint.open(), PLUGIN, seconds=20)


def test_a_cluster_whose_last_change_failed_is_no_cluster_that_is_being_changed(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.holds(cluster_body())
    endpoint.refuse = ArmError(400, "KeyVaultSecretNotFound", "The secret my-root was not found.")
    with pytest.raises(ServerFault, match="my-root"):
        enable.enable_plugin_ca(endpoint.open(), PLUGIN, seconds=20)
    assert read_profile(endpoint.open()).state == "Failed"
    endpoint.refuse = None  # the secret was made: the same command goes on
    assert enable.enable_plugin_ca(endpoint.open(), PLUGIN, seconds=20).plugin is not None
    endpoint.manager.clusters.get("lab", "east").state = "Failed"
    endpoint.manager.roles = (str(roles.SECRETS_USER),)
    assert statuses(endpoint, monkeypatch)[REST] == "ok"


def test_an_end_that_does_not_come_is_told_and_the_next_run_finds_it_under_way(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.holds(cluster_body())
    endpoint.hold = 1.0
    monkeypatch.setattr(enable, "POLL_SECONDS", 0.1)
    with pytest.raises(GateTimedOut, match="provisioningState"):
        enable.enable_plugin_ca(endpoint.open(), PLUGIN, seconds=0.1)
    with pytest.raises(Conflict):
        enable.enable_plugin_ca(endpoint.open(), PLUGIN, seconds=0.1)


# --- who may read the vault --------------------------------------------------------------------------------------


def access(endpoint: Endpoint) -> str:
    arm = endpoint.open()
    return enable.require_access(arm, read_profile(arm), PLUGIN)


def test_the_role_that_reads_secrets_is_enough_and_another_is_not(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body(mesh(), PROVIDER_JSON))
    endpoint.manager.roles = (str(roles.SECRETS_USER),)
    assert "Key Vault Secrets User" in access(endpoint)
    endpoint.manager.roles = (VAULT_READER,)
    endpoint.manager.definitions = {VAULT_READER: BUILT_IN_READER}
    with pytest.raises(Denied) as caught:
        access(endpoint)
    assert "az role assignment create --role 'Key Vault Secrets User'" in caught.value.next_command


def test_a_role_of_ones_own_that_reads_secrets_is_enough(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body(mesh(), PROVIDER_JSON))
    own = "5e0c5f56-0000-4000-8000-000000000001"
    endpoint.manager.roles = (own,)
    whole = {"dataActions": ["Microsoft.KeyVault/vaults/secrets/*"], "notDataActions": []}
    endpoint.manager.definitions = {own: {"roleName": "mesh secrets", "permissions": [whole]}}
    assert "mesh secrets" in access(endpoint)
    without = {**whole, "notDataActions": ["microsoft.keyvault/vaults/secrets/getsecret/action"]}
    endpoint.manager.definitions = {own: {"roleName": "mesh secrets", "permissions": [without]}}
    with pytest.raises(Denied):
        access(endpoint)


def test_what_a_role_allows_and_may_not_be_seen_is_no_refusal(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body(mesh(), PROVIDER_JSON))
    endpoint.manager.roles = (VAULT_READER,)
    assert "cannot be seen" in access(endpoint)


def test_a_role_on_single_secrets_counts_for_these_and_the_others_are_named(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body(mesh(), PROVIDER_JSON))
    endpoint.manager.roles = (str(roles.SECRETS_USER),)
    endpoint.manager.at = tuple(f"/secrets/{name}" for name in ("my-root", "my-ca", "my-key", "my-chain"))
    assert "Key Vault Secrets User" in access(endpoint)
    endpoint.manager.at = tuple(f"/secrets/{name}" for name in ("my-root", "my-ca", "my-key"))
    with pytest.raises(Denied, match="reads my-chain"):
        access(endpoint)


def test_access_policies_are_looked_at_where_the_vault_uses_them(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body(mesh(), PROVIDER_JSON))
    identity = read_profile(endpoint.open()).provider.identity
    endpoint.manager.policies = ({"objectId": identity.upper(), "permissions": {"secrets": ["Get"]}},)
    assert "access policy" in access(endpoint)
    endpoint.manager.policies = ({"objectId": identity, "permissions": {"secrets": ["list"], "keys": ["get"]}},)
    with pytest.raises(Denied) as caught:
        access(endpoint)
    assert "az keyvault set-policy --name example-vault" in caught.value.next_command


def test_what_may_not_be_seen_is_said_and_is_no_refusal(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body(mesh(), PROVIDER_JSON))
    assert "cannot be seen" in access(endpoint)


def test_a_provider_without_an_identity_has_none_to_grant_anything_to(endpoint: Endpoint) -> None:
    endpoint.holds(cluster_body())
    profile = Profile("x", False, (), None, SecretsProvider(False, False, "", ""), "", "Succeeded")
    assert "no identity" in enable.require_access(endpoint.open(), profile, PLUGIN)


# --- checks ------------------------------------------------------------------------------------------------------


def statuses(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, cluster: str = CLUSTER) -> dict[str, str]:
    monkeypatch.setenv("CAPSTAN_ARM_URL", endpoint.manager.url)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(endpoint.directory / "ca.crt"))
    return {each.description: each.status.value for each in checks(cluster, Token("lab-token"))}


PROFILE, REST = "the cluster's profile names a plug-in CA", "no other change of the cluster is under way"
FOLLOWS, READS = (
    "new versions in the Key Vault come to istiod by themselves",
    "the secrets provider may read the Key Vault",
)


def test_an_add_on_in_order_passes_every_check(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.holds(cluster_body(mesh(), PROVIDER_JSON))
    endpoint.manager.roles = (str(roles.SECRETS_USER),)
    assert statuses(endpoint, monkeypatch) == {PROFILE: "ok", REST: "ok", FOLLOWS: "ok", READS: "ok"}


def test_an_add_on_out_of_order_fails_the_check_that_says_so(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.holds(cluster_body(mesh(), {"enabled": True, "config": {}}))
    endpoint.manager.clusters.get("lab", "east").state = "Upgrading"
    endpoint.manager.roles = ()
    assert statuses(endpoint, monkeypatch) == {PROFILE: "ok", REST: "error", FOLLOWS: "warning", READS: "error"}


def test_what_azure_does_not_say_is_never_a_pass(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.holds(cluster_body(mesh(), PROVIDER_JSON))
    assert statuses(endpoint, monkeypatch)[READS] == "skipped"
    assert statuses(endpoint, monkeypatch, CLUSTER.replace("east", "west")) == {PROFILE: "error"}
    assert statuses(endpoint, monkeypatch, "") == {PROFILE: "skipped"}
