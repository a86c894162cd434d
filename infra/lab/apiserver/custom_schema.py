"""Structural schemas of custom resources: pruning, defaulting and validation, in the words of the real server.

Rules: Kubernetes docs, "Extend the Kubernetes API with CustomResourceDefinitions". Validation rules in CEL
(``x-kubernetes-validations``) are those of `custom_rules`.
"""

from __future__ import annotations

import copy
import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .status import Cause, invalid_value, required, unsupported_value

if TYPE_CHECKING:
    from collections.abc import Mapping

Schema = "Mapping[str, Any]"
_META = {"apiVersion", "kind", "metadata"}


def prune(obj: dict[str, Any], schema: Mapping[str, Any], path: str = "", root: bool = True) -> list[str]:
    """Remove what the schema does not know, in place; the paths removed, in document order."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return _prune_known(obj, schema, path)
    removed: list[str] = []
    keep = _META if root or schema.get("x-kubernetes-embedded-resource") else set()
    properties = schema.get("properties") or {}
    extra = schema.get("additionalProperties")
    for key in list(obj):
        here = f"{path}.{key}" if path else key
        if key in keep:
            continue
        if key in properties:
            removed += _prune_value(obj[key], properties[key], here)
        elif isinstance(extra, dict):
            removed += _prune_value(obj[key], extra, here)
        elif not extra:
            removed.append(here)
            del obj[key]
    return removed


def _prune_known(obj: dict[str, Any], schema: Mapping[str, Any], path: str) -> list[str]:
    removed: list[str] = []
    for key, child in (schema.get("properties") or {}).items():
        if key in obj:
            removed += _prune_value(obj[key], child, f"{path}.{key}" if path else key)
    return removed


def _prune_value(value: Any, schema: Mapping[str, Any], path: str) -> list[str]:
    if isinstance(value, dict):
        return prune(value, schema, path, root=False)
    removed: list[str] = []
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            removed += _prune_value(item, schema["items"], f"{path}[{index}]")
    return removed


def apply_defaults(value: Any, schema: Mapping[str, Any]) -> None:
    """Fill in ``default`` values, in place. A null for a field that may not be null counts as absent if it has one."""
    if isinstance(value, dict):
        for key, child in (schema.get("properties") or {}).items():
            if "default" in child and (key not in value or (value[key] is None and not child.get("nullable"))):
                value[key] = copy.deepcopy(child["default"])
            if key in value:
                apply_defaults(value[key], child)
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict):
            for key, item in value.items():
                if key not in (schema.get("properties") or {}):
                    apply_defaults(item, extra)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for item in value:
            apply_defaults(item, schema["items"])


def _kind_of(value: Any) -> str:
    """The JSON type as the real server names it in errors."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def validate(value: Any, schema: Mapping[str, Any], path: str = "", root: bool = True) -> list[Cause]:
    """All complaints about a value; `root` values have kind, apiVersion and metadata, which are not looked at."""
    if value is None and schema.get("nullable"):
        return []
    wrong = _wrong_type(value, schema, path)
    if wrong is not None:
        return [wrong]
    causes: list[Cause] = []
    if isinstance(value, dict):
        causes += _validate_object(value, schema, path, root)
    elif isinstance(value, list):
        causes += _validate_array(value, schema, path)
    elif isinstance(value, str):
        causes += _validate_string(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        causes += _validate_number(value, schema, path)
    if "enum" in schema and value not in schema["enum"]:
        causes.append(unsupported_value(path, _shown(value), [str(item) for item in schema["enum"]]))
    return causes + _validate_combined(value, schema, path)


def _wrong_type(value: Any, schema: Mapping[str, Any], path: str) -> Cause | None:
    wanted, actual = schema.get("type"), _kind_of(value)
    if schema.get("x-kubernetes-int-or-string"):
        if actual in ("integer", "string"):
            return None
        wanted = "integer,string"
    if not wanted or wanted == actual or (wanted == "number" and actual == "integer"):
        return None
    if wanted == "integer" and isinstance(value, float) and value.is_integer():
        return None
    text = f'Invalid value: "{actual}": {path} in body must be of type {wanted}: "{actual}"'
    return Cause("FieldValueTypeInvalid", text, path)


def _validate_object(value: dict[str, Any], schema: Mapping[str, Any], path: str, root: bool) -> list[Cause]:
    causes: list[Cause] = []
    properties = schema.get("properties") or {}
    extra = schema.get("additionalProperties")
    for key, item in value.items():
        here = f"{path}.{key}" if path else key
        if root and key in _META:
            continue
        if key in properties:
            causes += validate(item, properties[key], here, root=False)
        elif isinstance(extra, dict):
            causes += validate(item, extra, here, root=False)
    for key in schema.get("required") or []:
        if key not in value:
            causes.append(required(f"{path}.{key}" if path else key))
    count = len(value)
    if "minProperties" in schema and count < schema["minProperties"]:
        text = f"{path} in body should have at least {schema['minProperties']} properties"
        causes.append(invalid_value(path, str(count), text))
    if "maxProperties" in schema and count > schema["maxProperties"]:
        causes.append(_too_many(path, count, schema["maxProperties"]))
    return causes


def _validate_array(value: list[Any], schema: Mapping[str, Any], path: str) -> list[Cause]:
    causes: list[Cause] = []
    if isinstance(schema.get("items"), dict):
        for index, item in enumerate(value):
            causes += validate(item, schema["items"], f"{path}[{index}]", root=False)
    if "minItems" in schema and len(value) < schema["minItems"]:
        text = f"{path} in body should have at least {schema['minItems']} items"
        causes.append(invalid_value(path, str(len(value)), text))
    if "maxItems" in schema and len(value) > schema["maxItems"]:
        causes.append(_too_many(path, len(value), schema["maxItems"]))
    causes += _list_type(value, schema, path)
    return causes


def _list_type(value: list[Any], schema: Mapping[str, Any], path: str) -> list[Cause]:
    """Sets and maps (``x-kubernetes-list-type``) have no element twice."""
    kind = schema.get("x-kubernetes-list-type")
    if kind not in ("set", "map"):
        return []
    keys = schema.get("x-kubernetes-list-map-keys") or []
    seen: list[Any] = []
    causes: list[Cause] = []
    for index, item in enumerate(value):
        identity = item if kind == "set" else {key: item.get(key) for key in keys if isinstance(item, dict)}
        if identity in seen:
            causes.append(Cause("FieldValueDuplicate", f"Duplicate value: {_shown(identity)}", f"{path}[{index}]"))
        seen.append(identity)
    return causes


def _too_many(path: str, count: int, most: int) -> Cause:
    return Cause("FieldValueTooMany", f"Too many: {count}: must have at most {most} items", path)


def _validate_string(value: str, schema: Mapping[str, Any], path: str) -> list[Cause]:
    causes: list[Cause] = []
    if "minLength" in schema and len(value) < schema["minLength"]:
        text = f"{path} in body should be at least {schema['minLength']} chars long"
        causes.append(invalid_value(path, _shown(value), text))
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        causes.append(Cause("FieldValueTooLong", f"Too long: may not be more than {schema['maxLength']} bytes", path))
    if "pattern" in schema and not re.search(schema["pattern"], value):
        causes.append(invalid_value(path, _shown(value), f"{path} in body should match '{schema['pattern']}'"))
    if schema.get("format") in ("date-time", "date") and not _is_time(value, schema["format"]):
        shown = _shown(value)
        text = f"{path} in body must be of type {schema['format']}: {shown}"
        causes.append(Cause("FieldValueTypeInvalid", f"Invalid value: {shown}: {text}", path))
    return causes


def _is_time(value: str, form: str) -> bool:
    try:
        if form == "date":
            datetime.strptime(value, "%Y-%m-%d")  # noqa: DTZ007 - a date has no zone
        else:
            datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        return False
    return True


def _validate_number(value: float, schema: Mapping[str, Any], path: str) -> list[Cause]:
    causes: list[Cause] = []
    low, high, step = schema.get("minimum"), schema.get("maximum"), schema.get("multipleOf")
    if low is not None and (value <= low if schema.get("exclusiveMinimum") else value < low):
        words = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        causes.append(invalid_value(path, _shown(value), f"{path} in body should be {words} {_shown(low)}"))
    if high is not None and (value >= high if schema.get("exclusiveMaximum") else value > high):
        words = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
        causes.append(invalid_value(path, _shown(value), f"{path} in body should be {words} {_shown(high)}"))
    if step and value % step:
        causes.append(invalid_value(path, _shown(value), f"{path} in body should be a multiple of {_shown(step)}"))
    return causes


def _validate_combined(value: Any, schema: Mapping[str, Any], path: str) -> list[Cause]:
    causes: list[Cause] = []
    shown = _shown(value)
    for child in schema.get("allOf") or []:
        causes += validate(value, child, path, root=False)
    found = [not validate(value, child, path, root=False) for child in schema.get("anyOf") or []]
    if found and not any(found):
        causes.append(invalid_value(path, shown, f"{path} in body must validate at least one schema (anyOf)"))
    found = [not validate(value, child, path, root=False) for child in schema.get("oneOf") or []]
    if found and sum(found) != 1:
        tail = "Found none valid" if not any(found) else f"Found {sum(found)} valid alternatives"
        text = f"{path} in body must validate one and only one schema (oneOf). {tail}"
        causes.append(invalid_value(path, shown, text))
    if "not" in schema and not validate(value, schema["not"], path, root=False):
        causes.append(invalid_value(path, shown, f"{path} in body must not validate the schema (not)"))
    return causes


def validate_scale(obj: dict[str, Any], path: str) -> list[Cause]:
    """The replicas a scale subresource reads must be a number which is not negative. `path`: ``.spec.replicas``."""
    value: Any = obj
    for part in path.strip(".").split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return []
    if not isinstance(value, int) or isinstance(value, bool):
        kinds: dict[str, str] = {"number": "float64", "boolean": "bool", "array": "[]interface {}"}
        kind = kinds.get(_kind_of(value), "string" if isinstance(value, str) else "map[string]interface {}")
        shown = value if isinstance(value, str) else _shown(value)
        text = f"{path} accessor error: {shown} is of the type {kind}, expected int64"
        return [invalid_value(path, "0", text)]
    if value < 0:
        return [invalid_value(path, str(value), "should be a non-negative integer")]
    return []
