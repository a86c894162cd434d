"""CREATE, UPDATE and PATCH: from the decoded body to the commit.

All three end in `_commit_new` or `_commit_update`, which do what the registry of the real server does: prepare,
validate, look for conflicts, store. Admission may take time (webhooks), so an update whose object changed meanwhile is
computed again, unless the client said which version it means.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from . import (
    apply,
    custom_rules,
    custom_schema,
    defaults,
    deleting,
    fieldvalidation,
    options,
    owners,
    patch,
    protobuf,
    remarks,
    schema_codec,
    status,
    strategy,
    validation,
    yaml_codec,
)
from .api import AdmissionAttributes, manager_of
from .objects import canonical, convert, ordered, stored_form
from .reading import show
from .store import ConflictError, Stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from .api import Api
    from .kinds import KindInfo
    from .request import Request, Response

JSON = dict[str, Any]
ACCEPTED_BODIES = ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")
PATCH_TYPES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)
# The real server computes a patch anew this often when others keep changing the object.
ATTEMPTS = 5
NAME_ATTEMPTS = 8


def decode(request: Request, kind: KindInfo) -> JSON:
    """The body as an object of `kind`: JSON, YAML or protobuf; unknown fields by the fieldValidation option."""
    content_type = request.content_type
    mode = request.query.get("fieldValidation") or "Warn"
    if content_type == "application/vnd.kubernetes.protobuf":
        body: bytes | JSON = protobuf.decode(request.body, kind.kind)
    elif content_type == "application/json":
        body = request.body
    elif content_type == "application/yaml":
        try:
            body = yaml_codec.to_json(request.body)
        except ValueError as error:
            raise fieldvalidation.unrecognized(kind, str(error), request.body, prefix="") from None
    else:
        raise status.unknown_body_format(ACCEPTED_BODIES)
    obj, warnings = fieldvalidation.check(kind, body, mode)
    if kind.custom:
        warnings += _prune(kind, obj, mode)
    request.warnings.extend(warnings)
    return obj


def _prune(kind: KindInfo, obj: JSON, mode: str) -> list[str]:
    """Drop what a custom resource's schema does not know; warnings about it, or 400 if validation is strict."""
    unknown = [f'unknown field "{path}"' for path in sorted(custom_schema.prune(obj, kind.schema))]
    if unknown and mode == "Strict":
        words = fieldvalidation.strict_words(unknown)
        raise fieldvalidation.cannot_handle(kind, kind.version, kind.kind, words)
    return unknown if mode == "Warn" else []


def complete(kind: KindInfo, obj: JSON) -> None:
    """Defaults of a built-in kind, or of a custom resource's schema. In place."""
    if kind.custom:
        custom_schema.apply_defaults(obj, kind.schema)
    else:
        defaults.apply_defaults(kind, obj)


def completed(obj: JSON, kind: KindInfo) -> JSON:
    """The canonical form of an object after `complete`, which gives built-in kinds that form but for the first keys."""
    return canonical(obj, kind) if kind.custom else ordered(obj, kind)


def check(kind: KindInfo, obj: JSON, old: JSON | None = None, subresource: str = "") -> list[str]:
    """422 for an object which must not be stored; warnings about what an update may leave wrong."""
    if not kind.custom:
        validation.validate(kind, obj, old, subresource)
        return []
    causes = custom_schema.validate(obj, kind.schema)
    if old is not None:
        causes = custom_rules.ratcheted(causes, obj, old)
    causes = validation.causes(kind, obj, old, subresource) + causes
    if kind.scale_paths:
        causes += custom_schema.validate_scale(obj, kind.scale_paths["spec"])
    more, warnings = custom_rules.judge(obj, kind.schema, old, causes)
    if causes + more:
        raise status.invalid(kind.kind, obj["metadata"].get("name", ""), causes + more, kind.group)
    return warnings


def check_namespace(request: Request, kind: KindInfo, obj: JSON) -> None:
    """Namespaces of URL and object must agree; an empty one is filled in."""
    metadata = obj.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise status.bad_request("metadata must be an object")
    wanted = request.info.namespace if kind.namespaced else ""
    given = metadata.get("namespace") or ""
    if given and given != wanted:
        raise status.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    if wanted:
        metadata["namespace"] = wanted
    else:
        metadata.pop("namespace", None)


