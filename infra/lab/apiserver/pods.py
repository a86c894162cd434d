"""Subresources of pods which change something: binding to a node, and eviction under disruption budgets."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from . import deleting, selectors, status, writing
from .kinds import KindInfo
from .objects import canonical
from .request import Response
from .store import ConflictError, Stored

if TYPE_CHECKING:
    from .api import Api
    from .request import Request

JSON = dict[str, Any]
BINDING = KindInfo("", "v1", "Binding", "bindings", True)
EVICTION = KindInfo("policy", "v1", "Eviction", "evictions", True)
BUDGETS = "poddisruptionbudgets.policy"
REFUSED = "Cannot evict pod as it would violate the pod's disruption budget."
_ATTEMPTS = 10


async def bind(api: Api, request: Request) -> Response:
    """POST of a Binding: to ``pods/NAME/binding`` or to ``bindings``."""
    binding = writing.decode(request, BINDING)
    name = request.info.name or (binding.get("metadata") or {}).get("name") or ""
    target = binding.get("target") or {}
    if target.get("kind") not in ("", None, "Node"):
        supported = ["Node", "<empty>"]
        cause = status.unsupported_value("target.kind", f'"{target["kind"]}"', supported)
        raise status.invalid("Binding", name, [cause])
    if not target.get("name"):
        raise status.invalid("Binding", name, [status.required("target.name")])
    stored = api.store.get("pods", request.info.namespace, name)
    if stored is None:
        raise status.not_found("pods", name)
    pod = copy.deepcopy(stored.obj)
    if pod["metadata"].get("deletionTimestamp"):
        text = f"pod {name} is being deleted, cannot be assigned to a host"
        raise status.conflict("pods/binding", name, message=text)
    if pod["spec"].get("nodeName"):
        text = f'pod {name} is already assigned to node "{pod["spec"]["nodeName"]}"'
        raise status.conflict("pods/binding", name, message=text)
    uid = (binding.get("metadata") or {}).get("uid")
    if uid and uid != stored.uid:
        text = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {stored.uid}"
        raise status.conflict("pods/binding", name, message=text)
    pod["spec"]["nodeName"] = target["name"]
    annotations = (binding.get("metadata") or {}).get("annotations")
    if annotations:
        pod["metadata"].setdefault("annotations", {}).update(annotations)
    _set_condition(pod, {"type": "PodScheduled", "status": "True", "lastTransitionTime": api.timestamp()})
    if not request.dry_run:
        kind = api.registry.by_resource("pods")
        api.store.update("pods", stored.key, canonical(pod, kind) if kind else pod, stored.rv)
    return Response.json(status.success(code=201), 201)


def _set_condition(pod: JSON, condition: JSON) -> None:
    conditions = pod.setdefault("status", {}).setdefault("conditions", [])
    for index, old in enumerate(conditions):
        if old["type"] == condition["type"]:
            if old["status"] == condition["status"]:
                condition["lastTransitionTime"] = old.get("lastTransitionTime")
            conditions[index] = {"lastProbeTime": None, **condition}
            return
    conditions.append({"lastProbeTime": None, **condition})


async def evict(api: Api, request: Request) -> Response:
    """POST of an Eviction (Kubernetes docs, "API-initiated Eviction"): a delete which asks the budgets first."""
    eviction = writing.decode(request, EVICTION)
    name = request.info.name
    given = (eviction.get("metadata") or {}).get("name") or ""
    if given != name:
        raise status.bad_request("name in URL does not match name in Eviction object")
    key = (request.info.namespace, name)
    pod = api.store.get("pods", *key)
    if pod is None:
        raise status.not_found("pods", name)
    body = eviction.get("deleteOptions") or {}
    wanted = deleting.checked(body)
    wanted.dry_run = wanted.dry_run or request.dry_run
    if not _unprotected(pod.obj):
        _ask_budgets(api, pod, wanted.dry_run)
    kind = api.registry.by_resource("pods")
    if kind is None:
        raise status.resource_not_found()
    await deleting.delete_object(api, request, kind, key, wanted)
    return Response.json(status.success(code=201), 201)


def _unprotected(pod: JSON) -> bool:
    """Budgets do not count pods which are not running anyway or are on their way out."""
    phase = (pod.get("status") or {}).get("phase")
    return phase in ("Pending", "Succeeded", "Failed") or bool(pod["metadata"].get("deletionTimestamp"))


def _ask_budgets(api: Api, pod: Stored, dry_run: bool) -> None:
    """Take one disruption off the pod's budget; 429 when there is none left, 500 when two budgets claim the pod."""
    for _ in range(_ATTEMPTS):
        budgets = [
            stored
            for stored in api.store.objects(BUDGETS, pod.key[0])
            if selectors.from_object(stored.obj["spec"].get("selector")).matches(pod.labels)
        ]
        if not budgets:
            return
        if len(budgets) > 1:
            text = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            raise status.plain_error(text)
        if _budget_ignores(budgets[0].obj, pod.obj):
            return
        changed = _spend(api, budgets[0], pod)
        if dry_run:
            return
        try:
            api.store.update(BUDGETS, budgets[0].key, changed, budgets[0].rv)
            return
        except ConflictError:
            continue
    raise status.too_many_requests(REFUSED, 10)


def _budget_ignores(budget: JSON, pod: JSON) -> bool:
    """A pod which is not ready may go when its budget is otherwise healthy (unhealthyPodEvictionPolicy)."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    if any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions):
        return False
    if budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
        return True
    state = budget.get("status") or {}
    desired: int = state.get("desiredHealthy") or 0
    return desired > 0 and (state.get("currentHealthy") or 0) >= desired


def _spend(api: Api, budget: Stored, pod: Stored) -> JSON:
    obj = copy.deepcopy(budget.obj)
    state = obj.setdefault("status", {})
    name = budget.key[1]
    if (state.get("observedGeneration") or 0) < (obj["metadata"].get("generation") or 0):
        text = f"The disruption budget {name} is still being processed by the server."
        raise status.too_many_requests(REFUSED, 10, [status.Cause("DisruptionBudget", text)])
    allowed = state.get("disruptionsAllowed") or 0
    if allowed <= 0:
        needed, have = state.get("desiredHealthy") or 0, state.get("currentHealthy") or 0
        text = f"The disruption budget {name} needs {needed} healthy pods and has {have} currently"
        raise status.too_many_requests(REFUSED, 0, [status.Cause("DisruptionBudget", text)])
    state["disruptionsAllowed"] = allowed - 1
    state.setdefault("disruptedPods", {})[pod.key[1]] = api.timestamp()
    if allowed == 1:
        for condition in state.get("conditions") or []:
            if condition["type"] == "DisruptionAllowed" and condition["status"] != "False":
                condition |= {"status": "False", "reason": "InsufficientPods", "lastTransitionTime": api.timestamp()}
    return obj
