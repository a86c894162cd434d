"""PATCH: JSON patch (RFC 6902), JSON merge patch (RFC 7396), strategic merge patch; the errors of a real server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from infra.lab.apiserver import custom_objects, fieldvalidation, go_json, patch_strategic, schema, schema_codec
from infra.lab.apiserver.status import (
    ApiStatusError,
    bad_request,
    invalid,
    invalid_value,
    request_rejected,
    unknown_body_format,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.apiserver.kinds import KindInfo

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

MAX_OPERATIONS = 10_000

DECODING = "error decoding patch: "

# the position after the last element of a list (RFC 6902, section 4.1)
APPEND = ("-",)

Object = dict[str, Any]


def apply_patch(
    kind: KindInfo, current: Object, content_type: str, body: bytes, mode: str = "Ignore"
) -> tuple[Object, list[str]]:
    """The object `current` becomes under the patch, and warnings; `current` is not changed.

    Args:
        kind: The resource patched; a subresource with a body of its own (scale) passes that body's kind.
        current: The object as it would be answered, `kind` and `apiVersion` included.
        content_type: One of the media types above, parameters allowed.
        body: The patch as sent.
        mode: ``Strict`` refuses unknown and duplicate fields, ``Warn`` returns them as warnings, ``Ignore`` drops them.

    Raises:
        ApiStatusError: 400 for a malformed patch, 413 for too many operations, 415 for an unknown media type, 422 for
            a patch that cannot be applied or whose result does not fit the type, 500 without reason where the real
            server has no better answer (a strategic merge element without its merge key).
    """
    media = content_type.split(";")[0].strip()
    struct = None if kind.custom else schema.find_struct(kind.group, kind.version, kind.kind)
    document = schema_codec.clone(current)
    if media in (JSON_PATCH, MERGE_PATCH):
        change, read = (_json_patch, _operations) if media == JSON_PATCH else (_merge_patch, _merge_complaints)
        repeated = read(body)
        change(document, body)

        def shown() -> str:
            """The patched document, from one whose fields are in the order of the encoding."""
            again = schema_codec.normalise(struct, current) if struct else schema_codec.clone(current)
            return _encode(again, change(again, body))

        return _typed(kind, struct, document, shown, mode, repeated)
    if media == STRATEGIC_PATCH and not kind.custom:
        patch = _object(body, "")
        words, repeated = go_json.show(patch), schema_codec.duplicates(patch)
        merged = patch_strategic.merge_into(struct, document, patch)
        return _typed(kind, struct, merged, lambda: words, mode, repeated, unstructured=True)
    accepted = [JSON_PATCH, MERGE_PATCH, *([] if kind.custom else [STRATEGIC_PATCH]), APPLY_PATCH]
    raise unknown_body_format(accepted)


def _merge_complaints(body: bytes) -> list[str]:
    return schema_codec.duplicates(_object(body, DECODING))


def _parse(body: bytes, prefix: str) -> Any:
    text = body.decode("utf-8", "replace")
    try:
        return schema_codec.parse_json(text)
    except json.JSONDecodeError:
        raise bad_request(f"{prefix}{go_json.syntax_error(text) or go_json.END}") from None


def _object(body: bytes, prefix: str) -> Object:
    value = _parse(body, prefix)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_request(prefix + go_json.unmarshal_error(value, "map[string]interface {}"))
    return value


def _typed(
    kind: KindInfo,
    struct: schema.Struct | None,
    after: Object,
    shown: Callable[[], str],
    mode: str,
    complaints: list[str],
    *,
    unstructured: bool = False,
) -> tuple[Object, list[str]]:
    """Decode the patched document into its type; `shown` is how an error prints the document."""
    if struct is None:
        decoded, found = after, complaints
        if kind.custom:
            found = complaints + _custom(kind, after, shown)
    else:
        decoder = schema_codec.Decoder(unstructured=unstructured)
        if not unstructured and (words := fieldvalidation.kind_mismatch(kind, after)):
            raise _invalid_patch(shown(), words)
        try:
            decoded = decoder.decode(struct, after)
        except schema_codec.DecodeError as error:
            raise _invalid_patch(shown(), str(error)) from None
        found = [*complaints, *decoder.unknown]
    if found and mode == "Strict":
        raise _invalid_patch(shown(), "strict decoding error: " + ", ".join(found))
    return decoded, (found if mode == "Warn" else [])


def _custom(kind: KindInfo, after: Object, shown: Callable[[], str]) -> list[str]:
    """What holds for any custom resource; complaints about unknown metadata."""
    version = after.get("apiVersion")
    words = custom_objects.foreign_version(kind, version if isinstance(version, str) else "")
    if not after.get("kind"):
        words = f"Object 'Kind' is missing in '{shown()}'"
    if words:
        raise _invalid_patch(shown(), words)
    try:
        unknown = custom_objects.type_metadata(after)
    except schema_codec.DecodeError as error:
        raise _invalid_patch(shown(), str(error)) from None
    if wrong := custom_objects.other_kind(kind, after):
        raise wrong
    return unknown


def _invalid_patch(shown: str, message: str) -> ApiStatusError:
    return invalid("", "", [invalid_value("patch", go_json.quote(shown), message)])


def _encode(document: Object, touched: list[Object]) -> str:
    """The patched document as Go writes it: what the patch went through is sorted, the rest stays as it was."""
    for entry in [document, *touched]:
        items = sorted(entry.items())
        entry.clear()
        entry.update(items)
    return go_json.encode(document)


# --- JSON merge patch


def _merge_patch(document: Object, body: bytes) -> list[Object]:
    """Apply a merge patch to `document` in place; the objects it went through are returned."""
    touched: list[Object] = []
    _merge(document, _object(body, DECODING), touched)
    return touched


def _merge(target: Object, patch: Object, touched: list[Object]) -> Object:
    touched.append(target)
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            held = target.get(key)
            target[key] = _merge(held, value, touched) if isinstance(held, dict) else _without_nulls(value)
        else:
            target[key] = value
    return target


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return value


# --- JSON patch

_MEMBERS = ("op", "path", "from", "value")


def _operations(body: bytes) -> list[str]:
    """Check the form of a JSON patch; complaints about members its operations do not have or have twice."""
    operations = _parse(body, DECODING)
    if not isinstance(operations, list | None):
        raise bad_request(DECODING + go_json.unmarshal_error(operations, "[]handlers.jsonPatchOp"))
    if operations and len(operations) > MAX_OPERATIONS:
        message = f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(operations)}"
        raise ApiStatusError(413, message, "RequestEntityTooLarge")
    out = [f"json patch {words}" for words in schema_codec.duplicates(operations) if words.count(".") == 1]
    for number, operation in enumerate(operations or []):
        if not isinstance(operation, dict):
            raise bad_request(DECODING + go_json.unmarshal_error(operation, "handlers.jsonPatchOp"))
        for member in ("op", "path", "from"):
            if not isinstance(operation.get(member), str | None):
                held = schema_codec.json_kind(operation[member])
                where = f"Go struct field jsonPatchOp.{member} of type string"
                raise bad_request(f"{DECODING}json: cannot unmarshal {held} into {where}")
        out += [f'json patch unknown field "[{number}].{name}"' for name in operation if name not in _MEMBERS]
    return out


def _json_patch(document: Object, body: bytes) -> list[Object]:
    """Apply the operations to `document` in place; the objects they went through are returned."""
    touched: list[Object] = []
    for operation in _parse(body, DECODING) or []:
        try:
            _operate(document, operation, touched)
        except (_Inapplicable, RecursionError):
            raise request_rejected() from None
    return touched


class _Inapplicable(Exception):
    """The operation cannot be carried out."""


_MISSING = object()


def _operate(document: Object, operation: Object, touched: list[Object]) -> None:
    action, path = operation.get("op"), operation.get("path")
    if not isinstance(path, str):
        raise _Inapplicable
    match action:
        case "add":
            _put(document, path, _given(operation), touched, insert=True)
        case "replace":
            _put(document, path, _given(operation), touched, insert=False)
        case "remove":
            _take(document, path, touched)
        case "test":
            if not _same(_find(document, path, touched), operation.get("value")):
                raise _Inapplicable
        case "copy" | "move":
            source = operation.get("from")
            if not isinstance(source, str):
                raise _Inapplicable
            value = _find(document, source, touched)
            if value is _MISSING:
                raise _Inapplicable
            if action == "move":
                _take(document, source, touched)
            _put(document, path, schema_codec.clone(value), touched, insert=True)
        case _:
            raise _Inapplicable


def _given(operation: Object) -> Any:
    return schema_codec.clone(operation.get("value"))


def _same(held: Any, wanted: Any) -> bool:
    """Equality of JSON values; a missing member equals null, as in the implementation real servers use."""
    if held is _MISSING:
        return wanted is None
    if isinstance(held, dict) and isinstance(wanted, dict):
        return held.keys() == wanted.keys() and all(_same(held[key], wanted[key]) for key in held)
    if isinstance(held, list) and isinstance(wanted, list):
        return len(held) == len(wanted) and all(_same(a, b) for a, b in zip(held, wanted, strict=True))
    return type(held) is type(wanted) and bool(held == wanted)


def _parent(document: Object, pointer: str, touched: list[Object]) -> tuple[Any, str]:
    """The container a JSON pointer (RFC 6901) leads into, and the last token."""
    tokens = [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")]
    if len(tokens) < 2:
        raise _Inapplicable
    here: Any = document
    touched.append(document)
    for token in tokens[1:-1]:
        if isinstance(here, dict):
            here = here.get(token, _MISSING)
        elif isinstance(here, list):
            here = here[_index(token, len(here))]
        if isinstance(here, dict):
            touched.append(here)
        elif not isinstance(here, list):
            raise _Inapplicable
    return here, tokens[-1]


def _index(token: str, size: int, *, beyond: bool = False) -> int:
    """A list position; negative ones count from the end. `beyond` allows the position after the last."""
    try:
        number = int(token)
    except ValueError:
        raise _Inapplicable from None
    if number < 0:
        number += size + beyond
    if not 0 <= number < size + beyond:
        raise _Inapplicable
    return number


def _find(document: Object, pointer: str, touched: list[Object]) -> Any:
    container, token = _parent(document, pointer, touched)
    if isinstance(container, dict):
        return container.get(token, _MISSING)
    return container[_index(token, len(container))]


def _put(document: Object, pointer: str, value: Any, touched: list[Object], *, insert: bool) -> None:
    """Set a member. In an object `replace` adds what is missing, as real servers do."""
    container, token = _parent(document, pointer, touched)
    if isinstance(container, dict):
        container[token] = value
    elif insert and token in APPEND:
        container.append(value)
    elif insert:
        container.insert(_index(token, len(container), beyond=True), value)
    else:
        container[_index(token, len(container))] = value


def _take(document: Object, pointer: str, touched: list[Object]) -> None:
    container, token = _parent(document, pointer, touched)
    if isinstance(container, dict):
        if token not in container:
            raise _Inapplicable
        del container[token]
    else:
        del container[_index(token, len(container))]