async def create(api: Api, request: Request) -> Response:
    kind = request.kind
    options.check_write(request, "CreateOptions")
    obj = decode(request, kind)
    check_namespace(request, kind, obj)
    owners.without_duplicates(request, obj)
    stored = await create_object(api, request, kind, obj)
    return show(api, stored, kind, request, code=201)


async def create_object(api: Api, request: Request, kind: KindInfo, obj: JSON, applied: bool = False) -> Stored:
    """Store a new object; the answer of a dry run has no resourceVersion. `applied`: managedFields are there."""
    metadata = obj["metadata"]
    if metadata.get("resourceVersion"):
        raise status.plain_error("resourceVersion should not be set on objects to be created")
    complete(kind, obj)
    if not applied:
        apply.track_update(kind, None, obj, manager_of(request), "Update", "", api.now())
    attributes = AdmissionAttributes(
        request,
        kind,
        "CREATE",
        request.info.namespace,
        metadata.get("name") or "",
        obj,
        options=_options(request, "Create"),
    )
    await api.admission.mutate(attributes)
    obj = attributes.obj or obj
    owners.without_duplicates(request, obj, admitted=True)
    metadata = obj["metadata"]
    generated = not metadata.get("name") and bool(metadata.get("generateName"))
    for attempt in range(NAME_ATTEMPTS):
        if generated:
            metadata["name"] = metadata["generateName"][: 63 - 5] + api.random_suffix()
        if attempt == 0:
            metadata["uid"] = api.new_uid()
            metadata["creationTimestamp"] = api.timestamp()
            strategy.prepare_create(api, kind, obj)
            complete(kind, obj)
            request.warnings.extend(check(kind, obj))
            request.warnings.extend(remarks.about(kind, obj))
            attributes.obj, attributes.name = obj, metadata["name"]
            await api.admission.validate(attributes)
            obj = completed(obj, kind)
            metadata = obj["metadata"]
        key = (metadata.get("namespace") or "", metadata["name"])
        existing = api.store.get(kind.storage, *key)
        if existing is None:
            break
        if generated and attempt < NAME_ATTEMPTS - 1:
            continue
        prefix = "object is being deleted: " if existing.obj["metadata"].get("deletionTimestamp") else ""
        raise status.already_exists(kind.plural, key[1], kind.group, prefix)
    final = stored_form(obj, kind)
    if request.dry_run:
        return Stored(key, final, 0)
    return api.store.create(kind.storage, key, final)


def _options(request: Request, operation: str) -> JSON:
    """Create-, Update- or PatchOptions as admission webhooks see them."""
    out: JSON = {"kind": f"{operation}Options", "apiVersion": "meta.k8s.io/v1"}
    for field in ("fieldManager", "fieldValidation"):
        if request.query.get(field):
            out[field] = request.query.get(field)
    if request.dry_run:
        out["dryRun"] = ["All"]
    if operation == "Patch" and "force" in request.query:
        out["force"] = request.query.flag("force")
    return out


async def update(api: Api, request: Request, subresource: str = "") -> Response:
    """PUT of an object or of its status (or another subresource of the same kind)."""
    kind, info = request.kind, request.info
    options.check_write(request, "UpdateOptions")
    obj = decode(request, kind)
    check_namespace(request, kind, obj)
    name = obj["metadata"].get("name") or ""
    if name != info.name:
        raise _other_name(name, info.name)
    version = obj["metadata"].get("resourceVersion") or ""
    try:
        wanted = options.unsigned(version) if version else 0
    except ValueError as error:
        raise status.plain_error(str(error)) from None

    owners.without_duplicates(request, obj)

    def replace(_current: JSON) -> JSON:
        return copy.deepcopy(obj)

    key = (info.namespace if kind.namespaced else "", info.name)
    if api.store.get(kind.storage, *key) is None:
        if obj["metadata"].get("uid"):
            # a certain object was meant, and it is gone
            raise _other_uid(kind, key[0], info.name, obj["metadata"]["uid"], "")
        if not kind.create_on_update or subresource:
            raise status.not_found(kind.plural, info.name, kind.group)
        obj["metadata"].pop("resourceVersion", None)
        stored = await create_object(api, request, kind, obj)
        return show(api, stored, kind, request, code=201)
    if not wanted and not kind.unconditional_update:
        cause = status.invalid_value("metadata.resourceVersion", "0", "must be specified for an update")
        raise status.invalid(kind.plural, info.name, [cause], kind.group)
    stored = await change(api, request, kind, replace, subresource, "Update", wanted)
    return show(api, stored, kind, request)


