"""DELETE: preconditions, grace, finalizers, propagation; one object or a collection.

Rules: Kubernetes docs, "Finalizers", "Garbage Collection", "Pod Lifecycle: Termination of Pods", and the API reference
of DeleteOptions.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from . import crds, go_json, options, protobuf, schema, schema_codec, status, yaml_codec
from .api import AdmissionAttributes, timestamp
from .negotiation import negotiate
from .objects import convert
from .reading import Selection, select, show, show_list
from .request import Response
from .store import ConflictError, Stored

if TYPE_CHECKING:
    from .api import Api
    from .kinds import KindInfo
    from .request import Request

JSON = dict[str, Any]
JOB_WARNING = (
    "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set "
    "propagationPolicy=Orphan to suppress this warning"
)
_ATTEMPTS = 5
_SCHEME = "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:31"


@dataclass
class DeleteOptions:
    """`grace` in seconds, None when not given."""

    grace: int | None = None
    propagation: str = ""
    uid: str = ""
    resource_version: str = ""
    dry_run: bool = False
    body: JSON = field(default_factory=dict)


def read_options(request: Request) -> DeleteOptions:
    """From the body if there is one, else from the query."""
    query = request.query
    body: JSON = {}
    if request.body.strip():
        if request.content_type == "application/vnd.kubernetes.protobuf":
            body = protobuf.decode(request.body)
        else:
            body = _decoded(request)
    else:
        grace = query.integer("gracePeriodSeconds")
        body = {
            "gracePeriodSeconds": grace,
            "propagationPolicy": query.get("propagationPolicy"),
            "orphanDependents": query.flag("orphanDependents") if "orphanDependents" in query else None,
            "dryRun": query.all("dryRun"),
        }
    return checked(body)


def _decoded(request: Request) -> JSON:
    """DeleteOptions from JSON or YAML, of whichever group; 400 in the words of the real server's decoder."""
    text = request.body.decode("utf-8", "replace")
    if request.content_type == "application/yaml":
        try:
            text = yaml_codec.to_json(request.body).decode()
        except ValueError as error:
            raise status.bad_request(str(error)) from None
    elif request.content_type not in ("", "application/json"):
        accepted = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"]
        raise status.unknown_body_format(accepted)
    try:
        body = json.loads(text)
    except ValueError:
        words = go_json.syntax_error(text) or go_json.END
        raise status.bad_request(go_json.NO_TYPE + words) from None
    if not isinstance(body, dict):
        words = go_json.TYPE_META.format(schema_codec.json_kind(body))
        raise status.bad_request(go_json.NO_TYPE + words)
    kind, version = body.get("kind") or "DeleteOptions", body.get("apiVersion") or "meta.k8s.io/v1"
    if kind != "DeleteOptions":
        raise status.bad_request(f'no kind "{kind}" is registered for version "{version}" in scheme "{_SCHEME}"')
    try:
        return schema_codec.Decoder().decode(schema.struct("meta/v1.DeleteOptions"), body)
    except schema_codec.DecodeError as error:
        raise status.bad_request(str(error)) from None


def checked(body: JSON) -> DeleteOptions:
    causes = []
    policy, orphan = body.get("propagationPolicy") or "", body.get("orphanDependents")
    if policy and orphan is not None:
        text = "orphanDependents and deletionPropagation cannot be both set"
        causes.append(status.invalid_value("propagationPolicy", f'"{policy}"', text))
    if policy not in ("", "Orphan", "Background", "Foreground"):
        supported = ["Foreground", "Background", "Orphan", "nil"]
        causes.append(status.unsupported_value("propagationPolicy", f'"{policy}"', supported))
    dry_run = body.get("dryRun") or []
    causes += options.dry_run(dry_run)
    if causes:
        raise status.invalid("DeleteOptions", "", causes, "meta.k8s.io")
    if orphan is not None and not policy:
        policy = "Orphan" if orphan else "Background"
    preconditions = body.get("preconditions") or {}
    grace = body.get("gracePeriodSeconds")
    # a negative grace means the shortest one
    return DeleteOptions(
        grace=None if grace is None else (grace if grace >= 0 else 1),
        propagation=policy,
        uid=preconditions.get("uid") or "",
        resource_version=preconditions.get("resourceVersion") or "",
        dry_run=bool(dry_run),
        body={"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", **{k: v for k, v in body.items() if v}},
    )


async def delete(api: Api, request: Request) -> Response:
    kind, info = request.kind, request.info
    wanted = read_options(request)
    key = (info.namespace if kind.namespaced else "", info.name)
    stored = api.store.get(kind.storage, *key)
    if stored is None:
        raise status.not_found(kind.plural, info.name, kind.group)
    if kind.resource == "jobs.batch" and not wanted.propagation:
        request.warnings.append(JOB_WARNING)
    last, gone = await delete_object(api, request, kind, key, wanted)
    if gone and not kind.delete_returns_object:
        details = {"name": info.name, "group": kind.group, "kind": kind.plural, "uid": last.uid}
        return Response.json(status.success({name: value for name, value in details.items() if value}))
    return show(api, last, kind, request)


