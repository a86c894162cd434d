"""What a managed cluster's profile says of the Istio add-on, its plug-in CA, and the secrets provider.

Source: azure-mgmt-containerservice, ManagedCluster.service_mesh_profile and .addon_profiles; AKS documentation, "Plug
in CA certificates for the Istio-based service mesh add-on".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from capstan.errors import Denied, InvalidInput, NotFound

if TYPE_CHECKING:
    from azure.mgmt.containerservice.models import ManagedCluster

    from capstan.systems.aks.arm import Arm

SECRETS_PROVIDER: Final = "azureKeyvaultSecretsProvider"
VAULT_API: Final = "2023-07-01"
_VAULT_ID: Final = re.compile(
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.KeyVault/vaults/(?P<name>[0-9A-Za-z-]{3,24})/?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Plugin:
    """Where a plug-in CA comes from.

    Attributes:
        vault_id: ARM id of the Key Vault.
        vault_url: Its URL.
    """

    vault_id: str
    root_cert: str
    ca_cert: str
    ca_key: str
    cert_chain: str
    vault_url: str = ""

    @property
    def secrets(self) -> tuple[str, str, str, str]:
        """The names of the four secrets."""
        return self.root_cert, self.ca_cert, self.ca_key, self.cert_chain


@dataclass(frozen=True, slots=True)
class SecretsProvider:
    """The add-on that brings Key Vault secrets into the cluster.

    Attributes:
        rotation: Whether it fetches new versions while a pod runs; off unless somebody switched it on.
        interval: How often, as written (`2m`); empty where it is the default, two minutes.
        identity: Object id of its identity, which needs to read the vault; empty if the profile names none.
    """

    enabled: bool
    rotation: bool
    interval: str
    identity: str


@dataclass(frozen=True, slots=True)
class Profile:
    """What is configured.

    Attributes:
        mesh: Whether the Istio add-on is enabled.
        revisions: `asm-1-30`; two during a canary upgrade.
        plugin: The plug-in CA; None if istiod signs by a root of its own.
        etag: The cluster's version, for a conditional write.
        state: Provisioning state: `Succeeded`, `Failed` or `Canceled` when at rest, else what is being done.
    """

    where: str
    mesh: bool
    revisions: tuple[str, ...]
    plugin: Plugin | None
    provider: SecretsProvider
    etag: str
    state: str

    @property
    def changing(self) -> bool:
        """Whether Azure is at work on the cluster. What has failed is at rest, and another change is how it is mended
        (azure-resource-manager-rpc, "Asynchronous operations": the three terminal states)."""
        return self.state not in ("Succeeded", "Failed", "Canceled", "")

    def required_plugin(self) -> Plugin:
        """The plug-in CA.

        Raises:
            InvalidInput: The add-on is not enabled, or has none.
        """
        if self.plugin is not None and self.mesh:
            return self.plugin
        raise InvalidInput(
            "this cluster's Istio add-on has no plug-in CA", where=self.where,
            observed="a self-signed root in the cluster" if self.mesh else "the add-on is not enabled",
            expected="serviceMeshProfile.istio.certificateAuthority.plugin",
            next_command="az aks mesh enable --key-vault-id ID --root-cert-object-name NAME ... on a cluster without "
            "the add-on: a self-signed add-on cannot be given a plug-in CA while it is enabled",
        )  # fmt: skip


def read_profile(arm: Arm) -> Profile:
    """Read it.

    Raises:
        NotFound: No such cluster. Others: as Resource Manager.
    """
    cluster = arm.call(
        "the cluster's profile cannot be read",
        lambda: arm.client.managed_clusters.get(arm.cluster.group, arm.cluster.name),
    )
    return profile_of(arm, cluster)


def profile_of(arm: Arm, cluster: ManagedCluster) -> Profile:
    """The profile of a cluster that was read."""
    mesh = cluster.service_mesh_profile
    istio = mesh.istio if mesh is not None else None
    authority = istio.certificate_authority if istio is not None else None
    plugin = authority.plugin if authority is not None else None
    provider: Any = (cluster.addon_profiles or {}).get(SECRETS_PROVIDER)
    config = dict((provider.config if provider is not None else None) or {})
    identity = provider.identity if provider is not None else None
    return Profile(
        where=str(arm.cluster),
        mesh=mesh is not None and mesh.mode == "Istio",
        revisions=tuple((istio.revisions if istio is not None else None) or ()),
        plugin=None
        if plugin is None
        else Plugin(
            vault_id=plugin.key_vault_id or "",
            root_cert=plugin.root_cert_object_name or "",
            ca_cert=plugin.cert_object_name or "",
            ca_key=plugin.key_object_name or "",
            cert_chain=plugin.cert_chain_object_name or "",
            vault_url=vault_url(arm, plugin.key_vault_id or ""),
        ),
        provider=SecretsProvider(
            enabled=bool(provider is not None and provider.enabled),
            rotation=str(config.get("enableSecretRotation", "false")).lower() == "true",
            interval=str(config.get("rotationPollInterval", "")),
            identity=str((identity.object_id if identity is not None else "") or ""),
        ),
        etag=str(cluster.e_tag or ""),
        state=str(cluster.provisioning_state or ""),
    )


def check_vault_id(vault_id: str) -> str:
    """The vault's name.

    Raises:
        InvalidInput: It is not the ARM id of a Key Vault.
    """
    match = _VAULT_ID.fullmatch(vault_id.strip())
    if match is None:
        raise InvalidInput(
            "not the id of a Key Vault", observed=repr(vault_id),
            expected="/subscriptions/S/resourceGroups/G/providers/Microsoft.KeyVault/vaults/NAME",
            next_command="az keyvault show --name NAME --query id",
        )  # fmt: skip
    return match["name"]


def vault_url(arm: Arm, vault_id: str) -> str:
    """The URL of a vault, as its resource says; where that may not be read, the cloud's for its name.

    Raises:
        InvalidInput: Not the id of a Key Vault. Others: as Resource Manager.
    """
    name = check_vault_id(vault_id)
    try:
        resource = arm.get(vault_id, VAULT_API)
    except (Denied, NotFound):
        resource = {}
    uri = str((resource.get("properties") or {}).get("vaultUri", "")).rstrip("/")
    return uri or f"https://{name.lower()}.{arm.vault_suffix}"