async def patch_object(api: Api, request: Request, subresource: str = "") -> Response:
    """PATCH in its four forms."""
    kind, info = request.kind, request.info
    content_type = request.content_type
    if content_type not in PATCH_TYPES:
        raise status.unsupported_media_type()
    options.check_write(request, "PatchOptions")
    if content_type == "application/apply-patch+yaml":
        return await _apply(api, request, subresource)
    key = (info.namespace if kind.namespaced else "", info.name)
    if api.store.get(kind.storage, *key) is None:
        raise status.not_found(kind.plural, info.name, kind.group)

    def patched(current: JSON) -> JSON:
        mode = request.query.get("fieldValidation") or "Warn"
        new, warnings = patch.apply_patch(kind, current, content_type, request.body, mode)
        if kind.custom:
            warnings = warnings + _prune(kind, new, mode)
        request.warnings.extend(text for text in warnings if text not in request.warnings)
        return new

    stored = await change(api, request, kind, patched, subresource, "Patch")
    return show(api, stored, kind, request)


async def _apply(api: Api, request: Request, subresource: str) -> Response:
    """Server-side apply (Kubernetes docs, "Server-Side Apply"): creates what is missing."""
    kind, info = request.kind, request.info
    mode = request.query.get("fieldValidation") or "Warn"
    applied = fieldvalidation.check_applied(kind, request.body, mode)
    if mode == "Warn" and (repeated := fieldvalidation.applied_twice(request.body)):
        request.warnings.append(repeated)
    manager, force = request.query.get("fieldManager"), request.query.flag("force")
    key = (info.namespace if kind.namespaced else "", info.name)
    if api.store.get(kind.storage, *key) is None:
        if subresource:
            raise status.not_found(kind.plural, info.name, kind.group)
        obj = apply.server_side_apply(kind, None, applied, manager, force, api.now())
        check_applied_identity(request, kind, obj)
        if uid := obj["metadata"].get("uid"):
            words = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            raise status.conflict(kind.plural, info.name, kind.group, words)
        obj["metadata"].pop("resourceVersion", None)
        if kind.custom:
            custom_schema.prune(obj, kind.schema)
        stored = await create_object(api, request, kind, obj, applied=True)
        return show(api, stored, kind, request, code=201)

    def merged(current: JSON) -> JSON:
        new = apply.server_side_apply(kind, current, copy.deepcopy(applied), manager, force, api.now(), subresource)
        check_applied_identity(request, kind, applied)
        if kind.custom:
            custom_schema.prune(new, kind.schema)
        return new

    stored = await change(api, request, kind, merged, subresource, "Patch", applied=True)
    return show(api, stored, kind, request)


def check_applied_identity(request: Request, kind: KindInfo, applied: JSON) -> None:
    metadata = applied.setdefault("metadata", {})
    name = metadata.get("name") or ""
    if name and name != request.info.name:
        raise _other_name(name, request.info.name)
    metadata["name"] = request.info.name
    check_namespace(request, kind, applied)


async def change(
    api: Api,
    request: Request,
    kind: KindInfo,
    make: Callable[[JSON], JSON],
    subresource: str,
    operation: str,
    wanted: int = 0,
    applied: bool = False,
) -> Stored:
    """Compute a new state from the present one with `make` and commit it; computed anew when it lost a race.

    `make` must leave what it is given alone and answer an object of its own.

    `wanted`: the resourceVersion a PUT carries (0: none). A patch which carries one says so in its result.
    """
    info = request.info
    key = (info.namespace if kind.namespaced else "", info.name)
    for attempt in range(ATTEMPTS):
        stored = api.store.get(kind.storage, *key)
        if stored is None:
            raise status.not_found(kind.plural, info.name, kind.group)
        old = convert(stored.obj, kind)
        obj = make(schema_codec.clone(old))
        try:
            return await _change_once(api, request, kind, stored, old, obj, subresource, operation, wanted, applied)
        except ConflictError:
            if attempt == ATTEMPTS - 1 or wanted:
                break
    raise status.conflict(kind.plural, info.name, kind.group)


