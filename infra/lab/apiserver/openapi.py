"""OpenAPI v3: the root, and a document per group version: which paths take ``fieldValidation``, and the schemas.

kubectl apply reads no schema from here; it looks whether the server validates fields itself (the parameter on the PATCH
and POST operations), which ours does. kubectl explain reads the schemas (`openapi_types`).
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from . import openapi_types, status
from .request import Response

if TYPE_CHECKING:
    from .kinds import KindInfo, Registry
    from .request import Request

JSON = dict[str, Any]
_OPERATIONS = {"create": "post", "update": "put", "patch": "patch", "delete": "delete", "get": "get", "list": "get"}
_WRITES = ("post", "put", "patch")


def answer(registry: Registry, request: Request) -> Response:
    parts = [part for part in request.path.split("/") if part]
    if request.method not in ("GET", "HEAD"):
        raise status.page_not_found()
    match parts[1:]:
        case ["v3"]:
            response = Response.json(_root(registry))
            response.content_type = "text/plain; charset=utf-8"
            return response
        case ["v3", "api", version] if registry.find("", version, "pods"):
            return Response.json(_with_schemas(registry, "", version))
        case ["v3", "apis", group, version] if version in registry.versions(group):
            return Response.json(_with_schemas(registry, group, version))
    raise status.page_not_found()


def _root(registry: Registry) -> JSON:
    paths: JSON = {}
    for group in registry.groups():
        for version in registry.versions(group):
            path = f"apis/{group}/{version}" if group else f"api/{version}"
            # Schemas of built-in kinds never change; those of custom ones do.
            custom = [dict(kind.schema) for kind in _kinds(registry, group, version) if kind.custom]
            known = json.dumps([_document(registry, group, version), custom])
            digest = hashlib.sha512(known.encode()).hexdigest().upper()
            paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
    return {"paths": paths}


def _kinds(registry: Registry, group: str, version: str) -> list[KindInfo]:
    return [kind for kind in registry if (kind.group, kind.version) == (group, version)]


def _with_schemas(registry: Registry, group: str, version: str) -> JSON:
    schemas = openapi_types.schemas(_kinds(registry, group, version))
    return {**_document(registry, group, version), "components": {"schemas": schemas}}


def _document(registry: Registry, group: str, version: str) -> JSON:
    paths: JSON = {}
    for kind in _kinds(registry, group, version):
        base = f"/apis/{group}/{version}" if group else f"/api/{version}"
        collection = f"{base}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"{base}/{kind.plural}"
        verbs = set(kind.verbs)
        paths[collection] = _path_item(kind, sorted(verbs & {"create", "list"}))
        if verbs & {"get", "update", "patch", "delete"}:
            paths[f"{collection}/{{name}}"] = _path_item(kind, sorted(verbs & {"get", "update", "patch", "delete"}))
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.2"}, "paths": paths}


def _path_item(kind: KindInfo, verbs: list[str]) -> JSON:
    item: JSON = {}
    for verb in verbs:
        method = _OPERATIONS[verb]
        names = ["dryRun", "fieldManager", "fieldValidation"] if method in _WRITES else []
        parameters = [
            {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}} for name in names
        ]
        item[method] = {
            "operationId": f"{verb}{kind.kind}",
            "parameters": parameters,
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-group-version-kind": {"group": kind.group, "kind": kind.kind, "version": kind.version},
        }
    return item
