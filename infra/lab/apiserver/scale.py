"""The scale subresource: replicas of a workload as an autoscaling/v1 Scale."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from . import fieldvalidation, options, patch, status, writing
from .kinds import KindInfo
from .request import Response
from .selectors import format_selector

if TYPE_CHECKING:
    from .api import Api
    from .request import Request

JSON = dict[str, Any]
SCALE = KindInfo("autoscaling", "v1", "Scale", "scales", True)


def scale_of(obj: JSON, kind: KindInfo) -> JSON:
    """The Scale of a workload object (or of a custom resource by the paths its definition names)."""
    paths = kind.scale_paths
    metadata = obj["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    body: JSON = {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: metadata[name] for name in kept if name in metadata},
        "spec": {},
        "status": {"replicas": _at(obj, paths["status"]) or 0},
    }
    replicas = _at(obj, paths["spec"])
    if replicas:
        body["spec"]["replicas"] = replicas
    selector = _at(obj, paths["selector"]) if paths.get("selector") else None
    if isinstance(selector, dict):
        # ReplicationControllers have a plain map of labels
        plain = selector if {"matchLabels", "matchExpressions"} & set(selector) else {"matchLabels": selector}
        selector = format_selector(plain)
    if selector:
        body["status"]["selector"] = selector
    return body


def _at(obj: JSON, path: str) -> Any:
    value: Any = obj
    for part in path.strip(".").split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _set(obj: JSON, path: str, value: int) -> None:
    *parents, last = path.strip(".").split(".")
    for part in parents:
        obj = obj.setdefault(part, {})
    obj[last] = value


async def handle(api: Api, request: Request) -> Response:
    kind, info = request.kind, request.info
    key = (info.namespace if kind.namespaced else "", info.name)
    stored = api.store.get(kind.storage, *key)
    if stored is None:
        raise status.not_found(kind.plural, info.name, kind.group)
    if request.method in ("GET", "HEAD"):
        return Response.json(scale_of(stored.obj, kind))
    wanted = 0
    if request.method == "PUT":
        options.check_write(request, "UpdateOptions")
        sent = writing.decode(request, SCALE)
        writing.check_namespace(request, kind, sent)
        name = sent["metadata"].get("name") or ""
        if name != info.name:
            text = f"the name of the object ({name}) does not match the name on the URL ({info.name})"
            raise status.bad_request(text)
        version = sent["metadata"].get("resourceVersion") or ""
        wanted = options.unsigned(version) if version else 0
    elif request.content_type not in writing.PATCH_TYPES:
        raise status.unsupported_media_type()
    else:
        options.check_write(request, "PatchOptions")

    def scaled(stored_object: JSON) -> JSON:
        current = copy.deepcopy(stored_object)
        if request.method == "PUT":
            after = sent
        elif request.content_type == "application/apply-patch+yaml":
            after = fieldvalidation.check_applied(SCALE, request.body, "Warn")
        else:
            mode = request.query.get("fieldValidation") or "Warn"
            present = scale_of(current, kind)
            after, found = patch.apply_patch(SCALE, present, request.content_type, request.body, mode)
            request.warnings.extend(text for text in found if text not in request.warnings)
        replicas = (after.get("spec") or {}).get("replicas") or 0
        if replicas < 0:
            text = "must be greater than or equal to 0"
            cause = status.invalid_value("spec.replicas", str(replicas), text)
            raise status.invalid("Scale", info.name, [cause], "autoscaling")
        _set(current, kind.scale_paths["spec"], replicas)
        return current

    operation = "Update" if request.method == "PUT" else "Patch"
    changed = await writing.change(api, request, kind, scaled, "scale", operation, wanted)
    return Response.json(scale_of(changed.obj, kind))
