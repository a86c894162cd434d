"""Decoding into the API's types and encoding again, judged by recorded answers of a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.lab.apiserver import defaults, schema, schema_codec
from infra.lab.apiserver.kinds import KindInfo, Registry
from infra.lab.apiserver.schema_codec import DecodeError
from infra.lab.apiserver.status import ApiStatusError

VECTORS = Path(__file__).parents[2] / "vectors" / "kube-api"
DEPLOYMENT = schema.find_struct("apps", "v1", "Deployment")

# Parts of an answer which defaulting alone does not make: admission, allocation and generated labels add to them
_ADDED_BY_OTHERS = {"Pod", "Service", "Job", "Namespace", "TokenRequest", "CustomResourceDefinition"}


def _recorded_creates() -> list[Any]:
    """(body sent, object answered) of every JSON create which succeeded and needs no placeholders."""
    out = []
    for path in sorted(VECTORS.glob("*.json")):
        for number, step in enumerate(json.loads(path.read_text())["steps"]):
            request, answer = step.get("request") or {}, step.get("response") or {}
            body, got = request.get("body"), answer.get("body")
            if request.get("method") != "POST" or answer.get("status") != 201 or not isinstance(body, dict):
                continue
            if not isinstance(got, dict) or got.get("kind") != body.get("kind") or "${" in json.dumps(body):
                continue
            group, _, version = got["apiVersion"].rpartition("/")
            if schema.find_struct(group, version, got["kind"]) is not None and got["kind"] not in _ADDED_BY_OTHERS:
                out.append(pytest.param(body, got, id=f"{path.stem}-{number}"))
    return out


@pytest.mark.parametrize(("body", "answered"), _recorded_creates())
def test_what_a_client_created_comes_back_with_the_recorded_defaults_and_field_order(
    body: dict[str, Any], answered: dict[str, Any]
) -> None:
    group, _, version = answered["apiVersion"].rpartition("/")
    struct = schema.find_struct(group, version, answered["kind"])
    assert struct is not None
    obj = schema_codec.normalise(struct, body)
    obj.pop("status", None)
    kind = KindInfo(group, version, answered["kind"], "things", namespaced=True)

    defaults.apply_defaults(kind, obj)

    parts = ("spec", "data", "type", "roleRef", "subjects", "rules", "webhooks", "immutable", "binaryData")
    for part in parts:
        expected = json.dumps(answered.get(part)).replace("${microtime}", "")
        if "${" not in expected and "microtime" not in json.dumps(answered.get(part)):
            assert json.dumps(obj.get(part)) == json.dumps(answered.get(part)), part


def test_every_type_a_field_names_is_in_the_table() -> None:
    for found in schema._table().values():
        for field in found.declared:
            kinds: list[schema.Type | None] = [field.type]
            while kinds:
                kind = kinds.pop()
                if kind is not None:
                    assert not kind.struct or schema.struct(kind.struct)
                    kinds += [kind.item, kind.value]


def test_a_type_never_uses_a_wire_number_twice() -> None:
    for found in schema._table().values():
        numbers = [field.number for field in found.declared if field.number]
        assert len(numbers) == len(set(numbers)), found.name


def test_decoding_twice_changes_nothing_more() -> None:
    assert DEPLOYMENT is not None
    body = {"spec": {"template": {"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "0.5"}}}]}}}}
    once = schema_codec.normalise(DEPLOYMENT, body)
    assert json.dumps(schema_codec.normalise(DEPLOYMENT, once)) == json.dumps(once)


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("0.5", "500m"),
        ("1000m", "1"),
        ("1024Mi", "1Gi"),
        ("1500Mi", "1500Mi"),
        ("100", "100"),
        ("1e3", "1e3"),
        ("0.1Gi", "107374182400m"),
        ("-2", "-2"),
        ("0", "0"),
        ("1000000", "1M"),
        ("512Ki", "512Ki"),
    ],
)
def test_quantities_come_back_in_canonical_form(given: str, canonical: str) -> None:
    quota = schema.find_struct("", "v1", "ResourceQuota")
    assert quota is not None
    assert schema_codec.normalise(quota, {"spec": {"hard": {"x": given}}})["spec"]["hard"] == {"x": canonical}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"spec": {"replicas": "x"}},
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            {"spec": {"template": {"spec": {"containers": [{"env": [{"value": 1}]}]}}}},
            "json: cannot unmarshal number into Go struct field "
            "EnvVar.spec.template.spec.containers.env.value of type string",
        ),
        (
            {"metadata": {"labels": {"a": 1}}},
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        ({"spec": []}, "json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec"),
        (
            {"metadata": {"creationTimestamp": "yesterday"}},
            'parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006"',
        ),
        (
            {"spec": {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}}}},
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ],
)
def test_a_wrong_type_is_refused_in_the_words_of_the_real_decoder(body: dict[str, Any], message: str) -> None:
    assert DEPLOYMENT is not None
    with pytest.raises(DecodeError) as caught:
        schema_codec.normalise(DEPLOYMENT, body)
    assert str(caught.value) == message


def test_times_are_normalised_to_utc_seconds() -> None:
    assert DEPLOYMENT is not None
    body = {"metadata": {"creationTimestamp": "2026-01-01T01:00:00.5+01:00"}}
    assert schema_codec.normalise(DEPLOYMENT, body)["metadata"] == {"creationTimestamp": "2026-01-01T00:00:00Z"}


def test_an_empty_condition_time_is_spelled_out_as_null() -> None:
    pod = schema.find_struct("", "v1", "Pod")
    assert pod is not None
    body = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    assert schema_codec.normalise(pod, body)["status"]["conditions"] == [
        {"type": "Ready", "status": "True", "lastProbeTime": None, "lastTransitionTime": None}
    ]


def test_every_built_in_kind_has_a_type() -> None:
    unknown = [kind.resource for kind in Registry() if schema.find_struct(kind.group, kind.version, kind.kind) is None]
    assert unknown == []


def test_an_object_a_webhook_broke_is_an_internal_error() -> None:
    kind = KindInfo("", "v1", "ConfigMap", "configmaps", namespaced=True)
    with pytest.raises(ApiStatusError) as caught:
        defaults.apply_defaults(kind, {"data": {"a": 1}})
    assert (caught.value.code, caught.value.reason) == (500, "InternalError")
