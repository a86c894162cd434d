"""Authorization: members of system:masters may do everything, everybody else what RBAC objects grant.

Two differences from a ``Node,RBAC`` server: kubelets get their rights from ClusterRole system:node (bound to group
system:nodes) instead of the Node authorizer, and nobody is told about evaluation errors beyond a missing role.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .rbac import Attributes, Rule, rule_allows, subject_is, subject_text
from .status import ApiStatusError, forbidden
from .users import MASTERS, User

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .store import Store

GROUP = "rbac.authorization.k8s.io"
ROLES = f"roles.{GROUP}"
CLUSTER_ROLES = f"clusterroles.{GROUP}"
ROLE_BINDINGS = f"rolebindings.{GROUP}"
CLUSTER_ROLE_BINDINGS = f"clusterrolebindings.{GROUP}"


@dataclass(frozen=True)
class Decision:
    """`reason` is what an access review shows, and what a 403 has after its colon."""

    allowed: bool
    reason: str = ""


@dataclass(frozen=True)
class Grant:
    """A rule somebody holds, and how it came to them."""

    rule: Rule
    reason: str


@dataclass(frozen=True)
class Asked:
    """What somebody who is no administrator asked to do, and the answer; `path` only for what is no resource."""

    user: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    path: str
    allowed: bool


class Authorizer:
    """Answers from the RBAC objects in the store, read anew at every question.

    `asked` counts the answers to requests (not those to access reviews): which rights somebody really uses.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: collections.Counter[Asked] = collections.Counter()

    def authorize(self, asked: Attributes) -> None:
        """Raises ApiStatusError 403 with the words of a real server."""
        decision = self.decide(asked)
        if MASTERS not in asked.user.groups:
            one = normalised(asked)
            self.asked[
                Asked(
                    one.user.username, one.verb, one.group, one.combined_resource, one.namespace, one.name, one.path,
                    decision.allowed,
                )
            ] += 1  # fmt: skip
        if not decision.allowed:
            raise denial(asked, decision.reason)

    def decide(self, asked: Attributes) -> Decision:
        if MASTERS in asked.user.groups:
            return Decision(True)
        asked = normalised(asked)
        missing: list[str] = []
        for grant in self._grants(asked.user, asked.namespace, missing):
            if rule_allows(grant.rule, asked):
                return Decision(True, grant.reason)
        if not missing:
            return Decision(False)
        text = missing[0] if len(missing) == 1 else f"[{', '.join(missing)}]"
        return Decision(False, f"RBAC: {text}")

    def rules(self, user: User, namespace: str) -> tuple[list[Rule], list[str]]:
        """All rules a user holds in a namespace ("" = at cluster scope only), and the errors met on the way."""
        missing: list[str] = []
        grants = [grant.rule for grant in self._grants(user, namespace, missing)]
        if MASTERS in user.groups:
            everything = [
                {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
                {"verbs": ["*"], "nonResourceURLs": ["*"]},
            ]
            grants = [*everything, *grants]
        return grants, missing

    def role_rules(self, reference: dict[str, Any], namespace: str) -> list[Rule] | None:
        """The rules of a roleRef seen from a binding in `namespace`; None when the role does not exist."""
        if reference.get("kind") == "ClusterRole":
            found = self._store.get(CLUSTER_ROLES, "", reference.get("name", ""))
        else:
            found = self._store.get(ROLES, namespace, reference.get("name", ""))
        if found is None:
            return None
        rules: list[Rule] = found.obj.get("rules") or []
        return rules

    def _grants(self, user: User, namespace: str, missing: list[str]) -> Iterator[Grant]:
        for binding in self._store.objects(CLUSTER_ROLE_BINDINGS):
            yield from self._granted_by(binding.obj, "ClusterRoleBinding", "", user, missing)
        if namespace:
            for binding in self._store.objects(ROLE_BINDINGS, namespace):
                yield from self._granted_by(binding.obj, "RoleBinding", namespace, user, missing)

    def _granted_by(
        self, binding: dict[str, Any], kind: str, namespace: str, user: User, missing: list[str]
    ) -> Iterator[Grant]:
        subject = next((s for s in binding.get("subjects") or [] if subject_is(s, user, namespace)), None)
        if subject is None:
            return
        reference = binding["roleRef"]
        rules = self.role_rules(reference, namespace)
        if rules is None:
            plural = "clusterrole" if reference.get("kind") == "ClusterRole" else "role"
            missing.append(f'{plural}.{GROUP} "{reference.get("name")}" not found')
            return
        name = binding["metadata"]["name"]
        shown = f"{name}/{namespace}" if namespace else name
        reason = (
            f'RBAC: allowed by {kind} "{shown}" of {reference.get("kind")} "{reference.get("name")}" '
            f"to {subject_text(subject)}"
        )
        for rule in rules:
            yield Grant(rule, reason)


def normalised(asked: Attributes) -> Attributes:
    """A request on one Namespace object happens in that namespace, as the real server's request info has it."""
    if asked.resource == "namespaces" and asked.group == "" and asked.name and not asked.namespace:
        return replace(asked, namespace=asked.name)
    return asked


def denial(asked: Attributes, reason: str = "") -> ApiStatusError:
    """The 403 for something not granted."""
    asked = normalised(asked)
    tail = f": {reason}" if reason else ""
    if asked.path:
        return forbidden("", "", f'User "{asked.user.username}" cannot {asked.verb} path "{asked.path}"{tail}')
    where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
    message = (
        f'User "{asked.user.username}" cannot {asked.verb} resource "{asked.combined_resource}" '
        f'in API group "{asked.group}" {where}{tail}'
    )
    return forbidden(asked.resource, asked.name, message, asked.group)
