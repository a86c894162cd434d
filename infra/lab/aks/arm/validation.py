"""What the service refuses in a managed cluster's body, as far as the Istio add-on and its CA go. Pure."""

from __future__ import annotations

import re
from typing import Any

from infra.lab.aks.arm.errors import invalid, not_supported

JSON = dict[str, Any]

SECRETS_PROVIDER = "azureKeyvaultSecretsProvider"
MESH = "properties.serviceMeshProfile"
PLUGIN = f"{MESH}.istio.certificateAuthority.plugin"
PLUGIN_FIELDS = ("keyVaultId", "rootCertObjectName", "certObjectName", "keyObjectName", "certChainObjectName")

_VAULT_ID = re.compile(
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.KeyVault/vaults/[0-9A-Za-z-]{3,24}", re.IGNORECASE
)
_OBJECT_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")
_REVISION = re.compile(r"asm-\d+-\d+")
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
MAX_REVISIONS = 2


def check(new: JSON, old: JSON | None) -> None:
    """Refuse what cannot be.

    Args:
        new: The body's `properties`.
        old: The cluster's, None for a new one.

    Raises:
        ArmError: 400, with the property in `target`.
    """
    _check_secrets_provider(new)
    profile = new.get("serviceMeshProfile")
    if profile is None:
        return
    mode = profile.get("mode")
    if mode not in ("Istio", "Disabled"):
        raise invalid(f"The value of parameter {MESH}.mode is invalid: {mode!r}", f"{MESH}.mode")
    if mode == "Disabled":
        return
    _check_revisions(profile)
    plugin = plugin_of(new)
    if plugin is not None:
        _check_plugin(plugin)
        if not addon_enabled(new):
            raise invalid(
                "The Azure Key Vault secrets provider add-on must be enabled to use a plug-in certificate authority"
                " with the service mesh.",
                f"properties.addonProfiles.{SECRETS_PROVIDER}",
            )
    if old is not None and mesh_enabled(old) and (plugin_of(old) is None) != (plugin is None):
        raise not_supported(
            "Switching between a self-signed and a plug-in certificate authority is not supported while the service"
            " mesh is enabled. Disable the service mesh first.",
            f"{MESH}.istio.certificateAuthority",
        )


def mesh_enabled(properties: JSON) -> bool:
    """Whether the Istio add-on runs."""
    return (properties.get("serviceMeshProfile") or {}).get("mode") == "Istio"


def plugin_of(properties: JSON) -> JSON | None:
    """The plug-in CA of the profile, None where Istio's CA signs its own root."""
    istio = (properties.get("serviceMeshProfile") or {}).get("istio") or {}
    plugin: JSON | None = (istio.get("certificateAuthority") or {}).get("plugin")
    return plugin


def addon_enabled(properties: JSON) -> bool:
    """Whether the secrets-provider add-on is on."""
    return bool(((properties.get("addonProfiles") or {}).get(SECRETS_PROVIDER) or {}).get("enabled"))


def duration_seconds(text: str) -> float:
    """Seconds of a Go duration in hours, minutes and seconds (`2m`, `1m30s`). Raises ArmError."""
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise invalid(
            f"The rotation poll interval {text!r} is no duration such as 2m.",
            f"properties.addonProfiles.{SECRETS_PROVIDER}.config.rotationPollInterval",
        )
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(hours * 3600 + minutes * 60 + seconds)


def _check_secrets_provider(new: JSON) -> None:
    config = ((new.get("addonProfiles") or {}).get(SECRETS_PROVIDER) or {}).get("config") or {}
    target = f"properties.addonProfiles.{SECRETS_PROVIDER}.config"
    rotation = config.get("enableSecretRotation", "false")
    if str(rotation).lower() not in ("true", "false"):
        raise invalid(
            f"enableSecretRotation must be true or false, not {rotation!r}.", f"{target}.enableSecretRotation"
        )
    if "rotationPollInterval" in config:
        duration_seconds(str(config["rotationPollInterval"]))


def _check_revisions(profile: JSON) -> None:
    revisions = (profile.get("istio") or {}).get("revisions") or []
    target = f"{MESH}.istio.revisions"
    if len(revisions) > MAX_REVISIONS:
        raise invalid(f"At most {MAX_REVISIONS} revisions can be installed, found {len(revisions)}.", target)
    for revision in revisions:
        if not _REVISION.fullmatch(revision):
            raise invalid(f"Revision {revision!r} is not supported by this cluster.", target)


def _check_plugin(plugin: JSON) -> None:
    for name in PLUGIN_FIELDS:
        if not plugin.get(name):
            raise invalid(f"Required parameter {PLUGIN}.{name} is missing (null).", f"{PLUGIN}.{name}")
    if not _VAULT_ID.fullmatch(plugin["keyVaultId"]):
        raise invalid(f"{plugin['keyVaultId']!r} is not a valid Key Vault resource ID.", f"{PLUGIN}.keyVaultId")
    for name in PLUGIN_FIELDS[1:]:
        if not _OBJECT_NAME.fullmatch(plugin[name]):
            raise invalid(f"{plugin[name]!r} is not a valid Key Vault object name.", f"{PLUGIN}.{name}")
