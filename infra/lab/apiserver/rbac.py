"""Role-based access control, the pure part: what a rule allows, and whether one set of rules covers another.

Semantics of rbac.authorization.k8s.io/v1 (Kubernetes docs, "Using RBAC Authorization").
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .users import User

Rule = dict[str, Any]


@dataclass(frozen=True)
class Attributes:
    """What is asked for: a verb on a resource, or (`path` not empty) on a non-resource path.

    `verb` is the API verb (get, list, watch, create, update, patch, delete, deletecollection, or one like bind); for
    paths the lower-case HTTP method. `namespace` is empty at cluster scope, `name` where no single object is meant.
    """

    user: User
    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def combined_resource(self) -> str:
        """``pods/log``."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


def rule_allows(rule: Rule, asked: Attributes) -> bool:
    """Whether one rule grants what is asked for."""
    if not _has(rule.get("verbs"), asked.verb):
        return False
    if asked.path:
        return any(path_matches(pattern, asked.path) for pattern in rule.get("nonResourceURLs") or [])
    names = rule.get("resourceNames") or []
    return (
        _has(rule.get("apiGroups"), asked.group)
        and _resource_matches(rule.get("resources") or [], asked.combined_resource, asked.subresource)
        and (not names or asked.name in names)
    )


def path_matches(pattern: str, path: str) -> bool:
    """A non-resource URL: exact, ``*``, or a prefix that ends in ``*``."""
    return pattern in ("*", path) or (pattern.endswith("*") and path.startswith(pattern.rstrip("*")))


def _has(values: Sequence[str] | None, wanted: str) -> bool:
    return values is not None and ("*" in values or wanted in values)


def _resource_matches(resources: Sequence[str], combined: str, subresource: str) -> bool:
    return any(
        pattern in ("*", combined) or (bool(subresource) and pattern == f"*/{subresource}") for pattern in resources
    )


# Covering: may somebody who holds `owner` hand out `wanted`?


def uncovered(owner: Sequence[Rule], wanted: Sequence[Rule]) -> list[Rule]:
    """Those single permissions within `wanted` which no rule of `owner` contains, in order."""
    return [single for rule in wanted for single in singles(rule) if not any(_covers(have, single) for have in owner)]


def singles(rule: Rule) -> Iterator[Rule]:
    """A rule broken down to one group, resource, name and verb each (or one URL and verb)."""
    verbs = rule.get("verbs") or []
    groups, resources = rule.get("apiGroups") or [], rule.get("resources") or []
    for group, resource, verb in itertools.product(groups, resources, verbs):
        names = rule.get("resourceNames") or []
        for name in names or [None]:
            single = {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
            yield {**single, "resourceNames": [name]} if name is not None else single
    for url, verb in itertools.product(rule.get("nonResourceURLs") or [], verbs):
        yield {"nonResourceURLs": [url], "verbs": [verb]}


def _covers(have: Rule, single: Rule) -> bool:
    verbs = have.get("verbs") or []
    if "*" not in verbs and single["verbs"][0] not in verbs:
        return False
    if "nonResourceURLs" in single:
        wanted = single["nonResourceURLs"][0]
        return any(path_matches(pattern, wanted) for pattern in have.get("nonResourceURLs") or [])
    names = have.get("resourceNames") or []
    resource = single["resources"][0]
    subresource = resource.partition("/")[2]
    return (
        _has(have.get("apiGroups"), single["apiGroups"][0])
        and _resource_matches(have.get("resources") or [], resource, subresource)
        and (not names or (bool(single.get("resourceNames")) and single["resourceNames"][0] in names))
    )


def compacted(rules: Iterable[Rule]) -> list[Rule]:
    """Single permissions on the same resource joined into one rule with several verbs, for messages."""
    joined: dict[str, Rule] = {}
    rest: list[Rule] = []
    for rule in rules:
        if "nonResourceURLs" in rule:
            rest.append(rule)
            continue
        key = json.dumps([rule["apiGroups"], rule["resources"], rule.get("resourceNames")])
        if key in joined:
            joined[key]["verbs"] = [*joined[key]["verbs"], *rule["verbs"]]
        else:
            joined[key] = dict(rule)
    return [*joined.values(), *rest]


def described(rule: Rule) -> str:
    """``{APIGroups:["apps"], Resources:["deployments"], Verbs:["get" "list"]}``."""
    members = (
        ("APIGroups", "apiGroups"),
        ("Resources", "resources"),
        ("NonResourceURLs", "nonResourceURLs"),
        ("ResourceNames", "resourceNames"),
        ("Verbs", "verbs"),
    )
    parts = [f"{title}:{quoted(rule[key])}" for title, key in members if rule.get(key)]
    return "{" + ", ".join(parts) + "}"


def quoted(values: Iterable[str]) -> str:
    """A list as Go's ``%q`` prints it: ``["a" "b"]``."""
    return "[" + " ".join(json.dumps(value, ensure_ascii=False) for value in values) + "]"


# Subjects and aggregation


def subject_is(subject: Mapping[str, Any], user: User, namespace: str) -> bool:
    """Whether a binding's subject means this user; `namespace` is the binding's, the default of ServiceAccounts."""
    kind, name = subject.get("kind"), subject.get("name", "")
    if kind == "User":
        return bool(user.username == name)
    if kind == "Group":
        return name in user.groups
    if kind == "ServiceAccount":
        within = subject.get("namespace") or namespace
        return bool(within) and user.username == f"system:serviceaccount:{within}:{name}"
    return False


def subject_text(subject: Mapping[str, Any]) -> str:
    """``ServiceAccount "limited/default"``, as in the reason of an access review."""
    if subject.get("kind") == "ServiceAccount":
        return f'{subject["kind"]} "{subject.get("name")}/{subject.get("namespace", "")}"'
    return f'{subject.get("kind")} "{subject.get("name")}"'
