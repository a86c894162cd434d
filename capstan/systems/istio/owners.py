"""Which tool writes an object of Istio's CA, and would undo our write.

The marks are those that each tool leaves on every object (`capstan.systems.linkerd.layout` knows them).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

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
    CONTROLLER = "a controller"

    @property
    def reverts(self) -> bool:
        """Whether it undoes a direct write: at once, at its next sync, or (Helm) at the next upgrade."""
        return self is not Tool.PLAIN


def owner_of(item: Object) -> Tool:
    """Which tool manages this object, by the marks it leaves on what it makes."""
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
