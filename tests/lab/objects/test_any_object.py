"""Whatever a client sends, the server answers with an object or a Status: objects made at random from the types."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest

from infra.lab.apiserver import apply, defaults, fieldvalidation, patch, remarks, schema, schema_codec, validation
from infra.lab.apiserver.kinds import KindInfo, Registry
from infra.lab.apiserver.status import ApiStatusError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = [kind for kind in Registry() if not kind.virtual]

_SCALARS: dict[str, list[Any]] = {
    "string": ["", "a", "Bad_", "x.y", "Always", "RollingUpdate", "TCP", "v1"],
    "bool": [True, False],
    "int": [0, 1],
    "int32": [-1, 0, 1, 80],
    "int64": [-1, 0, 1, 2**40],
    "uint32": [0, 1],
    "float64": [0, 1.5],
    "bytes": ["", "eA=="],
    "quantity": ["0", "1", "100m", "1Gi", "-1", 2],
    "intorstring": [0, 1, "25%", "http", ""],
    "time": ["2026-01-01T00:00:00Z", None],
    "microtime": ["2026-01-01T00:00:00.000001Z", None],
    "duration": ["1s"],
    "fieldsv1": [{}],
    "raw": [None, {"a": 1}],
}


def _random_value(rng: random.Random, kind: schema.Type, depth: int) -> Any:
    if rng.random() < 0.05:
        return None
    if kind.scalar:
        return rng.choice(_SCALARS[kind.scalar])
    if kind.item is not None:
        return [_random_value(rng, kind.item, depth - 1) for _ in range(rng.randrange(3))]
    if kind.value is not None:
        return {rng.choice(["a", "b", "Bad key"]): _random_value(rng, kind.value, depth - 1) for _ in range(2)}
    return _random_object(rng, schema.struct(kind.struct), depth - 1)


def _random_object(rng: random.Random, struct: schema.Struct, depth: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for field in struct.fields:
        if depth > 0 and rng.random() < 0.5 and field.name != "managedFields":
            out[field.name] = _random_value(rng, field.type, depth)
    return out


def _make(rng: random.Random, kind: KindInfo) -> dict[str, Any]:
    struct = schema.find_struct(kind.group, kind.version, kind.kind)
    assert struct is not None
    obj = _random_object(rng, struct, 7)
    metadata = {"name": "x", **(obj.get("metadata") or {})}
    return {**obj, "apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}


@pytest.mark.parametrize("kind", KINDS, ids=[kind.resource for kind in KINDS])
def test_every_kind_survives_random_objects_on_every_write_path(kind: KindInfo) -> None:
    rng = random.Random(kind.resource)
    for _ in range(12):
        body = _make(rng, kind)
        obj, _warnings = fieldvalidation.check(kind, json.dumps(body).encode(), "Warn")
        defaults.apply_defaults(kind, obj)
        again = schema_codec.clone(obj)
        defaults.apply_defaults(kind, again)
        assert again == obj, "defaults are the same when applied again"

        apply.track_update(kind, None, obj, "m", "Update", "", NOW)
        for old in (None, schema_codec.clone(obj)):
            try:
                validation.validate(kind, obj, old)
            except ApiStatusError as error:
                if error.code != 422:
                    raise
        remarks.about(kind, obj)

        change = json.dumps({key: value for key, value in _make(rng, kind).items() if key != "metadata"}).encode()
        for media in (patch.MERGE_PATCH, patch.STRATEGIC_PATCH):
            try:
                patched, _ = patch.apply_patch(kind, obj, media, change)
            except ApiStatusError as error:
                if error.code not in (422, 500) or (error.code == 500 and "merge key" not in error.message):
                    raise
            else:
                apply.track_update(kind, obj, patched, "n", "Update", "", NOW)
        try:
            apply.server_side_apply(kind, obj, _make(rng, kind), "o", True, NOW)
        except ApiStatusError as error:
            if error.code != 500 or "failed to create typed" not in error.message:
                raise
