"""Custom resources: rules in CEL, what an update may leave wrong, and lists that are maps under server-side apply."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
THINGS = "/apis/rules.example.com/v1/namespaces/default/things"
MERGE = {"content-type": "application/merge-patch+json"}
APPLY = {"content-type": "application/apply-patch+yaml"}
SPEC = {
    "type": "object",
    "required": ["count"],
    "x-kubernetes-validations": [{"rule": "self.count < 4 || has(self.big)", "message": " too many of them "}],
    "properties": {
        "count": {"type": "integer"},
        "big": {"type": "boolean"},
        "fixed": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]},
        "word": {"type": "string", "maxLength": 5},
        "parts": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["key"],
            "items": {
                "type": "object",
                "required": ["key"],
                "properties": {"key": {"type": "string"}, "value": {"type": "string"}},
            },
        },
    },
}


@pytest.fixture(scope="module")
def definition() -> dict[str, Any]:
    pytest.importorskip("celpy", reason="cel-python is not installed: rules are not judged")
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": SPEC}}},
    }
    names = {"plural": "things", "kind": "Thing"}
    spec = {"group": "rules.example.com", "scope": "Namespaced", "names": names, "versions": [version]}
    return {"metadata": {"name": "things.rules.example.com"}, "spec": spec}


@pytest.fixture
def things(http: httpx.Client, definition: dict[str, Any]) -> httpx.Client:
    http.post(DEFINITIONS, json=definition)
    end = time.monotonic() + 5
    while http.get(THINGS).status_code != 200:
        assert time.monotonic() < end, "the definition was not established"
        time.sleep(0.01)
    return http


def _thing(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "rules.example.com/v1", "kind": "Thing", "metadata": {"name": name}, "spec": spec}


def _causes(answer: httpx.Response) -> list[tuple[str, str]]:
    assert answer.status_code == 422, answer.text
    return [(cause["field"], cause["message"]) for cause in answer.json()["details"]["causes"]]


@pytest.mark.proves("api", "refusals", "custom resources: validation rules (CEL) and ratcheting")
def test_a_rule_of_a_definition_is_judged_and_its_message_told(things: httpx.Client) -> None:
    refused = things.post(THINGS, json=_thing("many", count=9))
    assert refused.json()["message"] == (
        'Thing.rules.example.com "many" is invalid: spec: Invalid value: too many of them'
    )
    assert things.post(THINGS, json=_thing("big", count=9, big=True)).status_code == 201


def test_a_rule_about_the_old_value_is_judged_on_a_change_only(things: httpx.Client) -> None:
    assert things.post(THINGS, json=_thing("stays", count=1, fixed="a")).status_code == 201
    changed = things.patch(f"{THINGS}/stays", json={"spec": {"fixed": "b"}}, headers=MERGE)
    assert _causes(changed) == [("spec.fixed", 'Invalid value: "b": failed rule: self == oldSelf')]
    assert things.patch(f"{THINGS}/stays", json={"spec": {"fixed": None}}, headers=MERGE).status_code == 200


def test_an_object_of_the_wrong_shape_is_told_that_rules_were_not_looked_at(things: httpx.Client) -> None:
    assert _causes(things.post(THINGS, json=_thing("empty"))) == [
        ("spec.count", "Required value"),
        (
            "<nil>",
            "Invalid value: null: some validation rules were not checked because the object was invalid; correct the "
            "existing errors to complete validation",
        ),
    ]


def test_what_was_wrong_before_a_schema_grew_stricter_may_stay_until_it_is_touched(
    things: httpx.Client, definition: dict[str, Any]
) -> None:
    assert things.post(THINGS, json=_thing("old", count=1, word="abcde")).status_code == 201
    path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/word/maxLength"
    kind = {"content-type": "application/json-patch+json"}
    url = f"{DEFINITIONS}/{definition['metadata']['name']}"
    try:
        things.patch(url, json=[{"op": "replace", "path": path, "value": 3}], headers=kind)
        end = time.monotonic() + 5
        while things.post(f"{THINGS}?dryRun=All", json=_thing("new", count=1, word="abcd")).status_code == 201:
            assert time.monotonic() < end, "the new schema never came into force"
            time.sleep(0.01)
        assert things.patch(f"{THINGS}/old", json={"spec": {"count": 2}}, headers=MERGE).status_code == 200
        touched = things.patch(f"{THINGS}/old", json={"spec": {"word": "abcdef"}}, headers=MERGE)
        assert _causes(touched)[0] == ("spec.word", "Too long: may not be more than 3 bytes")
    finally:
        things.patch(url, json=[{"op": "replace", "path": path, "value": 5}], headers=kind)


@pytest.mark.proves("api", "server-side apply", "custom resources: lists that are maps are merged by their keys")
def test_two_appliers_share_a_list_that_is_a_map(things: httpx.Client) -> None:
    url = f"{THINGS}/shared?fieldManager="
    first = _thing("shared", count=1, parts=[{"key": "a", "value": "1"}])
    assert things.patch(f"{url}one", json=first, headers=APPLY).status_code == 201
    second = _thing("shared", parts=[{"key": "b", "value": "2"}])
    shared = things.patch(f"{url}two", json=second, headers=APPLY)
    assert shared.json()["spec"]["parts"] == [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}]
    entry = next(e for e in shared.json()["metadata"]["managedFields"] if e["manager"] == "two")
    assert entry["fieldsV1"] == {"f:spec": {"f:parts": {'k:{"key":"b"}': {".": {}, "f:key": {}, "f:value": {}}}}}
    clash = things.patch(f"{url}two", json=_thing("shared", parts=[{"key": "a", "value": "9"}]), headers=APPLY)
    assert clash.status_code == 409
    assert clash.json()["message"] == ('Apply failed with 1 conflict: conflict with "one": .spec.parts[key="a"].value')


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"parts": [{"key": "a"}, {"key": "a"}]}, '.spec.parts: duplicate entries for key [key="a"]'),
        ({"count": "1"}, ".spec.count: expected numeric (int or float), got string"),
        ({"other": 1}, ".spec.other: field not declared in schema"),
    ],
    ids=["a key twice", "a wrong type", "an unknown field"],
)
def test_what_does_not_fit_the_schema_cannot_be_applied(things: httpx.Client, spec: dict[str, Any], words: str) -> None:
    answer = things.patch(f"{THINGS}/unfit?fieldManager=t", json=_thing("unfit", **spec), headers=APPLY)
    assert answer.status_code == 500
    assert answer.json()["message"] == (
        f"failed to create typed patch object (/unfit; rules.example.com/v1, Kind=Thing): {words}"
    )