async def delete_object(
    api: Api, request: Request, kind: KindInfo, key: tuple[str, str], wanted: DeleteOptions
) -> tuple[Stored, bool]:
    """Delete or mark; the object as it then is (or last was), and whether it is gone."""
    for _ in range(_ATTEMPTS):
        stored = api.store.get(kind.storage, *key)
        if stored is None:
            raise status.not_found(kind.plural, key[1], kind.group)
        attributes = AdmissionAttributes(
            request, kind, "DELETE", key[0], key[1], None, convert(stored.obj, kind), options=wanted.body
        )
        await api.admission.mutate(attributes)
        await api.admission.validate(attributes)
        _check_preconditions(kind, stored, wanted)
        obj, gone = _after_delete(api, kind, stored, wanted)
        if wanted.dry_run:
            return Stored(key, obj, stored.rv), gone
        try:
            if gone:
                return api.store.delete(kind.storage, key, stored.rv, obj), True
            if obj == stored.obj:
                return stored, False
            return api.store.update(kind.storage, key, obj, stored.rv), False
        except ConflictError:
            continue
    raise status.conflict(kind.plural, key[1], kind.group)


def _check_preconditions(kind: KindInfo, stored: Stored, wanted: DeleteOptions) -> None:
    if wanted.uid and wanted.uid != stored.uid:
        text = (
            f"the UID in the precondition ({wanted.uid}) does not match the UID in record ({stored.uid}). "
            "The object might have been deleted and then recreated"
        )
    elif wanted.resource_version and wanted.resource_version != str(stored.rv):
        text = (
            f"the ResourceVersion in the precondition ({wanted.resource_version}) does not match the ResourceVersion "
            f"in record ({stored.rv}). The object might have been modified"
        )
    else:
        return
    raise status.conflict(kind.kind, stored.key[1], kind.group, text)


def _after_delete(api: Api, kind: KindInfo, stored: Stored, wanted: DeleteOptions) -> tuple[JSON, bool]:
    obj = copy.deepcopy(stored.obj)
    metadata = obj["metadata"]
    if kind.storage == "namespaces":
        return _terminate_namespace(api, obj)
    finalizers = _with_propagation(kind, metadata.get("finalizers") or [], wanted.propagation)
    if kind.storage == crds.RESOURCE and not metadata.get("deletionTimestamp"):
        # a definition goes after its instances
        finalizers.append(crds.CLEANUP)
    if finalizers:
        metadata["finalizers"] = finalizers
    else:
        metadata.pop("finalizers", None)
    grace = _grace(kind, obj, wanted)
    if metadata.get("deletionTimestamp"):
        _shorten(api, metadata, grace, wanted)
    elif grace or finalizers or kind.storage == "pods":
        metadata["deletionTimestamp"] = timestamp(api.now() + timedelta(seconds=grace))
        metadata["deletionGracePeriodSeconds"] = grace
        if metadata.get("generation"):
            metadata["generation"] += 1
    left = metadata.get("deletionGracePeriodSeconds") or 0
    return obj, not finalizers and not left


def _shorten(api: Api, metadata: JSON, grace: int, wanted: DeleteOptions) -> None:
    """A second delete can only shorten what the first one granted."""
    current = metadata.get("deletionGracePeriodSeconds") or 0
    if wanted.grace is None or grace >= current:
        return
    metadata["deletionTimestamp"] = timestamp(api.now() + timedelta(seconds=grace))
    metadata["deletionGracePeriodSeconds"] = grace


def _grace(kind: KindInfo, obj: JSON, wanted: DeleteOptions) -> int:
    """Only pods on a node, still running, get time to end."""
    if kind.storage != "pods":
        return 0
    spec = obj.get("spec") or {}
    if not spec.get("nodeName") or (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    if wanted.grace is not None:
        return wanted.grace
    given: int | None = spec.get("terminationGracePeriodSeconds")
    return 30 if given is None else given


def _with_propagation(kind: KindInfo, finalizers: list[str], policy: str) -> list[str]:
    orphan_by_default = kind.resource in ("jobs.batch", "replicationcontrollers")
    policy = policy or ("Orphan" if orphan_by_default else "")
    if not policy:
        return list(finalizers)
    kept = [name for name in finalizers if name not in ("orphan", "foregroundDeletion")]
    added = {"Orphan": ["orphan"], "Foreground": ["foregroundDeletion"]}
    return kept + added.get(policy, [])


def _terminate_namespace(api: Api, obj: JSON) -> tuple[JSON, bool]:
    metadata = obj["metadata"]
    if not metadata.get("deletionTimestamp"):
        metadata["deletionTimestamp"] = api.timestamp()
    obj.setdefault("status", {})["phase"] = "Terminating"
    return obj, not (obj.get("spec") or {}).get("finalizers") and not metadata.get("finalizers")


def is_finished(kind: KindInfo, obj: JSON) -> bool:
    """Whether an object marked for deletion has nothing left to wait for, so that this update removes it."""
    metadata = obj["metadata"]
    if not metadata.get("deletionTimestamp") or metadata.get("finalizers"):
        return False
    if kind.storage == "namespaces":
        return not (obj.get("spec") or {}).get("finalizers")
    return not metadata.get("deletionGracePeriodSeconds")


async def delete_collection(api: Api, request: Request) -> Response:
    """Everything the selectors match, answered as a list of what was there."""
    kind = request.kind
    accepted = negotiate(request.headers.get("accept", ""))
    wanted = read_options(request)
    items, metadata = await select(api, request, Selection.of(request))
    deleted: list[Stored] = []
    for stored in items:
        try:
            last, _gone = await delete_object(api, request, kind, stored.key, wanted)
        except status.ApiStatusError as error:
            if error.code != 404:
                raise
            continue
        deleted.append(last)
    return show_list(api, deleted, kind, metadata, request, accepted)
