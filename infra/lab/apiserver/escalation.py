"""Privilege escalation: nobody writes a role or a binding which grants more than they hold themselves.

Kubernetes documentation, "Using RBAC Authorization", section "Privilege escalation prevention and bootstrapping". The
ways around it are the verbs ``escalate`` (on roles) and ``bind`` (on the role referred to), and group system:masters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .admission_errors import refusal
from .authz import GROUP, Authorizer
from .rbac import Attributes, Rule, compacted, described, quoted, uncovered
from .status import not_found
from .users import MASTERS

if TYPE_CHECKING:
    from .api import AdmissionAttributes

_EVERYTHING: list[Rule] = [
    {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
    {"nonResourceURLs": ["*"], "verbs": ["*"]},
]


def check(attributes: AdmissionAttributes, authorizer: Authorizer) -> None:
    """Raises ApiStatusError 403 for an escalation, 404 for a binding to a role that does not exist."""
    if attributes.kind.group != GROUP or attributes.obj is None or attributes.operation not in ("CREATE", "UPDATE"):
        return
    if MASTERS in attributes.user.groups:
        return
    if attributes.kind.kind in ("Role", "ClusterRole"):
        _role(attributes, attributes.obj, authorizer)
    else:
        _binding(attributes, attributes.obj, authorizer)


def _role(attributes: AdmissionAttributes, role: dict[str, Any], authorizer: Authorizer) -> None:
    unchanged = (
        attributes.old is not None
        and (role.get("rules") or []) == (attributes.old.get("rules") or [])
        and role.get("aggregationRule") == attributes.old.get("aggregationRule")
    )
    name = role["metadata"].get("name", "")
    asked = Attributes(attributes.user, "escalate", GROUP, "v1", attributes.kind.plural, "", attributes.namespace, name)
    if unchanged or authorizer.decide(asked).allowed:
        return
    _confirm(attributes, authorizer, role.get("rules") or [])
    if role.get("aggregationRule"):
        # Whatever may ever be selected: only somebody who holds everything can promise that.
        _confirm(attributes, authorizer, _EVERYTHING)


def _binding(attributes: AdmissionAttributes, binding: dict[str, Any], authorizer: Authorizer) -> None:
    reference = binding.get("roleRef") or {}
    plural = "clusterroles" if reference.get("kind") == "ClusterRole" else "roles"
    name = reference.get("name", "")
    asked = Attributes(attributes.user, "bind", GROUP, "v1", plural, "", attributes.namespace, name)
    if authorizer.decide(asked).allowed:
        return
    rules = authorizer.role_rules(reference, attributes.namespace)
    if rules is None:
        raise not_found(plural, name, GROUP)
    _confirm(attributes, authorizer, rules)


def _confirm(attributes: AdmissionAttributes, authorizer: Authorizer, wanted: list[Rule]) -> None:
    held, errors = authorizer.rules(attributes.user, attributes.namespace)
    missing = uncovered(held, wanted)
    if not missing:
        return
    descriptions = sorted({described(rule) for rule in compacted(missing)})
    user = attributes.user
    message = f'user "{user.username}" (groups={quoted(user.groups)}) is attempting to grant RBAC permissions '
    message += "not currently held:\n" + "\n".join(descriptions)
    if errors:
        message += f"; resolution errors: [{', '.join(errors)}]"
    raise refusal(attributes, message)
