"""Bodies of custom resources: what a server that has no Go type for them checks before it looks at the schema.

`apiVersion`, `kind` and `metadata` are typed for every object; the rest is pruned and validated by `custom_schema`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.apiserver import go_json, schema, schema_codec
from infra.lab.apiserver.status import ApiStatusError, invalid, invalid_value

if TYPE_CHECKING:
    from infra.lab.apiserver.kinds import KindInfo

Object = dict[str, Any]


def foreign_version(kind: KindInfo, given: str) -> str:
    """Why an object of this `apiVersion` is no object of the definition; empty when it is one."""
    if given == kind.api_version:
        return ""
    group = given.rpartition("/")[0]
    if group != kind.group:
        shown = f"{given}, Kind={kind.kind}" if "/" in given else f"/{given}, Kind={kind.kind}"
        return f'{shown} is unstructured and is not suitable for converting to "{kind.api_version}"'
    return f"request to convert CR from an invalid group/version: {given}"


def other_kind(kind: KindInfo, obj: Object) -> ApiStatusError | None:
    """422 when the object says it is of another kind; it is named by the kind it claims."""
    given = str(obj.get("kind") or "")
    if given == kind.kind:
        return None
    cause = invalid_value("kind", go_json.quote(given), f"must be {kind.kind}")
    return invalid(given, str((obj.get("metadata") or {}).get("name") or ""), [cause], kind.group)


def type_metadata(obj: Object) -> list[str]:
    """Give `metadata` its type, in place; complaints about fields it does not have.

    Raises schema_codec.DecodeError for a field of a wrong type, in the words of the real server.
    """
    given = obj.get("metadata")
    if given is None:
        obj["metadata"] = {}
        return []
    decoder = schema_codec.Decoder()
    shown = f"metadata: Invalid value: {go_json.field_value(go_json.sorted_keys(given))}"
    if not isinstance(given, dict):
        raise schema_codec.DecodeError(f"{shown}: {go_json.unmarshal_error(given, 'v1.ObjectMeta')}")
    try:
        typed = decoder.decode(schema.struct(schema.OBJECT_META), given)
    except schema_codec.DecodeError as error:
        raise schema_codec.DecodeError(f"{shown}: {error}") from None
    if typed.get("creationTimestamp") is None:
        typed.pop("creationTimestamp", None)
    obj["metadata"] = typed
    return [complaint.replace('field "', 'field "metadata.', 1) for complaint in decoder.unknown]
