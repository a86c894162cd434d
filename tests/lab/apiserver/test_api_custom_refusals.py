"""What is wrong with definitions and with custom resources, in the words of apiextensions-apiserver v1.36."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
GADGETS = "/apis/ex.io/v1/namespaces/default/gadgets"
MERGE = {"content-type": "application/merge-patch+json"}
SCHEMA = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}}}}
SPECIFIED = "must not be empty for specified object fields"


def _definition(plural: str, **spec: Any) -> dict[str, Any]:
    group = spec.pop("group", "ex.io")
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": SCHEMA}}
    body = {"group": group, "scope": "Namespaced", "names": {"plural": plural, "kind": "Gadget"}, "versions": [version]}
    return {"metadata": {"name": f"{plural}.{group}"}, "spec": {**body, **spec}}


def _version(schema: dict[str, Any] | None, *, storage: bool = True) -> list[dict[str, Any]]:
    held = {} if schema is None else {"schema": {"openAPIV3Schema": schema}}
    return [{"name": "v1", "served": True, "storage": storage, **held}]


@pytest.fixture
def gadgets(http: httpx.Client) -> httpx.Client:
    """A server that serves gadgets."""
    http.post(DEFINITIONS, json=_definition("gadgets"))
    for _ in range(100):
        if http.get("/apis/ex.io/v1").status_code == 200:
            break
        time.sleep(0.02)
    return http


@pytest.mark.proves("api", "refusals", "definitions: structural schemas, conversion, protected groups")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"versions": _version(None)}, "spec.versions[0].schema.openAPIV3Schema: Required value"),
        (
            {"versions": _version({"type": "string"})},
            'spec.validation.openAPIV3Schema.type: Invalid value: "string": must be object at the root',
        ),
        (
            {"versions": _version({"type": "object", "properties": {"a": {}, "b": {"type": "array", "items": {}}}})},
            f"[spec.validation.openAPIV3Schema.properties[a].type: Required value: {SPECIFIED}, "
            "spec.validation.openAPIV3Schema.properties[b].items.type: Required value: must not be empty for specified "
            "array items]",
        ),
        (
            {"versions": _version(SCHEMA, storage=False)},
            'spec.versions: Invalid value: [{"Name":"v1","Served":true,"Storage":false,"Deprecated":false,'
            '"DeprecationWarning":null,"Schema":null,"Subresources":null,"AdditionalPrinterColumns":null,'
            '"SelectableFields":null}]: must have exactly one version marked as storage version',
        ),
        (
            {"conversion": {"strategy": "Webhook"}},
            "[spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook, "
            "spec.conversion.conversionReviewVersions: Required value]",
        ),
        (
            {"group": "things.k8s.io"},
            "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval "
            'annotation "api-approved.kubernetes.io", see https://github.com/kubernetes/enhancements/pull/1111',
        ),
    ],
    ids=["no schema", "scalar root", "untyped parts", "no storage version", "conversion by nobody", "protected group"],
)
def test_a_definition_is_refused_for_what_is_wrong_with_it(
    http: httpx.Client, spec: dict[str, Any], words: str
) -> None:
    answer = http.post(DEFINITIONS, json=_definition("refused", **spec))
    assert answer.status_code == 422, answer.text
    found = answer.json()["message"].partition(" is invalid: ")[2]
    if "Storage" in words:
        found = found.removeprefix("[").partition(", status.storedVersions: Invalid value: null")[0]
    assert found == words


def test_a_served_definition_keeps_its_stored_version_and_its_group(gadgets: httpx.Client) -> None:
    path = f"{DEFINITIONS}/gadgets.ex.io"
    renamed = [{**_version(SCHEMA)[0], "name": "v2"}]
    lost = gadgets.patch(path, json={"spec": {"versions": renamed}}, headers=MERGE)
    assert lost.status_code == 422
    assert "v1 was previously a storage version, and must remain in spec.versions" in lost.json()["message"]
    moved = gadgets.patch(path, json={"spec": {"group": "o.io"}}, headers=MERGE)
    assert moved.json()["message"].endswith('is invalid: spec.group: Invalid value: "o.io": field is immutable')


@pytest.mark.proves("api", "refusals", "custom resources: kind, version, typed metadata")
@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (
            {"metadata": {"name": "g"}},
            400,
            "the object provided is unrecognized (must be of type Gadget): Object 'Kind' is missing in ",
        ),
        (
            {"apiVersion": "ex.io/v2", "kind": "Gadget", "metadata": {"name": "g"}},
            400,
            'Gadget in version "v2" cannot be handled as a Gadget: request to convert CR from an invalid '
            "group/version: ex.io/v2",
        ),
        (
            {"apiVersion": "ex.io/v1", "kind": "Other", "metadata": {"name": "g"}},
            422,
            'Other.ex.io "g" is invalid: kind: Invalid value: "Other": must be Gadget',
        ),
        (
            {"apiVersion": "ex.io/v1", "kind": "Gadget", "metadata": {"name": "g", "labels": {"a": 1}}},
            400,
            'Gadget in version "v1" cannot be handled as a Gadget: metadata: Invalid value: '
            '{"labels":{"a":1},"name":"g"}: json: cannot unmarshal number into Go struct field ObjectMeta.labels of '
            "type string",
        ),
    ],
    ids=["no kind", "another version", "another kind", "a label that is a number"],
)
def test_a_custom_resource_must_say_what_it_is(
    gadgets: httpx.Client, body: dict[str, Any], code: int, words: str
) -> None:
    answer = gadgets.post(GADGETS, json=body)
    assert answer.status_code == code
    assert answer.json()["message"].startswith(words)


def test_unknown_metadata_of_a_custom_resource_is_dropped_with_a_warning(gadgets: httpx.Client) -> None:
    body = {"apiVersion": "ex.io/v1", "kind": "Gadget", "metadata": {"name": "odd", "colour": "red"}}
    answer = gadgets.post(GADGETS, json=body)
    assert answer.status_code == 201
    assert "colour" not in answer.json()["metadata"]
    assert answer.headers["warning"] == '299 - "unknown field \\"metadata.colour\\""'


def test_a_patch_cannot_make_another_thing_of_a_custom_resource(gadgets: httpx.Client) -> None:
    gadgets.post(GADGETS, json={"apiVersion": "ex.io/v1", "kind": "Gadget", "metadata": {"name": "p"}})
    kind = gadgets.patch(f"{GADGETS}/p", json={"kind": "Other"}, headers=MERGE)
    assert kind.json()["message"] == 'Other.ex.io "p" is invalid: kind: Invalid value: "Other": must be Gadget'
    version = gadgets.patch(f"{GADGETS}/p", json={"apiVersion": "ex.io/v9"}, headers=MERGE)
    assert version.status_code == 422
    assert version.json()["message"].endswith(": request to convert CR from an invalid group/version: ex.io/v9")
