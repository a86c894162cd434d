"""The lab's Azure: one subscription with a group, a managed cluster and a Key Vault, and their Resource Manager."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.aks.arm import ResourceManager
from infra.lab.aks.arm.validation import SECRETS_PROVIDER
from infra.lab.aks.hierarchy import FILES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from infra.lab.aks.arm.clusters import Apply
    from infra.lab.keyvault.server import KeyVault

JSON = dict[str, Any]

SUBSCRIPTION = "00000000-0000-0000-0000-00000000c0de"
TENANT = "00000000-0000-0000-0000-000000000001"
GROUP, CLUSTER, VAULT, LOCATION = "lab", "lab-aks", "capstan-lab", "westeurope"
_GROUP_ID = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"
CLUSTER_ID = f"{_GROUP_ID}/providers/Microsoft.ContainerService/managedClusters/{CLUSTER}"
VAULT_ID = f"{_GROUP_ID}/providers/Microsoft.KeyVault/vaults/{VAULT}"
SECRET_NAMES = {file: file.removesuffix(".pem") for file in FILES}
FIELDS = dict(zip(FILES, ("rootCertObjectName", "certObjectName", "keyObjectName", "certChainObjectName"), strict=True))
REAL_POLL = "2m"


def cluster_body(revisions: Sequence[str] = (), *, rotation: bool = True) -> JSON:
    """The managed cluster as whoever made it has put it; with revisions the mesh is enabled."""
    properties: JSON = {
        "kubernetesVersion": "1.34.4",
        "dnsPrefix": CLUSTER,
        "agentPoolProfiles": [{"name": "nodepool1", "count": 3, "mode": "System", "vmSize": "Standard_D4s_v5"}],
        "addonProfiles": {
            SECRETS_PROVIDER: {
                "enabled": True,
                "config": {"enableSecretRotation": str(rotation).lower(), "rotationPollInterval": REAL_POLL},
            }
        },
        "oidcIssuerProfile": {"enabled": True},
    }
    if revisions:
        plugin = {"keyVaultId": VAULT_ID, **{FIELDS[file]: name for file, name in SECRET_NAMES.items()}}
        istio = {"revisions": list(revisions), "certificateAuthority": {"plugin": plugin}}
        properties["serviceMeshProfile"] = {"mode": "Istio", "istio": istio}
    return {
        "location": LOCATION,
        "identity": {"type": "SystemAssigned"},
        "sku": {"name": "Base", "tier": "Standard"},
        "tags": {},
        "properties": properties,
    }


def resource_manager(directory: Path, vault: KeyVault, apply: Apply, body: JSON) -> ResourceManager:
    """A Resource Manager that knows a vault that is being served, and the cluster; to be started.

    Args:
        directory: The vault's.
        apply: Carries out what the cluster's new bodies ask for.
        body: The cluster as it is.
    """
    found = ResourceManager(
        directory,
        SUBSCRIPTION,
        vault.accepts,
        apply,
        vaults={VAULT: vault.url},
        describe={"cluster_id": CLUSTER_ID, "key_vault_id": VAULT_ID, "environment": vault.environment},
    )
    holder = found.clusters.identity(found.clusters.add(GROUP, CLUSTER, body), SECRETS_PROVIDER)
    found.grants.append((VAULT, holder["objectId"]))
    return found
