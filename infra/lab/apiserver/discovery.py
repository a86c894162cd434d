"""Discovery: which groups, versions and resources there are, in the old documents and in the aggregated one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import status
from .aggregation import not_served
from .negotiation import parse_accept
from .request import Response

if TYPE_CHECKING:
    from .api import Api
    from .kinds import KindInfo, Registry, Subresource
    from .request import Request

JSON = dict[str, Any]


def answer(api: Api, request: Request) -> Response:
    """GET of /api, /apis and everything below that is not a resource; 404 otherwise."""
    registry = api.registry
    parts = [part for part in request.path.split("/") if part]
    if request.method not in ("GET", "HEAD"):
        raise status.method_not_allowed()
    version = _aggregated_version(request.headers.get("accept", "")) if len(parts) == 1 else ""
    match parts:
        case ["api"]:
            return _aggregated(registry, [""], version) if version else Response.json(_api_versions(request))
        case ["apis"]:
            groups = registry.groups()[1:]
            return _aggregated(registry, groups, version) if version else Response.json(_group_list(registry))
        case ["apis", group] if group in registry.groups():
            return Response.json({"kind": "APIGroup", "apiVersion": "v1", **_group(registry, group)})
        case ["api", version]:
            return Response.json(_resources(registry, "", version))
        case ["apis", group, version] if group in registry.groups():
            return Response.json(_resources(registry, group, version))
        case ["apis", group, version]:
            raise not_served(api, group, version)
    raise status.page_not_found()


def paths(registry: Registry) -> list[str]:
    """The paths of discovery and of the documents beside it, as the root lists them."""
    out = ["/.well-known/openid-configuration", "/api", "/apis", "/apis/", "/openapi/v3", "/openapi/v3/"]
    out.append("/openid/v1/jwks")
    for group in registry.groups():
        prefix = f"/apis/{group}" if group else "/api"
        out += [prefix] if group else []
        out += [f"{prefix}/{version}" for version in registry.versions(group)]
    return out


def _api_versions(request: Request) -> JSON:
    host = request.headers.get("host", "")
    addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": host}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses}


def _group(registry: Registry, group: str) -> JSON:
    versions = [{"groupVersion": f"{group}/{version}", "version": version} for version in registry.versions(group)]
    return {"name": group, "versions": versions, "preferredVersion": versions[0]}


def _group_list(registry: Registry) -> JSON:
    groups = [_group(registry, group) for group in registry.groups() if group]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def _resources(registry: Registry, group: str, version: str) -> JSON:
    kinds = [kind for kind in registry if kind.group == group and kind.version == version]
    if not kinds:
        raise status.resource_not_found()
    resources: list[JSON] = []
    for kind in kinds:
        resources.append(_resource(kind))
        resources.extend(_subresource(kind, sub) for sub in kind.subresources)
    if not any(kind.custom for kind in kinds):
        resources.sort(key=lambda resource: str(resource["name"]))
    head = {"kind": "APIResourceList", **({"apiVersion": "v1"} if group else {})}
    return {**head, "groupVersion": f"{group}/{version}" if group else version, "resources": resources}


def _resource(kind: KindInfo) -> JSON:
    out: JSON = {
        "name": kind.plural,
        "singularName": kind.singular_name,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        out["shortNames"] = list(kind.short_names)
    if kind.categories:
        out["categories"] = list(kind.categories)
    if not kind.virtual:
        out["storageVersionHash"] = kind.storage_hash
    return out


def _subresource(kind: KindInfo, sub: Subresource) -> JSON:
    out: JSON = {"name": f"{kind.plural}/{sub.name}", "singularName": "", "namespaced": kind.namespaced}
    if sub.version:
        out |= {"group": sub.group, "version": sub.version}
    return {**out, "kind": sub.kind, "verbs": list(sub.verbs)}


def _aggregated_version(accept: str) -> str:
    """The first aggregated form the client takes ("v2", "v2beta1"), "" for the plain documents."""
    for entry in parse_accept(accept):
        parameters = entry.parameters
        if parameters.get("as") == "APIGroupDiscoveryList" and parameters.get("g") == "apidiscovery.k8s.io":
            if entry.name in ("application/json", "*/*") and parameters.get("v") in ("v2", "v2beta1"):
                return parameters["v"]
        elif not parameters and entry.name in ("application/json", "*/*", "application/*"):
            return ""
    return ""


def _aggregated(registry: Registry, groups: list[str], version: str) -> Response:
    items = [
        {
            "metadata": {"name": group} if group else {},
            "versions": [
                {"version": v, "resources": _aggregated_resources(registry, group, v), "freshness": "Current"}
                for v in registry.versions(group)
            ],
        }
        for group in groups
    ]
    body = {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{version}",
        "metadata": {},
        "items": items,
    }
    response = Response.json(body)
    response.content_type = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
    return response


def _aggregated_resources(registry: Registry, group: str, version: str) -> list[JSON]:
    out = []
    for kind in sorted(registry, key=lambda kind: kind.plural):
        if kind.group != group or kind.version != version:
            continue
        entry: JSON = {
            "resource": kind.plural,
            "responseKind": _response_kind(kind, "", "", kind.kind),
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "singularResource": kind.singular_name,
            "verbs": list(kind.verbs),
        }
        if kind.short_names:
            entry["shortNames"] = list(kind.short_names)
        if kind.categories:
            entry["categories"] = list(kind.categories)
        if kind.subresources:
            entry["subresources"] = [
                {
                    "subresource": sub.name,
                    "responseKind": _response_kind(kind, sub.group, sub.version, sub.kind),
                    "verbs": list(sub.verbs),
                }
                for sub in kind.subresources
            ]
        out.append(entry)
    return out


def _response_kind(kind: KindInfo, group: str, version: str, name: str) -> JSON:
    # Built-in kinds leave group and version empty (meaning: those of the list); custom ones spell them out.
    if kind.custom and not version:
        return {"group": kind.group, "version": kind.version, "kind": name}
    return {"group": group, "version": version, "kind": name}
