"""What may we do here? Rights, asked of the live API server one by one, and the roles that would grant them.

Each is asked for by a SelfSubjectAccessReview (authorization.k8s.io/v1), which goes through every authorizer of the
server, webhooks included, just as the request itself will. A SelfSubjectRulesReview would be one question for all, but
may say `incomplete` and knows nothing of what a webhook refuses (Kubernetes, "Checking API access"), so it is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from capstan.cluster.parallel import map_bounded
from capstan.cluster.resources import Resource
from capstan.errors import InvalidInput, NotFound, ServerFault

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object

AT_ONCE: Final = 8  # reviews under way at a time: fewer than the connections that are kept open
ACCESS_REVIEWS: Final = Resource(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False
)
SUBJECT_REVIEWS: Final = Resource(
    "authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", namespaced=False
)
_RBAC: Final = "rbac.authorization.k8s.io"
_SERVICE_ACCOUNT: Final = "system:serviceaccount:"


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """One verb on one resource.

    Attributes:
        verb: As RBAC knows it: `get`, `list`, `watch`, `create`, `update`, `patch`.
        resource: Plural name, with the subresource after a slash: `pods/portforward`.
        group: API group; empty for the core group.
        namespace: Empty for cluster-scoped objects, and for all namespaces.
        name: Empty for all objects.
    """

    verb: str
    resource: str
    group: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def attributes(self) -> dict[str, str]:
        """`spec.resourceAttributes` of a review; what is empty means "all"."""
        plural, _, subresource = self.resource.partition("/")
        given = {
            "namespace": self.namespace, "verb": self.verb, "group": self.group, "resource": plural,
            "subresource": subresource, "name": self.name,
        }  # fmt: skip
        return {key: value for key, value in given.items() if value}

    @property
    def kubectl(self) -> str:
        """The kubectl command that asks the same."""
        plural, _, subresource = self.resource.partition("/")
        what = (f"{plural}.{self.group}" if self.group else plural) + (f"/{self.name}" if self.name else "")
        part = f" --subresource={subresource}" if subresource else ""
        return f"kubectl auth can-i {self.verb} {what}{part}" + (f" -n {self.namespace}" if self.namespace else " -A")

    @property
    def what(self) -> str:
        """All but the verb: `secrets linkerd-identity-issuer in namespace linkerd`."""
        named = f" {self.name}" if self.name else ""
        where = f"namespace {self.namespace}" if self.namespace else "the whole cluster"
        kind = f"{self.resource}.{self.group}" if self.group and "/" not in self.resource else self.resource
        return f"{kind}{named} in {where}"

    def __str__(self) -> str:
        return f"{self.verb} {self.what}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server said to one right.

    Attributes:
        reason: The authorizer's own words; empty where it gave none.
    """

    right: Right
    allowed: bool
    reason: str = ""


def may(cluster: Cluster, rights: Iterable[Right]) -> list[Answer]:
    """Ask the API server for each of these rights; the answers in their order.

    Raises:
        Denied: Even asking is not permitted (ClusterRole `system:basic-user` permits it to everybody who is known).
        ServerFault: An answer that is none. Others: as any read.
    """

    def ask(right: Right) -> Answer:
        body = {
            "apiVersion": ACCESS_REVIEWS.api_version, "kind": ACCESS_REVIEWS.kind, "metadata": {},
            "spec": {"resourceAttributes": right.attributes},
        }  # fmt: skip
        status = cluster.review(ACCESS_REVIEWS, body).get("status") or {}
        if not isinstance(status.get("allowed"), bool):
            raise ServerFault(
                "the API server did not answer an access review", where=f"{right} in cluster {cluster.name}",
                observed="no status.allowed", expected="true or false", next_command=right.kubectl,
            )  # fmt: skip
        said = [str(status[key]) for key in ("reason", "evaluationError") if status.get(key)]
        return Answer(right, status["allowed"], "; ".join(said))

    return map_bounded(ask, rights, limit=AT_ONCE)


def who_am_i(cluster: Cluster) -> str:
    """The name under which the API server knows us; empty where it does not tell (before Kubernetes 1.28).

    Raises:
        As any read.
    """
    body = {"apiVersion": SUBJECT_REVIEWS.api_version, "kind": SUBJECT_REVIEWS.kind, "metadata": {}}
    try:
        status = cluster.review(SUBJECT_REVIEWS, body).get("status") or {}
    except NotFound:
        return ""
    return str((status.get("userInfo") or {}).get("username", ""))


def grant(rights: Sequence[Right], user: str, name: str = "capstan-missing") -> list[Object]:
    """The roles and bindings that would give a user exactly these rights, in the order in which to apply them.

    Args:
        user: As `who_am_i` has it.
        name: Of the roles and bindings.

    Raises:
        InvalidInput: The user has no name.
    """
    if not user:
        raise InvalidInput(
            "nobody to give rights to", where="the roles to be printed", observed="no user name",
            expected="the name under which the API server knows the caller", next_command="kubectl auth whoami",
        )  # fmt: skip
    found: list[Object] = []
    for namespace in sorted({right.namespace for right in rights}):
        prefix = "" if namespace else "Cluster"
        metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
        kinds = {"apiVersion": f"{_RBAC}/v1", "metadata": metadata}
        rules = _rules([right for right in rights if right.namespace == namespace])
        found.append({**kinds, "kind": f"{prefix}Role", "rules": rules})
        reference = {"apiGroup": _RBAC, "kind": f"{prefix}Role", "name": name}
        found.append({**kinds, "kind": f"{prefix}RoleBinding", "roleRef": reference, "subjects": [_subject(user)]})
    return found


def _rules(rights: Sequence[Right]) -> list[dict[str, Any]]:
    """Verbs on one resource and set of names together."""
    names: dict[tuple[str, str, str], set[str]] = {}
    for right in rights:
        names.setdefault((right.group, right.resource, right.verb), set()).add(right.name)
    verbs: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (group, resource, verb), of in sorted(names.items()):
        verbs.setdefault((group, resource, () if "" in of else tuple(sorted(of))), []).append(verb)
    return [
        {
            "apiGroups": [group],
            "resources": [resource],
            **({"resourceNames": list(only)} if only else {}),
            "verbs": found,
        }
        for (group, resource, only), found in verbs.items()
    ]


def _subject(user: str) -> dict[str, str]:
    if user.startswith(_SERVICE_ACCOUNT):
        namespace, _, account = user.removeprefix(_SERVICE_ACCOUNT).partition(":")
        return {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    return {"apiGroup": _RBAC, "kind": "User", "name": user}
