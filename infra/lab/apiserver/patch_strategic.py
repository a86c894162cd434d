"""Strategic merge patch: a merge patch which knows the lists (Kubernetes API conventions, "Strategic Merge Patch").

Lists whose type declares ``patchStrategy: merge`` are merged element by element on their merge key, others are
replaced. Directives in the patch: ``$patch`` (replace, delete, merge), ``$retainKeys``, ``$setElementOrder/LIST``,
``$deleteFromPrimitiveList/LIST``.
"""

from __future__ import annotations

from typing import Any

from infra.lab.apiserver import go_json, schema
from infra.lab.apiserver.status import ApiStatusError, bad_request, plain_error

PATCH = "$patch"
RETAIN_KEYS = "$retainKeys"
SET_ORDER = "$setElementOrder/"
DELETE_PRIMITIVES = "$deleteFromPrimitiveList/"

Object = dict[str, Any]


def merge_into(struct: schema.Struct | None, original: Object, patch: Object) -> Object:
    """`original` with `patch` merged into it; both are used up.

    `struct` is the type of the objects, None for maps and untyped parts, whose lists are replaced.
    Raises ApiStatusError: 400 for malformed directives, 500 for a list element without its merge key, as real servers.
    """
    return _merge_map(struct, original, patch)


def _field(struct: schema.Struct | None, name: str) -> schema.Field | None:
    return struct.by_name.get(name) if struct else None


def _below(kind: schema.Type | None) -> schema.Struct | None:
    """The type of a field's value or, for lists, of its elements."""
    if kind is None:
        return None
    if kind.item is not None:
        return _below(kind.item)
    return schema.struct(kind.struct) if kind.struct else None


def _merge_map(struct: schema.Struct | None, original: Object, patch: Object) -> Object:
    directive = patch.get(PATCH)
    if directive not in (None, "replace", "delete", "merge"):
        raise plain_error(f"unknown patch type: {go_json.show(directive)} in map: {go_json.show(patch)}")
    patch.pop(PATCH, None)
    if directive == "replace":
        return dict(_plain(patch))
    if directive == "delete":
        return {}
    _retain_keys(original, patch)
    _ordered_lists(struct, original, patch)
    for key, value in patch.items():
        deletes = key.startswith(DELETE_PRIMITIVES)
        name = key.removeprefix(DELETE_PRIMITIVES)
        if value is None:
            original.pop(name, None)
        elif name not in original or type(original[name]) is not type(value):
            if not deletes:
                original[name] = _plain(value)
        else:
            original[name] = _merge_value(_field(struct, name), original[name], value, deletes)
    return original


def _merge_value(field: schema.Field | None, original: Any, value: Any, deletes: bool) -> Any:
    kind = field.type if field else None
    if isinstance(value, dict):
        if field and "replace" in field.patch:
            return _plain(value)
        return _merge_map(_below(kind), original, value)
    if isinstance(value, list):
        return _merge_list(field, original, value, deletes)
    return value


def _plain(value: Any) -> Any:
    """A value new to the object: directives are dropped and nulls (deletions of nothing) too."""
    if isinstance(value, dict):
        return {
            key: _plain(entry)
            for key, entry in value.items()
            if entry is not None
            and key not in (PATCH, RETAIN_KEYS)
            and not key.startswith((SET_ORDER, DELETE_PRIMITIVES))
        }
    if isinstance(value, list):
        kept = [item for item in value if not (isinstance(item, dict) and PATCH in item)]
        return [_plain(item) for item in kept]
    return value


def _retain_keys(original: Object, patch: Object) -> None:
    """``$retainKeys``: whatever the list does not name goes away (used for unions such as volumes)."""
    if RETAIN_KEYS not in patch:
        return
    keys = patch.pop(RETAIN_KEYS)
    named = {key for key in patch if not key.startswith((SET_ORDER, DELETE_PRIMITIVES))}
    if not isinstance(keys, list) or not named <= {key for key in keys if isinstance(key, str)}:
        raise bad_request("invalid patch format of retainKeys")
    for key in [key for key in original if key not in keys]:
        del original[key]