async def _change_once(
    api: Api,
    request: Request,
    kind: KindInfo,
    stored: Stored,
    old: JSON,
    obj: JSON,
    subresource: str,
    operation: str,
    wanted: int,
    applied: bool,
) -> Stored:
    _check_identity(request, kind, obj)
    metadata, before = obj["metadata"], old["metadata"]
    if operation == "Update" and metadata.get("uid") and metadata["uid"] != before.get("uid"):
        raise _other_uid(kind, request.info.namespace, request.info.name, metadata["uid"], before["uid"])
    if not wanted and operation == "Patch":
        given = metadata.get("resourceVersion") or ""
        try:
            meant = options.unsigned(given) if given else 0
        except ValueError as error:
            raise status.plain_error(str(error)) from None
        if meant and str(meant) != before["resourceVersion"]:
            raise status.conflict(kind.plural, request.info.name, kind.group)
    elif wanted and wanted != stored.rv:
        raise status.conflict(kind.plural, request.info.name, kind.group)
    metadata["resourceVersion"] = before["resourceVersion"]
    complete(kind, obj)
    strategy.prepare_update(kind, obj, old, subresource)
    if not applied:
        apply.track_update(kind, old, obj, manager_of(request), "Update", subresource, api.now())
    attributes = AdmissionAttributes(
        request,
        kind,
        "UPDATE",
        request.info.namespace,
        request.info.name,
        obj,
        old,
        subresource,
        _options(request, operation),
    )
    await api.admission.mutate(attributes)
    if attributes.obj is not None and attributes.obj is not obj:
        obj = attributes.obj
        complete(kind, obj)
    owners.without_duplicates(request, obj, admitted=True)
    strategy.prepare_update(kind, obj, old, subresource)
    request.warnings.extend(check(kind, obj, old, subresource))
    strategy.complete_update(api, kind, obj, subresource)
    request.warnings.extend(remarks.about(kind, obj, old))
    obj = completed(obj, kind)
    attributes.obj = obj
    await api.admission.validate(attributes)
    obj["metadata"]["resourceVersion"] = before["resourceVersion"]
    if same(obj, old):
        return stored
    final = stored_form(obj, kind)
    if deleting.is_finished(kind, final):
        if request.dry_run:
            return Stored(stored.key, final, stored.rv)
        return api.store.delete(kind.storage, stored.key, stored.rv, final)
    if request.dry_run:
        return Stored(stored.key, final, stored.rv)
    return api.store.update(kind.storage, stored.key, final, stored.rv)


def _check_identity(request: Request, kind: KindInfo, obj: JSON) -> None:
    check_namespace(request, kind, obj)
    name = obj["metadata"].get("name") or ""
    if name != request.info.name:
        raise _other_name(name, request.info.name)


def _other_name(name: str, wanted: str) -> status.ApiStatusError:
    if not name:
        text = f"the name of the object ({wanted} based on URL) was undeterminable: name must be provided"
        return status.bad_request(text)
    return status.bad_request(f"the name of the object ({name}) does not match the name on the URL ({wanted})")


def _other_uid(kind: KindInfo, namespace: str, name: str, given: str, actual: str) -> status.ApiStatusError:
    prefix = f"/registry/{kind.plural}" if not kind.custom else f"/registry/{kind.group}/{kind.plural}"
    path = f"{prefix}/{namespace}/{name}" if namespace else f"{prefix}/{name}"
    return status.conflict(
        kind.plural,
        name,
        kind.group,
        f"StorageError: invalid object, Code: 4, Key: {path}, ResourceVersion: 0, AdditionalErrorMsg: "
        f"Precondition failed: UID in precondition: {given}, UID in object meta: {actual}",
    )


def same(new: JSON, old: JSON) -> bool:
    """True when nothing but the times of managedFields entries would change: such a write is none."""
    if {k: v for k, v in new.items() if k != "metadata"} != {k: v for k, v in old.items() if k != "metadata"}:
        return False
    first, second = dict(new["metadata"]), dict(old["metadata"])
    return _timeless(first.pop("managedFields", None)) == _timeless(second.pop("managedFields", None)) and (
        first == second
    )


def _timeless(entries: list[JSON] | None) -> list[JSON]:
    return [{key: value for key, value in entry.items() if key != "time"} for entry in entries or []]
