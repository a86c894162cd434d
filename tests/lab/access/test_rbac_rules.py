"""What rules allow, what covers what, and the roles a cluster starts with."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.lab.apiserver.authz import CLUSTER_ROLES, Authorizer
from infra.lab.apiserver.bootstrap_rbac import bootstrap
from infra.lab.apiserver.rbac import Attributes, compacted, described, path_matches, rule_allows, uncovered
from infra.lab.apiserver.store import Store
from infra.lab.apiserver.users import User

JANE = User("jane", groups=("devs", "system:authenticated"))
RBAC = "rbac.authorization.k8s.io"


def rule(verbs: str, resources: str, groups: str = "", names: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {
        "verbs": verbs.split(),
        "resources": resources.split(),
        "apiGroups": [g.strip("'") for g in groups.split()] or [""],
    }
    return {**out, "resourceNames": names.split()} if names else out


def asks(verb: str, resource: str, name: str = "", group: str = "") -> Attributes:
    plural, _, sub = resource.partition("/")
    return Attributes(JANE, verb, group, "v1", plural, sub, "ns", name)


@pytest.mark.parametrize(
    ("given_rule", "asked", "allowed"),
    [
        (rule("get", "pods"), asks("get", "pods", "x"), True),
        (rule("get", "pods"), asks("list", "pods"), False),
        (rule("*", "pods"), asks("deletecollection", "pods"), True),
        (rule("get", "pods"), asks("get", "pods/log", "x"), False),
        (rule("get", "pods/log"), asks("get", "pods/log", "x"), True),
        (rule("get", "pods/log"), asks("get", "pods", "x"), False),
        (rule("get", "*"), asks("get", "pods/log", "x"), True),
        (rule("get", "*/log"), asks("get", "pods/log", "x"), True),
        (rule("get", "*/log"), asks("get", "pods", "x"), False),
        (rule("get", "pods/*"), asks("get", "pods/log", "x"), False),
        (rule("get", "secrets", names="a b"), asks("get", "secrets", "b"), True),
        (rule("get", "secrets", names="a b"), asks("get", "secrets", "c"), False),
        (rule("list", "secrets", names="a"), asks("list", "secrets"), False),
        (rule("get", "deployments", "apps"), asks("get", "deployments", "x"), False),
        (rule("get", "deployments", "*"), asks("get", "deployments", "x", "apps"), True),
        ({"verbs": ["get"], "nonResourceURLs": ["*"]}, asks("get", "pods", "x"), False),
    ],
)
def test_a_rule_allows_exactly_what_it_names(given_rule: dict[str, Any], asked: Attributes, allowed: bool) -> None:
    assert rule_allows(given_rule, asked) is allowed


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/healthz", "/healthz", True),
        ("/healthz", "/healthz/ping", False),
        ("/healthz/*", "/healthz/ping", True),
        ("/healthz/*", "/healthz", False),
        ("*", "/anything", True),
        ("/api*", "/apis/apps", True),
    ],
)
def test_paths_match_exactly_or_by_prefix(pattern: str, path: str, matches: bool) -> None:
    assert path_matches(pattern, path) is matches


VERBS, GROUPS, NAMES = ["get", "list", "update"], ["", "apps"], ["", "a", "b"]
RESOURCES = ["pods", "pods/log", "deployments"]


def some(values: list[str], least: int = 1) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=least, max_size=3, unique=True)


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    out: dict[str, Any] = {
        "verbs": draw(some([*VERBS, "*"])),
        "apiGroups": draw(some([*GROUPS, "*"])),
        "resources": draw(some([*RESOURCES, "*", "*/log"])),
    }
    names = draw(some(["a", "b"], least=0))
    return {**out, "resourceNames": names} if names else out


@settings(max_examples=120, deadline=None)
@given(owner=st.lists(rules(), max_size=3), wanted=rules())
def test_whoever_covers_a_rule_may_do_all_that_the_rule_allows(
    owner: list[dict[str, Any]], wanted: dict[str, Any]
) -> None:
    if uncovered(owner, [wanted]):
        return
    for verb, group, resource, name in itertools.product(VERBS, GROUPS, RESOURCES, NAMES):
        asked = asks(verb, resource, name, group)
        if rule_allows(wanted, asked):
            assert any(rule_allows(have, asked) for have in owner), (asked, owner)


@settings(max_examples=60, deadline=None)
@given(owned=rules())
def test_everybody_covers_what_they_hold(owned: dict[str, Any]) -> None:
    assert uncovered([owned], [owned]) == []


def test_missing_permissions_are_described_resource_by_resource() -> None:
    missing = uncovered([rule("get", "secrets")], [rule("get list watch", "secrets pods")])
    assert sorted(described(r) for r in compacted(missing)) == [
        '{APIGroups:[""], Resources:["pods"], Verbs:["get" "list" "watch"]}',
        '{APIGroups:[""], Resources:["secrets"], Verbs:["list" "watch"]}',
    ]


@pytest.fixture(scope="module")
def store() -> Store:
    store = Store()
    bootstrap(store)
    return store


def test_the_administrators_group_may_do_everything_and_strangers_only_look_around(store: Store) -> None:
    authorizer = Authorizer(store)
    master = User("root", groups=("system:masters",))
    assert authorizer.decide(Attributes(master, "delete", "", "v1", "nodes", "", "", "x")).allowed
    assert authorizer.decide(Attributes(JANE, "get", path="/apis/apps")).allowed
    assert authorizer.decide(
        Attributes(JANE, "create", "authorization.k8s.io", "v1", "selfsubjectaccessreviews")
    ).allowed
    assert not authorizer.decide(Attributes(JANE, "get", "", "v1", "pods", "", "ns", "x")).allowed
    nobody = User("system:anonymous", groups=("system:unauthenticated",))
    assert authorizer.decide(Attributes(nobody, "get", path="/version")).allowed
    assert not authorizer.decide(Attributes(nobody, "get", path="/api")).allowed


def bind(store: Store, name: str, role: str, namespace: str = "", kind: str = "ClusterRole") -> None:
    binding = {
        "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
        "subjects": [{"kind": "Group", "name": name}],
        "roleRef": {"apiGroup": RBAC, "kind": kind, "name": role},
    }
    plural = "rolebindings" if namespace else "clusterrolebindings"
    store.create(f"{plural}.{RBAC}", (namespace, name), binding)


def may(store: Store, group: str, verb: str, resource: str, namespace: str = "ns") -> bool:
    user = User("u", groups=(group,))
    plural, _, sub = resource.partition("/")
    return Authorizer(store).decide(Attributes(user, verb, "", "v1", plural, sub, namespace, "")).allowed


def test_view_edit_and_admin_contain_each_other_but_viewers_see_no_secrets() -> None:
    store = Store()
    bootstrap(store)
    for role in ("view", "edit", "admin"):
        bind(store, role, role, "ns")
    assert may(store, "view", "list", "pods")
    assert not may(store, "view", "get", "secrets")
    assert not may(store, "view", "create", "pods/portforward")
    assert may(store, "edit", "list", "pods")
    assert may(store, "edit", "get", "secrets")
    assert may(store, "edit", "create", "pods/portforward")
    assert may(store, "admin", "get", "secrets")
    assert not may(store, "admin", "list", "pods", "elsewhere")


def test_a_role_labelled_for_aggregation_joins_the_aggregate_and_leaves_it_again() -> None:
    store = Store()
    bootstrap(store)
    bind(store, "view", "view", "ns")
    bind(store, "admin", "admin", "ns")
    assert not may(store, "view", "get", "widgets")
    labels = {"rbac.authorization.k8s.io/aggregate-to-view": "true"}
    role = {"kind": "ClusterRole", "metadata": {"name": "w", "labels": labels}, "rules": [rule("get", "widgets")]}
    stored = store.create(CLUSTER_ROLES, ("", "w"), role)
    assert may(store, "view", "get", "widgets")
    assert may(store, "admin", "get", "widgets")  # through edit
    store.delete(CLUSTER_ROLES, ("", "w"), stored.rv)
    assert not may(store, "view", "get", "widgets")
    assert not may(store, "admin", "get", "widgets")


def test_a_binding_to_a_missing_role_is_named_in_the_refusal() -> None:
    store = Store()
    bind(store, "devs", "nowhere")
    decision = Authorizer(store).decide(Attributes(JANE, "get", "", "v1", "pods", "", "ns", "x"))
    assert decision.reason == f'RBAC: clusterrole.{RBAC} "nowhere" not found'


def test_a_namespace_object_counts_as_inside_itself() -> None:
    store = Store()
    role = {"kind": "Role", "metadata": {"name": "r", "namespace": "mine"}, "rules": [rule("get", "namespaces")]}
    store.create(f"roles.{RBAC}", ("mine", "r"), role)
    bind(store, "devs", "r", "mine", kind="Role")
    authorizer = Authorizer(store)
    assert authorizer.decide(Attributes(JANE, "get", "", "v1", "namespaces", "", "", "mine")).allowed
    assert not authorizer.decide(Attributes(JANE, "get", "", "v1", "namespaces", "", "", "other")).allowed
