"""From the bytes of a request to an object of its kind: what is malformed, unknown or doubled, in a server's words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode

from infra.lab.apiserver import custom_objects, go_json, go_yaml, schema, schema_codec
from infra.lab.apiserver.status import ApiStatusError, bad_request

if TYPE_CHECKING:
    from infra.lab.apiserver.kinds import KindInfo

Object = dict[str, Any]

# How much of a body that is no object an error shows
_SHOWN_CHARACTERS = 30
_SCHEME = "pkg/api/legacyscheme/scheme.go:30"


def check(kind: KindInfo, body: bytes | Object, mode: str) -> tuple[Object, list[str]]:
    """Decode the body of a create or replace.

    Args:
        kind: What the URL wants the body to be.
        body: JSON text, or an object already decoded (protobuf).
        mode: ``Strict`` refuses unknown and duplicate fields, ``Warn`` returns them as warnings, ``Ignore`` drops them.

    Returns:
        The object in the form a typed server gives it (unknown fields gone, `kind` and `apiVersion` filled in), and
        the warnings.

    Raises:
        ApiStatusError: 400 in the words of the real server.
    """
    value = _parse(kind, body) if isinstance(body, bytes) else body
    value = {} if value is None else value
    if kind.custom:
        return _custom(kind, body, value, mode)
    given_version, given_kind = _type_meta(kind, value)
    if (given_version, given_kind) != (kind.api_version, kind.kind):
        raise _other_kind(kind, given_version, given_kind)
    value["apiVersion"], value["kind"] = given_version, given_kind
    struct = schema.find_struct(kind.group, kind.version, kind.kind)
    if struct is None:
        decoded, found = value, schema_codec.duplicates(value)
    else:
        decoder = schema_codec.Decoder()
        try:
            decoded = decoder.decode(struct, value)
        except schema_codec.DecodeError as error:
            raise cannot_handle(kind, given_version, given_kind, str(error)) from None
        found = decoder.unknown
    if found and mode == "Strict":
        raise cannot_handle(kind, given_version, given_kind, strict_words(found))
    return decoded, found if mode == "Warn" else []


def _custom(kind: KindInfo, body: bytes | Object, value: Any, mode: str) -> tuple[Object, list[str]]:
    """As `check`, for a custom resource: its `kind` and `apiVersion` have no defaults."""
    _type_meta(kind, value)
    given_version, given_kind = value.get("apiVersion") or "", value.get("kind") or ""
    if not given_kind:
        text = body if isinstance(body, bytes) else go_json.encode(body).encode()
        words = f"Object 'Kind' is missing in '{text.decode('utf-8', 'replace')}'"
        raise unrecognized(kind, words, text, prefix="")
    if given_version != kind.api_version:
        version = given_version.rsplit("/", 1)[-1]
        if kind.storage_version == version and given_version.startswith(f"{kind.group}/"):
            raise bad_request(
                f"the API version in the data ({given_version}) does not match the expected API version "
                f"({kind.api_version})"
            )
        raise cannot_handle(kind, given_version, given_kind, custom_objects.foreign_version(kind, given_version))
    found = schema_codec.duplicates(value)
    try:
        found += custom_objects.type_metadata(value)
    except schema_codec.DecodeError as error:
        raise cannot_handle(kind, given_version, given_kind, str(error)) from None
    if found and mode == "Strict":
        raise cannot_handle(kind, given_version, given_kind, strict_words(found))
    if wrong := custom_objects.other_kind(kind, value):
        raise wrong
    return value, found if mode == "Warn" else []


def strict_words(found: list[str]) -> str:
    """The complaint of strict decoding about these fields."""
    return "strict decoding error: " + ", ".join(found)


def cannot_handle(kind: KindInfo, given_version: str, given_kind: str, words: str) -> ApiStatusError:
    """400: the body names a kind the server knows but cannot take it for what the URL wants."""
    version = given_version.rsplit("/", 1)[-1]
    return bad_request(f'{given_kind} in version "{version}" cannot be handled as a {kind.kind}: {words}')


def _parse(kind: KindInfo, body: bytes) -> Any:
    text = body.decode("utf-8", "replace")
    try:
        return schema_codec.parse_json(text)
    except (json.JSONDecodeError, RecursionError):
        raise unrecognized(kind, go_json.syntax_error(text) or go_json.END, body) from None


def unrecognized(kind: KindInfo, words: str, body: bytes, prefix: str = go_json.NO_TYPE) -> ApiStatusError:
    """400: the body cannot be read at all, or names no kind."""
    return bad_request(
        f"the object provided is unrecognized (must be of type {kind.kind}): {prefix}{words} ({shown_body(body)})"
    )


def shown_body(body: bytes) -> str:
    """The start of a body as an error shows it: text that looks like JSON as text, anything else in hexadecimal."""
    if not body:
        return "<empty>"
    shown = body.decode("utf-8", "replace") if body.lstrip().startswith(b"{") else body.hex()
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]} ..."


def _type_meta(kind: KindInfo, value: Any) -> tuple[str, str]:
    """`apiVersion` and `kind` of the body, from the URL where it has none."""
    if not isinstance(value, dict):
        raise unrecognized(kind, go_json.TYPE_META.format(schema_codec.json_kind(value)), json.dumps(value).encode())
    for field in ("apiVersion", "kind"):
        if value.get(field) is not None and not isinstance(value[field], str):
            shown = schema_codec.json_kind(value[field])
            words = f"json: cannot unmarshal {shown} into Go struct field .{field} of type string"
            raise unrecognized(kind, words, go_json.encode(value).encode())
    return value.get("apiVersion") or kind.api_version, value.get("kind") or kind.kind


def _other_kind(kind: KindInfo, given_version: str, given_kind: str) -> ApiStatusError:
    return cannot_handle(kind, given_version, given_kind, _conversion_error(kind, given_version, given_kind))


def kind_mismatch(kind: KindInfo, document: Object) -> str:
    """Why a document cannot be an object of this built-in kind by its `apiVersion` and `kind`; empty when it can."""
    version, name = document.get("apiVersion") or kind.api_version, document.get("kind") or kind.kind
    if (version, name) == (kind.api_version, kind.kind) or not (isinstance(version, str) and isinstance(name, str)):
        return ""
    return _conversion_error(kind, version, name)


def _conversion_error(kind: KindInfo, given_version: str, given_kind: str) -> str:
    group, _, version = given_version.rpartition("/")
    target = (kind.group.split(".")[0] or "core").removesuffix(".k8s.io")
    if schema.find_struct(group, version, given_kind) is not None:
        return f"converting ({version}.{given_kind}) to ({target}.{kind.kind}): unknown conversion"
    return f'no kind "{given_kind}" is registered for version "{given_version}" in scheme "{_SCHEME}"'


def check_applied(kind: KindInfo, body: bytes, mode: str) -> Object:
    """Decode the body of a server-side apply: YAML (1.1, as the real server reads it) or JSON.

    The result keeps exactly what the client wrote, since that is what it will own; the types are checked where it is
    applied (`apply`). Raises ApiStatusError 400.
    """
    text = body.decode("utf-8", "replace")
    value = _yaml(text)
    value = {} if value is None else value
    if not isinstance(value, dict):
        words = go_json.unmarshal_error(value, "map[string]interface {}")
        raise bad_request(f"error decoding YAML: error unmarshaling JSON: while decoding JSON: {words}")
    repeated = applied_twice(body) if mode == "Strict" else ""
    if repeated:
        raise bad_request(f"error strict decoding YAML: {repeated}")
    group, _, version = str(value.get("apiVersion") or "").rpartition("/")
    given_kind = str(value.get("kind") or "")
    if (group, version, given_kind) != (kind.group, kind.version, kind.kind):
        raise bad_request(f"invalid object type: {group}/{version}, Kind={given_kind}")
    metadata = value.get("metadata")
    if isinstance(metadata, dict) and metadata.get("managedFields") is not None:
        raise bad_request("metadata.managedFields must be nil")
    return value


def _yaml(text: str) -> Any:
    try:
        return schema_codec.parse_json(text)
    except json.JSONDecodeError:
        pass
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 1)
    reader.allow_duplicate_keys = True
    try:
        root = reader.compose(text)
        _keep_last(root)
        return None if root is None else _as_json(reader.constructor.construct_document(root))
    except YAMLError as error:
        words = go_yaml.complaint(error)
        raise bad_request(f"error decoding YAML: error converting YAML to JSON: yaml: {words}") from None


def applied_twice(body: bytes) -> str:
    """Which keys of a YAML document (JSON is one) are given twice, with their lines; empty when none is."""
    reader = YAML(typ="safe", pure=True)
    reader.allow_duplicate_keys = True
    try:
        root = reader.compose(body.decode("utf-8", "replace"))
    except YAMLError:
        return ""
    found = [f'  line {line}: key "{key}" already set in map' for line, key in _repeated(root)]
    return "error converting YAML to JSON: yaml: unmarshal errors:\n" + "\n".join(found) if found else ""


def _keep_last(node: Any) -> None:
    """Of a key given twice the last value counts, as for the real server; the reader would take the first."""
    if isinstance(node, MappingNode):
        last = {(key.value if isinstance(key.value, str) else id(key)): (key, value) for key, value in node.value}
        node.value = list(last.values())
        for _key_node, value in node.value:
            _keep_last(value)
    elif isinstance(node, SequenceNode):
        for item in node.value:
            _keep_last(item)


def _repeated(node: Any) -> list[tuple[int, str]]:
    out: list[tuple[int, str]] = []
    if isinstance(node, MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                out.append((key.start_mark.line + 1, key.value))
            seen.add(key.value)
            out += _repeated(value)
    elif isinstance(node, SequenceNode):
        for item in node.value:
            out += _repeated(item)
    return out


def _as_json(value: Any) -> Any:
    """YAML values as JSON has them: keys are strings (``y: 1`` is ``"true": 1`` in YAML 1.1), dates are text."""
    if isinstance(value, dict):
        return {_key(key): _as_json(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _key(key: object) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)
