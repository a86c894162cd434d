"""Which roles an identity has on a Key Vault, and which of its secrets they let it read.

Source: Azure documentation, "Provide access to Key Vault keys, certificates, and secrets with Azure role-based access
control" (roles on single secrets, too); "Understand Azure role definitions" (data actions, wildcards, notDataActions).
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from capstan.systems.aks.arm import Arm

API: Final = "2022-04-01"
READS_SECRETS: Final = "Microsoft.KeyVault/vaults/secrets/getSecret/action"
SECRETS_USER: Final = uuid.UUID("4633458b-17de-408a-b874-0445c86b69e6")
"""Role definition `Key Vault Secrets User` (Azure built-in roles)."""
_READERS: Final = {
    SECRETS_USER: "Key Vault Secrets User",
    uuid.UUID("b86a8fe4-44ce-4948-aee5-eccb2c155cd7"): "Key Vault Secrets Officer",
    uuid.UUID("00482a5a-887f-4fb3-b363-3b7fe8e74483"): "Key Vault Administrator",
}


@dataclass(frozen=True, slots=True)
class Role:
    """One role that an identity has somewhere.

    Attributes:
        name: As people know it.
        scope: ARM id below which it holds: of a subscription, a group, a vault, or one secret.
        reads_secrets: Whether it lets its holder read the values of secrets.
    """

    name: str
    scope: str
    reads_secrets: bool

    def reads(self, vault_id: str, secret: str) -> bool:
        """Whether its holder may read this secret."""
        wanted, scope = f"{vault_id.rstrip('/')}/secrets/{secret}/".lower(), f"{self.scope.rstrip('/')}/".lower()
        return self.reads_secrets and wanted.startswith(scope)


def of(arm: Arm, vault_id: str, identity: str) -> tuple[Role, ...]:
    """The roles of an identity, its groups' included, that may bear on a vault.

    Args:
        identity: Object id.

    Raises:
        NotFound, Denied: They, or what one of them allows, may not be seen. Others: as Resource Manager.
    """
    path = f"{vault_id.rstrip('/')}/providers/Microsoft.Authorization/roleAssignments"
    assignments = arm.get(path, API, {"$filter": f"assignedTo('{identity}')"}).get("value") or []
    return tuple(_role(arm, each.get("properties") or {}, vault_id) for each in assignments)


def allows(permissions: Iterable[Mapping[str, Any]], action: str) -> bool:
    """Whether a role definition's permissions hold a data action: one of them names it, and does not take it out."""
    return any(
        _named(each.get("dataActions"), action) and not _named(each.get("notDataActions"), action)
        for each in permissions
    )


def _role(arm: Arm, assignment: Mapping[str, Any], vault_id: str) -> Role:
    definition, scope = str(assignment.get("roleDefinitionId", "")), str(assignment.get("scope") or vault_id)
    try:
        known = _READERS.get(uuid.UUID(definition.rpartition("/")[2]))
    except ValueError:
        known = None
    if known:
        return Role(known, scope, reads_secrets=True)
    properties = arm.get(definition, API).get("properties") or {}
    name = str(properties.get("roleName") or definition.rpartition("/")[2])
    return Role(name, scope, reads_secrets=allows(properties.get("permissions") or [], READS_SECRETS))


def _named(patterns: object, action: str) -> bool:
    """Whether one of the patterns, in which `*` stands for anything, is the action's; case does not count."""
    return any(
        re.fullmatch(".*".join(map(re.escape, str(each).split("*"))), action, re.IGNORECASE)
        for each in (patterns if isinstance(patterns, list) else ())
    )
