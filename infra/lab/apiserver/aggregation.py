"""APIServices: which server answers a group version. Built-in groups and custom resources are local.

An APIService which names a Service is judged as the real availability controller does, by asking its server for the
group version over TLS that has to verify against the caBundle; requests to its group are passed on to the server, with
the user's name and groups in headers, or get 503 while it is not available.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from . import status
from .objects import canonical
from .request import Response
from .store import ConflictError
from .webhook_client import WebhookCallError

if TYPE_CHECKING:
    from .api import Api
    from .request import Request
    from .store import Event, Stored

JSON = dict[str, Any]
RESOURCE = "apiservices.apiregistration.k8s.io"
CRDS = "customresourcedefinitions.apiextensions.k8s.io"
AUTOMANAGED = "kube-aggregator.kubernetes.io/automanaged"
# Priorities of the core and apps groups in kube-apiserver; the others get descending ones in discovery order.
_JUDGE_SECONDS = 1.0
_ASK_SECONDS = 5.0
_FORWARD_SECONDS = 30.0
_PRIORITIES = {"": 18000, "apps": 17800}


class ApiServices:
    """Keeps the APIService objects and their conditions up to date."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._following: dict[str, asyncio.Task[None]] = {}
        api.store.on_commit([RESOURCE], self._changed)
        api.store.on_commit(["services"], self._service_changed)
        api.store.on_commit([CRDS], self._definition_changed)

    def create_local(self) -> None:
        """An APIService for every group version served now."""
        for index, group in enumerate(self._api.registry.groups()):
            for version in self._api.registry.versions(group):
                self._ensure_local(group, version, _PRIORITIES.get(group, 17700 - 10 * index), "onstart")

    def _ensure_local(self, group: str, version: str, priority: int, managed: str) -> None:
        name = f"{version}.{group}"
        kind = self._api.registry.by_resource(RESOURCE)
        if kind is None or self._api.store.get(RESOURCE, "", name) is not None:
            return
        metadata = {
            "name": name,
            "uid": self._api.new_uid(),
            "creationTimestamp": self._api.timestamp(),
            "labels": {AUTOMANAGED: managed},
        }
        spec = {"group": group, "version": version, "groupPriorityMinimum": priority, "versionPriority": 15}
        condition = {
            "type": "Available",
            "status": "True",
            "lastTransitionTime": self._api.timestamp(),
            "reason": "Local",
            "message": "Local APIServices are always available",
        }
        body = {"metadata": metadata, "spec": spec, "status": {"conditions": [condition]}}
        self._api.store.create(RESOURCE, ("", name), canonical(body, kind))

    def _definition_changed(self, _resource: str, event: Event) -> None:
        spec = event.new.obj["spec"]
        conditions = (event.new.obj.get("status") or {}).get("conditions") or []
        for version in spec["versions"]:
            if event.type == "DELETED":
                self._drop_automanaged(spec["group"], version["name"])
            elif any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
                self._ensure_local(spec["group"], version["name"], 1000, "true")

    def _drop_automanaged(self, group: str, version: str) -> None:
        others = [k for k in self._api.registry if k.group == group and k.version == version]
        stored = self._api.store.get(RESOURCE, "", f"{version}.{group}")
        if stored is not None and not others and stored.labels.get(AUTOMANAGED) == "true":
            self._api.store.delete(RESOURCE, stored.key, stored.rv)

    def _changed(self, _resource: str, event: Event) -> None:
        name = event.new.key[1]
        if event.type != "DELETED" and (event.new.obj.get("spec") or {}).get("service"):
            asyncio.get_running_loop().call_soon(self._judge, name)
            self._begin(name)

    def start(self) -> None:
        """Ask every extension server there is, from now on."""
        for stored in self._api.store.objects(RESOURCE):
            if (stored.obj.get("spec") or {}).get("service"):
                self._begin(stored.key[1])

    async def stop(self) -> None:
        """Ask no more, until the next start."""
        asking = [*self._following.values()]
        self._following.clear()
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def _begin(self, name: str) -> None:
        if name not in self._following or self._following[name].done():
            self._following[name] = asyncio.get_running_loop().create_task(self._follow(name))

    async def _follow(self, name: str) -> None:
        """Ask an extension server again and again while its APIService is there (a real controller: each 30 s)."""
        while (stored := self._api.store.get(RESOURCE, "", name)) is not None:
            await self._ask(stored)
            await asyncio.sleep(_JUDGE_SECONDS)

    async def _ask(self, stored: Stored) -> None:
        spec = stored.obj["spec"]
        access = self._api.access
        if access is None or not spec.get("service"):
            return
        path = f"/apis/{spec['group']}/{spec['version']}"
        try:
            answer = await access.webhook_client.forward(_client(spec), "GET", path, {}, b"", _ASK_SECONDS)
        except WebhookCallError as error:
            if "no endpoints available" in str(error) or "not found" in str(error):
                self._judge(stored.key[1])
                return
            reason, message = "FailedDiscoveryCheck", f"failing or missing response from {path}: {error}"
        else:
            if answer.is_success:
                self._set(stored.key[1], True, "Passed", "all checks passed")
                return
            message = f"failing or missing response from {path}: bad status from {path}: {answer.status_code}"
            reason = "FailedDiscoveryCheck"
        self._set(stored.key[1], False, reason, message)

    def _service_changed(self, _resource: str, event: Event) -> None:
        if event.type == "MODIFIED":
            return
        for stored in self._api.store.objects(RESOURCE):
            service = (stored.obj.get("spec") or {}).get("service")
            if service and (service.get("namespace"), service.get("name")) == event.new.key:
                asyncio.get_running_loop().call_soon(self._judge, stored.key[1])

    def _judge(self, name: str) -> None:
        stored = self._api.store.get(RESOURCE, "", name)
        if stored is None:
            return
        service = stored.obj["spec"]["service"]
        where = f'service/{service["name"]} in "{service["namespace"]}"'
        if self._api.store.get("services", service["namespace"], service["name"]) is None:
            reason, message = "ServiceNotFound", f"{where} is not present"
        else:
            access = self._api.access
            if access is not None and access.webhook_client.has_endpoint(service):
                return  # its server is to be asked
            reason, message = "MissingEndpoints", f"endpoints for {where} have no addresses"
        self._set(name, False, reason, message)

    def _set(self, name: str, available: bool, reason: str, message: str) -> None:
        stored = self._api.store.get(RESOURCE, "", name)
        if stored is None:
            return
        wanted = "True" if available else "False"
        conditions = [dict(c) for c in (stored.obj.get("status") or {}).get("conditions") or []]
        found = next((c for c in conditions if c["type"] == "Available"), None)
        if found is not None and (found["status"], found.get("reason"), found.get("message")) == (
            wanted,
            reason,
            message,
        ):
            return
        if found is None:
            found = {"type": "Available"}
            conditions.append(found)
        if found.get("status") != wanted:
            found["lastTransitionTime"] = self._api.timestamp()
        found |= {"status": wanted, "reason": reason, "message": message}
        found["lastTransitionTime"] = found.pop("lastTransitionTime")
        obj = {**stored.obj, "metadata": dict(stored.obj["metadata"]), "status": {"conditions": conditions}}
        kind = self._api.registry.by_resource(RESOURCE)
        try:
            self._api.store.update(RESOURCE, stored.key, canonical(obj, kind) if kind else obj, stored.rv)
        except ConflictError:
            asyncio.get_running_loop().call_soon(self._judge, stored.key[1])


