"""Writes to what is not there, and options and documents that cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import httpx

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
APPLY = {"content-type": "application/apply-patch+yaml"}


@pytest.mark.proves("api", "refusals", "writes that mean a certain object which is gone")
def test_a_replacement_of_an_object_that_is_gone_conflicts(http: httpx.Client) -> None:
    for url, plural in ((CONFIG_MAPS, "configmaps"), (LEASES, "leases.coordination.k8s.io")):
        answer = http.put(f"{url}/gone", json={"metadata": {"name": "gone", "uid": "u-1"}})
        assert answer.status_code == 409, answer.text
        assert answer.json()["message"].startswith(
            f'Operation cannot be fulfilled on {plural} "gone": StorageError: invalid object, Code: 4, Key: /registry/'
        )
        assert answer.json()["message"].endswith(
            "ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: u-1, "
            "UID in object meta: "
        )
    assert http.put(f"{CONFIG_MAPS}/gone", json={"metadata": {"name": "gone"}}).status_code == 404


def test_an_object_that_is_applied_anew_cannot_be_a_certain_one(http: httpx.Client) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "anew", "uid": "u-1"}}
    answer = http.patch(f"{CONFIG_MAPS}/anew?fieldManager=t", json=body, headers=APPLY)
    assert answer.status_code == 409
    assert answer.json()["message"] == (
        'Operation cannot be fulfilled on configmaps "anew": uid mismatch: the provided object specified uid u-1, and '
        "no existing object was found"
    )
    assert http.get(f"{CONFIG_MAPS}/anew").status_code == 404


@pytest.mark.parametrize(
    ("timeout", "words"),
    [
        ("abc", 'time: invalid duration "abc"'),
        ("5", 'time: missing unit in duration "5"'),
        ("5s", ""),
        ("1m30.5s", ""),
    ],
)
def test_a_timeout_is_a_duration(http: httpx.Client, timeout: str, words: str) -> None:
    answer = http.get(f"{CONFIG_MAPS}?timeout={timeout}")
    if not words:
        assert answer.status_code == 200
        return
    assert answer.status_code == 400
    assert answer.json()["message"] == f"invalid timeout specified in the request URL - {words}"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("a: b: c", "mapping values are not allowed in this context"),
        ("a: 1\nb: c: d\n", "line 2: mapping values are not allowed in this context"),
        ("a: [1, 2\nb: c\n", "line 1: did not find expected ',' or ']'"),
        ("a: *b\n", "unknown anchor 'b' referenced"),
    ],
)
def test_a_document_that_is_no_yaml_is_refused_in_the_words_of_gos_library(
    http: httpx.Client, document: str, words: str
) -> None:
    answer = http.patch(f"{CONFIG_MAPS}/x?fieldManager=t", content=document.encode(), headers=APPLY)
    assert answer.status_code == 400
    assert answer.json()["message"] == f"error decoding YAML: error converting YAML to JSON: yaml: {words}"


def test_the_root_lists_the_paths_that_are_served(http: httpx.Client) -> None:
    paths = http.get("/").json()["paths"]
    assert paths == sorted(paths)
    assert {"/api", "/api/v1", "/apis/apps", "/apis/apps/v1", "/livez/ping", "/openapi/v3", "/version"} <= set(paths)
    for path in paths:
        assert http.get(path).status_code == 200, path


def test_a_body_that_is_no_yaml_is_unrecognized(http: httpx.Client) -> None:
    answer = http.post(CONFIG_MAPS, content=b"a: b: c", headers={"content-type": "application/yaml"})
    assert answer.status_code == 400
    assert answer.json()["message"] == (
        "the object provided is unrecognized (must be of type ConfigMap): yaml: mapping values are not allowed in this "
        "context (613a20623a2063)"
    )


def test_a_collection_that_is_deleted_is_shown_as_the_client_asks(http: httpx.Client) -> None:
    http.post(CONFIG_MAPS, json={"metadata": {"name": "shown", "labels": {"gone": "yes"}}, "data": {"a": "b"}})
    accept = {"accept": "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"}
    answer = http.delete(f"{CONFIG_MAPS}?labelSelector=gone", headers=accept)
    assert answer.json()["kind"] == "PartialObjectMetadataList"
    assert [set(item) & {"metadata", "data"} for item in answer.json()["items"]] == [{"metadata"}]


def test_a_mutating_webhook_is_called_again_if_needed_or_never(http: httpx.Client) -> None:
    hook = {
        "name": "a.example.com",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://localhost/"},
        "reinvocationPolicy": "Always",
    }
    url = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    answer = http.post(url, json={"metadata": {"name": "again"}, "webhooks": [hook]})
    assert answer.status_code == 422
    assert answer.json()["message"].endswith(
        'webhooks[0].reinvocationPolicy: Unsupported value: "Always": supported values: "IfNeeded", "Never"'
    )
