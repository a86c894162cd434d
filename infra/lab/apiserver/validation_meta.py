"""Rules for names, labels and metadata that every kind shares (Kubernetes docs, "Object Names and IDs", "Labels")."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from infra.lab.apiserver import go_json
from infra.lab.apiserver.status import (
    Cause,
    duplicate_value,
    forbidden_field,
    invalid_value,
    required,
    too_long,
    unsupported_value,
)

Object = dict[str, Any]
# A rule for text: what is wrong with it, in the server's words; empty when nothing is
TextRule = Callable[[str], list[str]]
# The same for names, which may be only the start of one (generateName)
NameRule = Callable[[str, bool], list[str]]

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_LABEL_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE = rf"({_QUALIFIED})?"
_CONFIG_KEY = r"[-._a-zA-Z0-9]+"

IMMUTABLE = "field is immutable"
_ANNOTATIONS_LIMIT = 256 * 1024
STANDARD_FINALIZERS = ("kubernetes", "orphan", "foregroundDeletion")


def bad(path: str, value: Any, message: str) -> Cause:
    """FieldValueInvalid with the value printed as the server prints it."""
    return invalid_value(path, go_json.field_value(value), message)


def unsupported(path: str, value: Any, supported: tuple[str, ...] | list[str]) -> Cause:
    return unsupported_value(path, go_json.field_value(value), supported)


def duplicate(path: str, value: Any) -> Cause:
    return duplicate_value(path, go_json.field_value(value))


def forbidden(path: str, message: str) -> Cause:
    return forbidden_field(path, message)


def missing(path: str, message: str = "") -> Cause:
    return required(path, message)


def longer_than(path: str, limit: int) -> Cause:
    return too_long(path, f"may not be more than {limit} bytes")


def _regex(message: str, pattern: str, *examples: str) -> str:
    shown = " or ".join(f"'{example}', " for example in examples).removesuffix(", ")
    return f"{message} (e.g. {shown}, regex used for validation is '{pattern}')"


def _too_many_characters(limit: int) -> str:
    return f"must be no more than {limit} characters"


def _too_many_bytes(limit: int) -> str:
    """Labels are counted in bytes since v1.34, names in characters still."""
    return f"must be no more than {limit} bytes"


SUBDOMAIN_MESSAGE = _regex(
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
    "and must start and end with an alphanumeric character",
    _SUBDOMAIN,
    "example.com",
)
_LABEL_MESSAGE = _regex(
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
    "and must start and end with an alphanumeric character",
    _LABEL,
    "my-name",
    "123-abc",
)
_LABEL_1035_MESSAGE = _regex(
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', "
    "start with an alphabetic character, and end with an alphanumeric character",
    _LABEL_1035,
    "my-name",
    "abc-123",
)
_QUALIFIED_WORDS = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
)
_VALUE_MESSAGE = _regex(
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', "
    "and must start and end with an alphanumeric character",
    _LABEL_VALUE,
    "MyValue",
    "my_value",
    "12345",
)
_CONFIG_KEY_MESSAGE = _regex(
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
    _CONFIG_KEY,
    "key.name",
    "KEY_NAME",
    "key-name",
)


def subdomain(text: str) -> list[str]:
    """RFC 1123 subdomain, at most 253 characters."""
    out = [_too_many_characters(253)] if len(text) > 253 else []
    return out if re.fullmatch(_SUBDOMAIN, text) else [*out, SUBDOMAIN_MESSAGE]


def label(text: str) -> list[str]:
    """RFC 1123 label, at most 63 characters."""
    out = [_too_many_characters(63)] if len(text) > 63 else []
    if re.fullmatch(_LABEL, text):
        return out
    return [*out, "must not contain dots" if re.fullmatch(_SUBDOMAIN, text) else _LABEL_MESSAGE]


def label_1035(text: str) -> list[str]:
    """RFC 1035 label, at most 63 characters."""
    out = [_too_many_characters(63)] if len(text) > 63 else []
    return out if re.fullmatch(_LABEL_1035, text) else [*out, _LABEL_1035_MESSAGE]


def qualified_name(text: str) -> list[str]:
    """A label key: an optional domain prefix, a slash, and a name of at most 63 characters."""
    prefix, slash, name = text.partition("/")
    if "/" in name:
        whole = _regex(f"a valid label key {_QUALIFIED_WORDS}", _QUALIFIED, "MyName", "my.name", "123-abc")
        return [f"{whole} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"]
    out: list[str] = []
    if not slash:
        name = prefix
    elif not prefix:
        out.append("prefix part must be non-empty")
    else:
        complaints = [SUBDOMAIN_MESSAGE] if not re.fullmatch(_SUBDOMAIN, prefix) else []
        too_long = [_too_many_bytes(253)] if len(prefix) > 253 else []
        out += [f"prefix part {message}" for message in too_long + complaints]
    if not name:
        out.append("name part must be non-empty")
    elif len(name) > 63:
        out.append(f"name part {_too_many_bytes(63)}")
    if not re.fullmatch(_QUALIFIED, name):
        out.append(_regex(f"name part {_QUALIFIED_WORDS}", _QUALIFIED, "MyName", "my.name", "123-abc"))
    return out


def label_value(text: str) -> list[str]:
    out = [_too_many_bytes(63)] if len(text) > 63 else []
    return out if re.fullmatch(_LABEL_VALUE, text) else [*out, _VALUE_MESSAGE]


def config_key(text: str) -> list[str]:
    """A key of a ConfigMap or Secret: it becomes a file name."""
    out = [_too_many_characters(253)] if len(text) > 253 else []
    if not re.fullmatch(_CONFIG_KEY, text):
        out.append(_CONFIG_KEY_MESSAGE)
    elif text == ".":
        out.append("must not be '.'")
    elif text == "..":
        out.append("must not be '..'")
    elif text.startswith(".."):
        out.append("must not start with '..'")
    return out


def _prefixable(rule: TextRule) -> NameRule:
    """A rule for names; the start of a generated name may end in a dash."""

    def check(name: str, prefix: bool) -> list[str]:
        return rule(f"{name[:-1]}a" if prefix and len(name) > 1 and name.endswith("-") else name)

    return check


def path_segment(name: str, prefix: bool) -> list[str]:
    """What a name must satisfy to stand in a URL path; enough for RBAC objects."""
    if not prefix and name in (".", ".."):
        return [f"may not be '{name}'"]
    return [f"may not contain '{part}'" for part in ("/", "%") if part in name]


name_is_subdomain = _prefixable(subdomain)
name_is_label = _prefixable(label)
name_is_label_1035 = _prefixable(label_1035)


def labels(values: Object | None, path: str) -> list[Cause]:
    """Keys and values of a label map; the path is that of the map for all of them."""
    out: list[Cause] = []
    for key, value in sorted((values or {}).items()):
        out += [bad(path, key, message) for message in qualified_name(key)]
        out += [bad(path, value, message) for message in label_value(value)]
    return out


def annotation_map(values: Object | None, path: str) -> list[Cause]:
    out: list[Cause] = []
    for key in sorted(values or {}):
        out += [bad(path, key, message) for message in qualified_name(key.lower())]
    if sum(len(key.encode()) + len(value.encode()) for key, value in (values or {}).items()) > _ANNOTATIONS_LIMIT:
        out.append(longer_than(path, _ANNOTATIONS_LIMIT))
    return out


def _owner_references(references: list[Object], path: str) -> list[Cause]:
    out: list[Cause] = []
    controller = ""
    for reference in references:
        api_version = reference.get("apiVersion") or ""
        if not api_version.rpartition("/")[2]:
            out.append(bad(f"{path}.apiVersion", api_version, "version must not be empty"))
        for field in ("kind", "name", "uid"):
            if not reference.get(field):
                out.append(bad(f"{path}.{field}", "", "must not be empty"))
        if (api_version, reference.get("kind")) == ("v1", "Event"):
            out.append(bad(path, reference, "/v1, Kind=Event is disallowed from being an owner"))
        if reference.get("controller"):
            name = f"{reference.get('kind')}/{reference.get('name')}"
            if controller:
                words = 'Only one reference can have Controller set to true. Found "true" in references for'
                out.append(bad(path, references, f"{words} {controller} and {name}"))
            controller = controller or name
    return out


def object_meta(metadata: Object, *, namespaced: bool, name_rule: NameRule, core: bool = True) -> list[Cause]:
    """The rules for metadata as a whole. `core`: also those for finalizers, which built-in kinds add."""
    path = "metadata"
    out: list[Cause] = []
    prefix, name = metadata.get("generateName") or "", metadata.get("name") or ""
    if prefix:
        out += [bad(f"{path}.generateName", prefix, message) for message in name_rule(prefix, True)]
    if not name:
        out.append(missing(f"{path}.name", "name or generateName is required"))
    else:
        out += [bad(f"{path}.name", name, message) for message in name_rule(name, False)]
    namespace = metadata.get("namespace") or ""
    if namespaced and not namespace:
        out.append(missing(f"{path}.namespace"))
    elif namespaced:
        out += [bad(f"{path}.namespace", namespace, message) for message in label(namespace)]
    elif namespace:
        out.append(forbidden(f"{path}.namespace", "not allowed on this type"))
    out += labels(metadata.get("labels"), f"{path}.labels")
    out += annotation_map(metadata.get("annotations"), f"{path}.annotations")
    out += _owner_references(metadata.get("ownerReferences") or [], f"{path}.ownerReferences")
    finalizers = metadata.get("finalizers") or []
    for finalizer in finalizers:
        out += [bad(f"{path}.finalizers", finalizer, message) for message in qualified_name(finalizer)]
    if {"orphan", "foregroundDeletion"} <= set(finalizers):
        message = "finalizer orphan and foregroundDeletion cannot be both set"
        out.append(bad(f"{path}.finalizers", finalizers, message))
    if core:
        message = "name is neither a standard finalizer name nor is it fully qualified"
        for number, finalizer in enumerate(finalizers):
            if "/" not in finalizer and finalizer not in STANDARD_FINALIZERS:
                out.append(bad(f"{path}.finalizers[{number}]", finalizer, message))
    return out


def object_meta_update(new: Object, old: Object) -> list[Cause]:
    """What an update may not change about metadata."""
    path = "metadata"
    out: list[Cause] = []
    if old.get("deletionTimestamp"):
        extra = sorted(set(new.get("finalizers") or []) - set(old.get("finalizers") or []))
        if extra:
            shown = "[]string{" + ", ".join(go_json.quote(name) for name in extra) + "}"
            message = "no new finalizers can be added if the object is being deleted, found new finalizers"
            out.append(forbidden(f"{path}.finalizers", f"{message} {shown}"))
    for field in ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"):
        if (new.get(field) or None) != (old.get(field) or None):
            empty = None if field in ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds") else ""
            out.append(bad(f"{path}.{field}", new.get(field) or empty, IMMUTABLE))
    out += labels(new.get("labels"), f"{path}.labels")
    out += annotation_map(new.get("annotations"), f"{path}.annotations")
    out += _owner_references(new.get("ownerReferences") or [], f"{path}.ownerReferences")
    return out


def non_negative(obj: Object, field: str, path: str) -> list[Cause]:
    """An optional number that may not be below zero."""
    value = obj.get(field)
    if isinstance(value, int) and value < 0:
        return [bad(f"{path}.{field}", value, "must be greater than or equal to 0")]
    return []


def label_selector(selector: Object | None, path: str) -> list[Cause]:
    if not selector:
        return []
    out = labels(selector.get("matchLabels"), f"{path}.matchLabels")
    for number, expression in enumerate(selector.get("matchExpressions") or []):
        at = f"{path}.matchExpressions[{number}]"
        operator, values = expression.get("operator") or "", expression.get("values") or []
        if operator in ("In", "NotIn"):
            if not values:
                out.append(missing(f"{at}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                message = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                out.append(forbidden(f"{at}.values", message))
        else:
            out.append(bad(f"{at}.operator", operator, "not a valid selector operator"))
        key = expression.get("key") or ""
        out += [bad(f"{at}.key", key, message) for message in qualified_name(key)]
        for position, value in enumerate(values):
            out += [bad(f"{at}.values[{position}]", value, message) for message in label_value(value)]
    return out


def selects(selector: Object | None, values: Object | None) -> bool:
    """True when a label selector matches these labels; no selector matches nothing."""
    if selector is None:
        return False
    held = values or {}
    if any(held.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for expression in selector.get("matchExpressions") or []:
        key, wanted = expression.get("key"), expression.get("values") or []
        match expression.get("operator"):
            case "In" if held.get(key) not in wanted or key not in held:
                return False
            case "NotIn" if key in held and held[key] in wanted:
                return False
            case "Exists" if key not in held:
                return False
            case "DoesNotExist" if key in held:
                return False
    return True
