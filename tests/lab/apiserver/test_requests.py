"""What a path asks for, and requests at the edges of the API."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from infra.lab.apiserver.kinds import Registry, version_priority
from infra.lab.apiserver.negotiation import negotiate
from infra.lab.apiserver.request import Query, parse
from infra.lab.apiserver.status import ApiStatusError

if TYPE_CHECKING:
    import httpx


@pytest.mark.parametrize(
    ("method", "path", "query", "expected"),
    [
        ("GET", "/api/v1/pods", "", ("list", "", "pods", "", "", "")),
        ("GET", "/api/v1/pods", "watch=1", ("watch", "", "pods", "", "", "")),
        ("GET", "/api/v1/pods", "watch", ("watch", "", "pods", "", "", "")),
        ("GET", "/api/v1/pods", "watch=false", ("list", "", "pods", "", "", "")),
        ("GET", "/api/v1/namespaces/a/pods/p", "watch=1", ("get", "", "pods", "", "a", "p")),
        ("POST", "/api/v1/namespaces/a/pods/p/eviction", "", ("create", "", "pods", "eviction", "a", "p")),
        ("GET", "/api/v1/namespaces/a", "", ("get", "", "namespaces", "", "a", "a")),
        ("PUT", "/api/v1/namespaces/a/finalize", "", ("update", "", "namespaces", "finalize", "a", "a")),
        ("DELETE", "/apis/batch/v1/namespaces/a/jobs", "", ("deletecollection", "batch", "jobs", "", "a", "")),
        ("PATCH", "/api/v1/namespaces/a/pods/d/status", "", ("patch", "", "pods", "status", "a", "d")),
        ("GET", "/api/v1/watch/namespaces/a/secrets", "", ("watch", "", "secrets", "", "a", "")),
    ],
)  # fmt: skip
def test_a_path_is_read_as_verb_resource_and_name(method: str, path: str, query: str, expected: tuple) -> None:
    info = parse(method, path, Query(query.encode()), Registry())
    assert (info.verb, info.group, info.resource, info.subresource, info.namespace, info.name) == expected
    assert info.kind is not None


def test_a_path_outside_the_resources_is_no_resource() -> None:
    for path in ("/version", "/api", "/apis/apps", "/apis/apps/v1", "/openapi/v3", "/"):
        assert not parse("GET", path, Query(b""), Registry()).is_resource


@pytest.mark.parametrize(
    ("header", "media", "transform"),
    [
        ("", "application/json", ""),
        ("*/*", "application/json", ""),
        ("application/vnd.kubernetes.protobuf,application/json", "application/json", ""),
        ("application/yaml", "application/yaml", ""),
        ("text/html, application/json;q=0.9", "application/json", ""),
        ("application/json;q=0.5, application/yaml", "application/yaml", ""),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "application/json", "Table"),
        ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", "application/json", ""),
    ],
)
def test_the_representation_follows_the_accept_header(header: str, media: str, transform: str) -> None:
    accepted = negotiate(header)
    assert (accepted.media_type, accepted.transform) == (media, transform)


def test_a_client_that_takes_nothing_we_have_gets_406() -> None:
    with pytest.raises(ApiStatusError) as refused:
        negotiate("text/html")
    assert refused.value.code == 406


def test_stable_versions_come_before_betas_and_higher_numbers_first() -> None:
    versions = ["v1alpha1", "v2beta1", "v10", "v1", "v2", "v1beta2"]
    assert sorted(versions, key=version_priority, reverse=True) == ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1"]


def test_an_old_style_watch_of_one_object_sees_only_that_object(http: httpx.Client) -> None:
    for name in ("watched", "unwatched"):
        http.post("/api/v1/namespaces/default/configmaps", json={"metadata": {"name": name}})
    answer = http.get("/api/v1/watch/namespaces/default/configmaps/watched?timeoutSeconds=1")
    assert [json.loads(line)["object"]["metadata"]["name"] for line in answer.text.splitlines()] == ["watched"]


def test_an_object_is_also_written_and_read_as_yaml(http: httpx.Client) -> None:
    body = "metadata:\n  name: from-yaml\ndata:\n  text: |\n    two\n    lines\n"
    url = "/api/v1/namespaces/default/configmaps"
    answer = http.post(url, content=body, headers={"content-type": "application/yaml", "accept": "application/yaml"})
    assert (answer.status_code, answer.headers["content-type"]) == (201, "application/yaml")
    assert http.get(f"{url}/from-yaml").json()["data"] == {"text": "two\nlines\n"}
    assert "text: |" in answer.text or "two\\nlines" in answer.text


def test_creating_without_a_namespace_in_the_path_is_not_allowed(http: httpx.Client) -> None:
    assert http.post("/api/v1/configmaps", json={"metadata": {"name": "x"}}).status_code == 405
    assert http.get("/api/v1/configmaps/x").status_code == 404
    assert http.get("/api/v1/namespaces/default/nodes").status_code == 404


def test_a_read_at_a_version_that_is_no_number_fails_without_a_reason(http: httpx.Client) -> None:
    answer = http.get("/api/v1/namespaces/default?resourceVersion=abc")
    assert (answer.status_code, "strconv.ParseUint" in answer.json()["message"]) == (500, True)


def test_a_body_beyond_the_limit_is_refused(http: httpx.Client) -> None:
    body = {"metadata": {"name": "big"}, "data": {"a": "x" * (3 * 1024 * 1024)}}
    assert http.post("/api/v1/namespaces/default/configmaps", json=body).status_code == 413


def test_a_definition_in_two_versions_serves_its_objects_in_both(http: httpx.Client) -> None:
    names = {"plural": "anchors", "kind": "Anchor"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    versions = [
        {"name": "v1", "served": True, "storage": True, "schema": schema},
        {"name": "v1beta1", "served": True, "storage": False, "schema": schema},
    ]
    definition = {
        "metadata": {"name": "anchors.two.example.com"},
        "spec": {"group": "two.example.com", "scope": "Cluster", "names": names, "versions": versions},
    }
    url = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    assert http.post(url, json=definition).status_code == 201
    body = {"apiVersion": "two.example.com/v1beta1", "kind": "Anchor", "metadata": {"name": "a"}, "spec": {"x": 1}}
    created = http.post("/apis/two.example.com/v1beta1/anchors", json=body)
    assert (created.status_code, created.json()["apiVersion"]) == (201, "two.example.com/v1beta1")
    assert http.get("/apis/two.example.com/v1/anchors/a").json()["apiVersion"] == "two.example.com/v1"
    listed = http.get("/apis/two.example.com/v1beta1/anchors").json()
    assert [item["apiVersion"] for item in listed["items"]] == ["two.example.com/v1beta1"]
    assert http.get("/apis/two.example.com").json()["preferredVersion"]["version"] == "v1"
    assert http.delete(f"{url}/anchors.two.example.com").status_code == 200
    assert http.get("/apis/two.example.com/v1/anchors").status_code == 404


def test_applying_a_field_which_a_custom_schema_does_not_know_is_refused(http: httpx.Client) -> None:
    spec = {"type": "object", "properties": {"y": {"type": "string"}}}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "free": {"type": "object"}}}}
    definition = {
        "metadata": {"name": "plans.apply.example.com"},
        "spec": {
            "group": "apply.example.com",
            "scope": "Cluster",
            "names": {"plural": "plans", "kind": "Plan"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }
    url = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    assert http.post(url, json=definition).status_code == 201
    body = {"apiVersion": "apply.example.com/v1", "kind": "Plan", "metadata": {"name": "p"}, "spec": {"x": 1}}
    headers = {"content-type": "application/apply-patch+yaml"}
    answer = http.patch("/apis/apply.example.com/v1/plans/p?fieldManager=t", json=body, headers=headers)
    assert answer.status_code == 500
    assert answer.json()["message"].endswith("Kind=Plan): .spec.x: field not declared in schema")
    # an object of which the schema names no field takes any, and none is kept
    body |= {"spec": {}, "free": {"z": 1}}
    answer = http.patch("/apis/apply.example.com/v1/plans/p?fieldManager=t", json=body, headers=headers)
    assert answer.status_code == 201
    assert answer.json()["free"] == {}
    assert http.delete(f"{url}/plans.apply.example.com").status_code == 200
