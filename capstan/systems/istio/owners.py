"""Which tool writes an object of Istio's CA, and would undo our write.

Marks: Helm, Argo CD, Flux and cert-manager leave the same ones on every object (`capstan.systems.linkerd.layout`
knows them for Linkerd's); the others named here are the usual makers of a `cacerts` Secret.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from capstan.errors import OwnedElsewhere
from capstan.systems.linkerd.layout import Tool as CommonTool
from capstan.systems.linkerd.layout import owner_of as common_owner

if TYPE_CHECKING:
    from collections.abc import Collection

    from capstan.cluster.values import Object


class Tool(StrEnum):
    """What manages an object and might revert a write to it."""

    PLAIN = "nobody"
    HELM = "helm"
    ARGO = "argo cd"
    FLUX = "flux"
    TRUST_MANAGER = "trust-manager"
    CERT_MANAGER = "cert-manager"
    EXTERNAL_SECRETS = "external-secrets"
    SEALED_SECRETS = "sealed-secrets"
    SECRETS_STORE = "secrets-store csi driver"
    VAULT_OPERATOR = "vault secrets operator"

    @property
    def reverts(self) -> bool:
        """Whether it undoes a direct write: at once, at its next sync, or (Helm) at the next upgrade."""
        return self is not Tool.PLAIN


_BY_OWNER_KIND: Final = {
    "ExternalSecret": Tool.EXTERNAL_SECRETS,
    "SealedSecret": Tool.SEALED_SECRETS,
    "VaultStaticSecret": Tool.VAULT_OPERATOR,
    "VaultPKISecret": Tool.VAULT_OPERATOR,
    "Certificate": Tool.CERT_MANAGER,
}
_BY_LABEL: Final = {
    "reconcile.external-secrets.io/managed": Tool.EXTERNAL_SECRETS,
    "reconcile.external-secrets.io/created-by": Tool.EXTERNAL_SECRETS,
    "secrets-store.csi.k8s.io/managed": Tool.SECRETS_STORE,
    "secrets.hashicorp.com/vso-ownerRefUID": Tool.VAULT_OPERATOR,
}


def owner_of(item: Object) -> Tool:
    """Which tool manages this object, by the marks it leaves on what it makes."""
    metadata: dict[str, Any] = item["metadata"]
    labels = metadata.get("labels") or {}
    for label, tool in _BY_LABEL.items():
        if label in labels:
            return tool
    for reference in metadata.get("ownerReferences") or []:
        tool = _BY_OWNER_KIND.get(str(reference.get("kind")), Tool.PLAIN)
        if tool.reverts:
            return tool
    common = common_owner(item)
    return Tool(common.value) if common.reverts and common is not CommonTool.CLI else Tool.PLAIN


def require_ours(item: Object, place: str, cluster: str, accept: Collection[Tool], remedy: str) -> None:
    """Refuse to write what a tool would revert.

    Args:
        place: `secret istio-system/cacerts`.
        accept: Tools whose source somebody has made to say the same.
        remedy: What to put into the tool's source; public texts only.

    Raises:
        OwnedElsewhere: A tool manages the object.
    """
    tool = owner_of(item)
    if not tool.reverts or tool in accept:
        return
    raise OwnedElsewhere(
        f"{tool.value} manages this object and would undo the write",
        where=f"{place} in cluster {cluster}",
        observed=f"marks of {tool.value} on it",
        expected="an object that nothing else writes",
        next_command=f"commit the change at its source, then run the same command again:\n{remedy}",
    )