def _ordered_lists(struct: schema.Struct | None, original: Object, patch: Object) -> None:
    """Merge the lists for which the patch states the order of their elements."""
    for directive in [key for key in patch if key.startswith(SET_ORDER)]:
        order = patch.pop(directive)
        name = directive.removeprefix(SET_ORDER)
        field = _field(struct, name)
        change = patch.pop(name, None)
        if not isinstance(order, list):
            raise bad_request("invalid patch format of setElementOrder list")
        before = original.get(name)
        merge_key = field.merge_key if field else ""
        if isinstance(before, list):
            merged = _merge_list(field, list(before), change, deletes=False) if change else list(before)
        elif isinstance(change, list):
            merged = _plain(change)
        else:
            continue
        _check_order(order, change, merge_key)
        original[name] = _reorder(merged, order, before or [], merge_key)


def _check_order(order: list[Any], change: Any, merge_key: str) -> None:
    """Every element the patch changes has to be named in the order it states, in the same sequence."""
    if not change:
        return
    wanted = [_identity(item, merge_key) for item in order]
    position = -1
    for item in change:
        if isinstance(item, dict) and item.get(PATCH) in ("delete", "replace"):
            continue
        identity = _identity(item, merge_key)
        if identity not in wanted or wanted.index(identity) <= position:
            raise bad_request("invalid patch format of setElementOrder list")
        position = wanted.index(identity)


def _identity(item: Any, merge_key: str) -> Any:
    return item.get(merge_key) if isinstance(item, dict) else item


def _merge_list(field: schema.Field | None, original: list[Any], patch: list[Any], deletes: bool) -> list[Any]:
    if deletes:
        return [item for item in original if item not in patch]
    if field is None or "merge" not in field.patch:
        return list(_plain(patch))
    kinds = {type(item) for item in [*original, *patch]}
    if len(kinds) > 1 or list in kinds:
        raise plain_error("list element types are not identical")
    if dict not in kinds:
        merged = list(dict.fromkeys([*original, *patch]))
        return _reorder(merged, patch, original, "")
    key = field.merge_key
    original, patch = _special_elements(original, patch, key)
    struct = _below(field.type)
    merged = list(original)
    for item in patch:
        if key not in item:
            raise _no_merge_key(item, key)
        at = next((n for n, old in enumerate(merged) if old.get(key) == item[key]), None)
        if at is None:
            merged.append(_plain(item))
        else:
            merged[at] = _merge_map(struct, merged[at], item)
    return _reorder(merged, patch, original, key)


def _no_merge_key(item: Object, key: str) -> ApiStatusError:
    return plain_error(f"map: {go_json.show(item)} does not contain declared merge key: {key}")


def _special_elements(original: list[Any], patch: list[Any], key: str) -> tuple[list[Any], list[Any]]:
    """Carry out ``$patch: delete`` and ``$patch: replace`` elements; what remains of both lists is to be merged."""
    remaining: list[Any] = []
    replace = False
    for item in patch:
        directive = item.get(PATCH)
        if directive is None:
            remaining.append(item)
        elif directive == "delete":
            if key not in item:
                raise _no_merge_key(item, key)
            original = [old for old in original if old.get(key) != item[key]]
        elif directive == "replace":
            replace = True
        elif directive == "merge":
            raise plain_error("merging lists cannot yet be specified in the patch")
        else:
            raise plain_error(f"unknown patch type: {go_json.show(directive)} in map: {go_json.show(item)}")
    return ([] if replace else original), remaining


def _reorder(merged: list[Any], stated: list[Any], server: list[Any], key: str) -> list[Any]:
    """Elements the patch names in its order, the others in the server's; undecided ones after."""
    ranks = [_identity(item, key) for item in stated]
    places = [_identity(item, key) for item in server]
    named = sorted((i for i in merged if _identity(i, key) in ranks), key=lambda i: ranks.index(_identity(i, key)))
    others = [item for item in merged if _identity(item, key) not in ranks]
    others.sort(key=lambda item: places.index(_identity(item, key)) if _identity(item, key) in places else len(places))
    out: list[Any] = []
    while named and others:
        left, right = _identity(others[0], key), _identity(named[0], key)
        earlier = left in places and right in places and places.index(left) < places.index(right)
        out.append(others.pop(0) if earlier else named.pop(0))
    return [*out, *named, *others]