def _client(spec: JSON) -> JSON:
    """An APIService's server as a webhook's client configuration."""
    return {"service": spec["service"], "caBundle": spec.get("caBundle", "")}


async def forwarded(api: Api, request: Request) -> Response | None:
    """The answer of the extension server that an APIService names for the request's group; None where none does.

    Raises ApiStatusError (503) where it cannot be reached.
    """
    parts = [part for part in request.path.split("/") if part]
    name = f"{parts[2]}.{parts[1]}" if parts[:1] == ["apis"] and len(parts) > 2 else ""
    stored = api.store.get(RESOURCE, "", name) if name else None
    spec = (stored.obj.get("spec") or {}) if stored is not None else {}
    if api.access is None or not spec.get("service"):
        return None
    conditions = (stored.obj.get("status") or {}).get("conditions") or [] if stored is not None else []
    unavailable = next((c for c in conditions if c["type"] == "Available" and c["status"] != "True"), None)
    if unavailable is not None:
        # the aggregator calls no server that it has found wanting
        api.access.calls.failed(name, unavailable.get("message") or "")
        raise not_served(api, spec["group"], spec["version"])
    user = request.user
    headers = {"x-remote-user": user.username, "x-remote-group": ",".join(user.groups), "accept": "application/json"}
    try:
        answer = await api.access.webhook_client.forward(
            _client(spec), request.method, _target(request), headers, request.body, _FORWARD_SECONDS
        )
    except WebhookCallError as error:
        api.access.calls.failed(name, str(error))
        raise status.ApiStatusError(503, f"error trying to reach service: {error}", plain=True) from error
    api.access.calls.answered(name)
    return Response(answer.status_code, answer.content, answer.headers.get("content-type", "text/plain"))


def _target(request: Request) -> str:
    query = request.query.raw.decode("latin-1")
    return f"{request.path}?{query}" if query else request.path


def not_served(api: Api, group: str, version: str) -> status.ApiStatusError:
    """What a request to a group version which is not local gets: 503 if an APIService claims it, else 404."""
    stored = api.store.get(RESOURCE, "", f"{version}.{group}")
    if stored is not None and (stored.obj.get("spec") or {}).get("service"):
        return status.ApiStatusError(503, "service unavailable\n", plain=True)
    return status.page_not_found()
