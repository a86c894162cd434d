"""Enabling the Istio add-on with a plug-in CA: the body, the guard before it, and who may read the vault.

Source: AKS documentation, "Plug in CA certificates for the Istio-based service mesh add-on"; azure-cli,
managed_cluster_decorator (all five values are required together).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from azure.core import MatchConditions
from azure.mgmt.containerservice.models import (
    IstioCertificateAuthority,
    IstioPluginCertificateAuthority,
    IstioServiceMesh,
    ManagedClusterAddonProfile,
    ServiceMeshProfile,
)

from capstan.errors import Conflict, Denied, GateRefused, GateTimedOut, InvalidInput, NotFound
from capstan.systems.aks import roles
from capstan.systems.aks.profile import SECRETS_PROVIDER, VAULT_API, check_vault_id, profile_of, read_profile

if TYPE_CHECKING:
    from collections.abc import Callable

    from azure.mgmt.containerservice.models import ManagedCluster

    from capstan.systems.aks.arm import Arm
    from capstan.systems.aks.profile import Plugin, Profile

DEFAULT_INTERVAL: Final = "2m"
POLL_SECONDS: Final = 5.0


def require_enable_possible(profile: Profile, plugin: Plugin) -> bool:
    """Whether there is anything to do; refuse what cannot be done.

    Raises:
        GateRefused: The add-on is enabled with another CA: Azure changes that only by disabling it first, which deletes
            the mesh's custom resources and namespaces.
        Conflict: Another change of the cluster is under way.
    """
    if profile.changing:
        raise Conflict(
            "the cluster is being changed by somebody else", where=profile.where, observed=profile.state,
            expected="Succeeded, Failed or Canceled", delay=30.0, next_command="az aks show --query provisioningState",
        )  # fmt: skip
    if not profile.mesh:
        return True
    if profile.plugin is None:
        raise GateRefused(
            "a running add-on with a self-signed root cannot be given a plug-in CA", where=profile.where,
            observed=f"Istio enabled, revisions {', '.join(profile.revisions)}, no plug-in CA",
            expected="a cluster without the Istio add-on",
            next_command="plan an outage of the mesh: `az aks mesh disable` deletes its custom resources, gateways and "
            "both namespaces; then enable it with the plug-in CA",
        )  # fmt: skip
    if _names(profile.plugin) != _names(plugin):
        raise GateRefused(
            "the add-on has another plug-in CA", where=profile.where,
            observed=", ".join(_names(profile.plugin)), expected=", ".join(_names(plugin)),
            next_command="write the new CA into the secrets that the add-on reads: capstan rotate --system aks-istio",
        )  # fmt: skip
    # Where the last change failed, what it was to do may be half done: the same once more has Azure finish it.
    done = profile.provider.enabled and profile.provider.rotation and profile.state not in ("Failed", "Canceled")
    return not done


def body(cluster: ManagedCluster, plugin: Plugin, *, revision: str, interval: str) -> ManagedCluster:
    """The cluster as it was read, with the add-on, its plug-in CA, and a secrets provider that follows new versions.

    Args:
        revision: `asm-1-30`; empty leaves the choice to Azure. One that runs already is kept.
        interval: How often the provider looks for new versions: `2m`, `30s`.

    Raises:
        InvalidInput: One of the five values is missing.
    """
    missing = [name for name in ("vault_id", "root_cert", "ca_cert", "ca_key", "cert_chain")
               if not getattr(plugin, name)]  # fmt: skip
    if missing:
        raise InvalidInput(
            "a plug-in CA needs all of its five values", observed=f"no {', '.join(missing)}",
            expected="the Key Vault's id and the names of four secrets in it",
        )  # fmt: skip
    check_vault_id(plugin.vault_id)
    present = cluster.service_mesh_profile
    istio = present.istio if present is not None and present.istio is not None else IstioServiceMesh()
    istio.revisions = istio.revisions or ([revision] if revision else None)
    istio.certificate_authority = IstioCertificateAuthority(
        plugin=IstioPluginCertificateAuthority(
            key_vault_id=plugin.vault_id,
            cert_object_name=plugin.ca_cert,
            key_object_name=plugin.ca_key,
            root_cert_object_name=plugin.root_cert,
            cert_chain_object_name=plugin.cert_chain,
        )
    )
    cluster.service_mesh_profile = ServiceMeshProfile(mode="Istio", istio=istio)
    addons = dict(cluster.addon_profiles or {})
    provider = addons.get(SECRETS_PROVIDER)
    config = dict((provider.config if provider is not None else None) or {})
    config["enableSecretRotation"] = "true"
    config["rotationPollInterval"] = interval or config.get("rotationPollInterval") or DEFAULT_INTERVAL
    addons[SECRETS_PROVIDER] = ManagedClusterAddonProfile(enabled=True, config=config)
    cluster.addon_profiles = addons
    return cluster


def enable_plugin_ca(
    arm: Arm,
    plugin: Plugin,
    *,
    revision: str = "",
    interval: str = "",
    seconds: float,
    on_progress: Callable[[str], None] | None = None,
) -> Profile:
    """Enable the add-on with this plug-in CA and wait until Azure has done it; nothing is sent if it is so already.

    Args:
        seconds: How long Azure may take.

    Raises:
        GateRefused, Conflict: See `require_enable_possible`; also when somebody changed the cluster meanwhile.
        GateTimedOut: Azure has not finished in time. Others: as Resource Manager.
    """
    # 1. What is there? The etag ties the write to exactly that.
    cluster = arm.call(
        "the cluster's profile cannot be read",
        lambda: arm.client.managed_clusters.get(arm.cluster.group, arm.cluster.name),
    )
    profile = profile_of(arm, cluster)
    # 2. May it be done, and is there anything to do?
    if not require_enable_possible(profile, plugin):
        return profile
    # 3. Send it, once.
    wanted = body(cluster, plugin, revision=revision, interval=interval)
    poller = arm.call(
        "the add-on cannot be enabled",
        lambda: arm.client.managed_clusters.begin_create_or_update(
            arm.cluster.group, arm.cluster.name, wanted, etag=profile.etag,
            match_condition=MatchConditions.IfNotModified,
        ),
    )  # fmt: skip
    # 4. Wait for it; a run that dies here finds the cluster changed, or being changed, when it comes again.
    waited = 0.0
    while not poller.done():
        if waited >= seconds:
            raise GateTimedOut(
                "Azure has not finished enabling the add-on", where=profile.where, observed=str(poller.status()),
                expected=f"an end within {seconds:.0f} s", stragglers=(arm.cluster.name,),
                next_command="az aks show --query provisioningState, then run the same command again",
            )  # fmt: skip
        if on_progress is not None:
            on_progress(f"Azure: {poller.status()}")
        arm.call("the add-on cannot be enabled", lambda: poller.wait(POLL_SECONDS))
        waited += POLL_SECONDS
    arm.call("the add-on cannot be enabled", poller.result)
    # 5. Believe what is there, not what was answered.
    after = read_profile(arm)
    if not after.mesh or after.plugin is None or _names(after.plugin) != _names(plugin):
        raise GateRefused(
            "the cluster's profile is not what was asked for", where=after.where,
            observed=", ".join(_names(after.plugin)) if after.plugin else "no plug-in CA",
            expected=", ".join(_names(plugin)), next_command="az aks show --query serviceMeshProfile",
        )  # fmt: skip
    return after


def require_access(arm: Arm, profile: Profile, plugin: Plugin) -> str:
    """How the secrets provider may read the vault.

    Returns:
        A sentence, for the account; that it could not be seen is one too (the caller may lack the right to look).

    Raises:
        Denied: It may not; says what to grant to whom.
    """
    identity = profile.provider.identity
    if not identity:
        return "the secrets provider has no identity yet"
    try:
        vault = arm.get(plugin.vault_id, VAULT_API).get("properties") or {}
        if not vault.get("enableRbacAuthorization"):
            return _require_policy(vault, identity, plugin)
        held = roles.of(arm, plugin.vault_id, identity)
        unread = [name for name in plugin.secrets if not any(role.reads(plugin.vault_id, name) for role in held)]
    except (NotFound, Denied) as error:
        if error.what == _REFUSED:
            raise
        return f"who may read the vault cannot be seen: {error.observed}"
    if not unread:
        names = sorted(
            {role.name for role in held if any(role.reads(plugin.vault_id, name) for name in plugin.secrets)}
        )
        return f"the secrets provider has the role {', '.join(names)} on the vault"
    observed = f"no role assignment that reads {', '.join(unread)}"
    raise _no_access(
        plugin, identity, observed=observed,
        remedy=f"az role assignment create --role 'Key Vault Secrets User' --assignee-object-id {identity} "
        f"--assignee-principal-type ServicePrincipal --scope {plugin.vault_id}",
    )  # fmt: skip


_REFUSED: Final = "the secrets provider may not read the vault, so no istiod would get its CA"


def _require_policy(vault: dict[str, Any], identity: str, plugin: Plugin) -> str:
    for policy in vault.get("accessPolicies") or []:
        secrets = {str(each).lower() for each in (policy.get("permissions") or {}).get("secrets") or []}
        if str(policy.get("objectId", "")).lower() == identity.lower() and secrets & {"get", "all"}:
            return "the vault's access policy lets the secrets provider get secrets"
    raise _no_access(
        plugin, identity, observed="no access policy with get for secrets",
        remedy=f"az keyvault set-policy --name {check_vault_id(plugin.vault_id)} --object-id {identity} "
        "--secret-permissions get",
    )  # fmt: skip


def _no_access(plugin: Plugin, identity: str, *, observed: str, remedy: str) -> Denied:
    return Denied(
        _REFUSED, where=f"{plugin.vault_id}, identity {identity}", observed=observed,
        expected="permission to get secrets", next_command=remedy,
    )  # fmt: skip


def _names(plugin: Plugin) -> tuple[str, ...]:
    """What tells two plug-in CAs apart; ARM ids are compared without case."""
    return plugin.vault_id.lower().rstrip("/"), plugin.root_cert, plugin.ca_cert, plugin.ca_key, plugin.cert_chain


def why_no_rotation(profile: Profile) -> str:
    """Why new versions in the vault would not come to istiod by themselves; empty if they do."""
    if not profile.provider.enabled:
        return f"the add-on {SECRETS_PROVIDER} is not enabled"
    if not profile.provider.rotation:
        return "secret rotation is off (az aks addon update --addon azure-keyvault-secrets-provider " \
            "--enable-secret-rotation)"  # fmt: skip
    return ""
