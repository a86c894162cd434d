"""Structural schemas: pruning, defaults, validation."""

from __future__ import annotations

import pytest

from infra.lab.apiserver import custom_schema
from infra.lab.apiserver.columns import json_path

SCHEMA = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "required": ["phase"],
            "properties": {
                "phase": {"type": "string", "enum": ["A", "B"]},
                "n": {"type": "integer", "default": 3, "minimum": 0, "maximum": 10},
                "port": {"x-kubernetes-int-or-string": True},
                "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5, "minLength": 2},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
                "list": {
                    "type": "array",
                    "maxItems": 2,
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["k"],
                    "items": {
                        "type": "object",
                        "properties": {"k": {"type": "string"}, "v": {"type": "boolean", "default": True}},
                    },
                },
                "maybe": {"type": "string", "nullable": True},
            },
        }
    },
}


def test_unknown_fields_are_removed_and_named_but_not_within_preserved_or_mapped_parts() -> None:
    obj = {
        "apiVersion": "g/v1",
        "kind": "K",
        "metadata": {"anything": 1},
        "other": 1,
        "spec": {"phase": "A", "x": 1, "free": {"y": {"z": 1}}, "map": {"k": "v"}, "list": [{"k": "a", "w": 1}]},
    }
    removed = custom_schema.prune(obj, SCHEMA)
    assert removed == ["other", "spec.x", "spec.list[0].w"]
    assert obj["spec"] == {"phase": "A", "free": {"y": {"z": 1}}, "map": {"k": "v"}, "list": [{"k": "a"}]}
    assert obj["metadata"] == {"anything": 1}


def test_defaults_reach_into_lists_and_replace_a_null_that_may_not_be() -> None:
    obj = {"spec": {"phase": "A", "n": None, "list": [{"k": "a"}], "maybe": None}}
    custom_schema.apply_defaults(obj, SCHEMA)
    assert obj["spec"] == {"phase": "A", "n": 3, "list": [{"k": "a", "v": True}], "maybe": None}


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({}, "spec.phase: Required value"),
        ({"phase": "C"}, 'spec.phase: Unsupported value: "C": supported values: "A", "B"'),
        ({"phase": "A", "n": "x"}, 'spec.n: Invalid value: "string": spec.n in body must be of type integer: "string"'),
        ({"phase": "A", "n": -1}, "spec.n: Invalid value: -1: spec.n in body should be greater than or equal to 0"),
        ({"phase": "A", "n": 11}, "spec.n: Invalid value: 11: spec.n in body should be less than or equal to 10"),
        ({"phase": "A", "name": "A1"}, "spec.name: Invalid value: \"A1\": spec.name in body should match '^[a-z]+$'"),
        ({"phase": "A", "name": "abcdef"}, "spec.name: Too long: may not be more than 5 bytes"),
        ({"phase": "A", "list": [{"k": "a"}, {"k": "a"}]}, 'spec.list[1]: Duplicate value: {"k":"a"}'),
        ({"phase": "A", "map": {"k": 1}}, 'must be of type string: "integer"'),
        ({"phase": "A", "list": [{}, {"k": "1"}, {"k": "2"}]}, "spec.list: Too many: 3: must have at most 2 items"),
        ({"phase": None}, 'spec.phase in body must be of type string: "null"'),
    ],
)
def test_a_value_outside_the_schema_is_named_with_its_path(spec: dict, complaint: str) -> None:
    causes = custom_schema.validate({"spec": spec}, SCHEMA)
    assert len(causes) == 1
    assert complaint in str(causes[0])


@pytest.mark.parametrize("spec", [{"phase": "A", "port": 1}, {"phase": "B", "port": "http", "n": 2.0, "maybe": None}])
def test_a_value_within_the_schema_is_accepted(spec: dict) -> None:
    assert custom_schema.validate({"spec": spec}, SCHEMA) == []


def test_a_printer_column_finds_a_condition_by_its_type() -> None:
    obj = {"status": {"conditions": [{"type": "A", "status": "x"}, {"type": "Ready", "status": "True"}]}}
    assert json_path(obj, '.status.conditions[?(@.type=="Ready")].status') == ["True"]
    assert json_path(obj, ".status.conditions[0].type") == ["A"]
    assert json_path({"metadata": {"labels": {"a.b/c": "v"}}}, ".metadata.labels['a.b/c']") == ["v"]
