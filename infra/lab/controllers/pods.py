"""Rules about pods that several controllers share: readiness, availability, creation, adoption, the order of
deletion.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from infra.lab.client import ApiError, key_of
from infra.lab.controllers.framework import Context, controller_of, object_path, owner_reference, path_of, selects

JSON = dict[str, Any]
PODS = "/api/v1/pods"


def parse_time(text: str) -> datetime:
    """A metav1.Time or MicroTime."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def now() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)


def timestamp(moment: datetime | None = None) -> str:
    """RFC 3339 with whole seconds, as metav1.Time is written."""
    return (moment or now()).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(item: JSON, kind: str) -> JSON | None:
    """The condition of this type in the object's status."""
    for found in (item.get("status") or {}).get("conditions") or []:
        if found["type"] == kind:
            each: JSON = found
            return each
    return None


def is_ready(pod: JSON) -> bool:
    """Its Ready condition is True."""
    found = condition(pod, "Ready")
    return found is not None and found["status"] == "True"


def available_in(pod: JSON, minimum: int) -> float | None:
    """Seconds until the pod counts as available (0: it does), None while it is not ready."""
    found = condition(pod, "Ready")
    if found is None or found["status"] != "True":
        return None
    if not minimum:
        return 0.0
    since = parse_time(found["lastTransitionTime"])
    return max(minimum - (now() - since).total_seconds(), 0.0)


def finished(pod: JSON) -> bool:
    """Its phase is Succeeded or Failed."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def terminating(pod: JSON) -> bool:
    """Its deletion has been asked for."""
    return "deletionTimestamp" in pod["metadata"]


def active(pod: JSON) -> bool:
    """It counts as a replica: neither finished nor on its way out."""
    return not finished(pod) and not terminating(pod)


def first_to_go(pod: JSON) -> tuple[Any, ...]:
    """Sort key, what a ReplicaSet deletes first: unassigned, pending, unready, cheap, recently ready, often
    restarted, young.
    """
    status = pod.get("status") or {}
    ready = condition(pod, "Ready")
    cost = int((pod["metadata"].get("annotations") or {}).get("controller.kubernetes.io/pod-deletion-cost", "0"))
    restarts = max((c.get("restartCount", 0) for c in status.get("containerStatuses") or []), default=0)
    return (
        bool(pod["spec"].get("nodeName")),
        {"Pending": 0, "Unknown": 1}.get(status.get("phase", "Pending"), 2),
        is_ready(pod),
        cost,
        _negative(ready["lastTransitionTime"]) if ready and ready["status"] == "True" else 0.0,
        -restarts,
        _negative(pod["metadata"]["creationTimestamp"]),
    )


def _negative(time: str) -> float:
    return -parse_time(time).timestamp()


async def owned(context: Context, owner: JSON, api_version: str, kind: str, selector: JSON) -> list[JSON]:
    """The pods of an owner, after adopting matching orphans and releasing those that no longer match.

    Raises ApiError.
    """
    namespace, _ = key_of(owner)
    mine = []
    for pod in context.by_owner(PODS).get(owner["metadata"]["uid"]):
        if selects(selector, pod["metadata"].get("labels")):
            mine.append(pod)
        elif not terminating(pod):
            await release(context, PODS, pod, owner)
    if not terminating(owner):
        for pod in context.orphans(PODS).get(namespace):
            if active(pod) and selects(selector, pod["metadata"].get("labels")):
                mine.append(await adopt(context, PODS, pod, owner, api_version, kind))
    return mine


async def adopt(context: Context, collection: str, item: JSON, owner: JSON, api_version: str, kind: str) -> JSON:
    """Become the controlling owner of an orphan. Raises ApiError (409 when it changed meanwhile)."""
    references = [*(item["metadata"].get("ownerReferences") or []), owner_reference(owner, api_version, kind)]
    metadata = {"resourceVersion": item["metadata"]["resourceVersion"], "ownerReferences": references}
    answer = await context.client.patch(path_of(collection, item), {"metadata": metadata})
    context.informer(collection).observe(answer)
    return answer


async def release(context: Context, collection: str, item: JSON, owner: JSON) -> None:
    """Stop being the owner of something that no longer matches the selector. Raises ApiError."""
    uid = owner["metadata"]["uid"]
    references = [r for r in item["metadata"].get("ownerReferences") or [] if r["uid"] != uid]
    metadata = {"resourceVersion": item["metadata"]["resourceVersion"], "ownerReferences": references or None}
    answer = await context.client.patch(path_of(collection, item), {"metadata": metadata})
    context.informer(collection).observe(answer)


async def create(context: Context, namespace: str, pod: JSON) -> JSON:
    """Create a pod and know of it at once. Raises ApiError."""
    body = {"apiVersion": "v1", "kind": "Pod", **pod}
    answer = await context.client.create(object_path(PODS, namespace), body)
    context.informer(PODS).observe(answer)
    return answer


async def create_many(context: Context, namespace: str, pods: list[JSON]) -> None:
    """Create in batches of 1, 2, 4, ...: a server that refuses the first one is not asked for all. Raises the first
    ApiError.
    """
    size = 1
    while pods:
        batch, pods = pods[:size], pods[size:]
        answers = await asyncio.gather(*(create(context, namespace, pod) for pod in batch), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        size = min(size * 2, 16)


async def delete(context: Context, pod: JSON) -> None:
    """Delete gracefully, only this uid; one that is gone already is fine. Raises ApiError."""
    body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": pod["metadata"]["uid"]}}
    try:
        answer = await context.client.delete(path_of(PODS, pod), body)
    except ApiError as error:
        if error.status != 404:
            raise
        return
    if answer.get("kind") == "Pod" and answer["metadata"].get("deletionGracePeriodSeconds"):
        context.informer(PODS).observe(answer)


async def delete_many(context: Context, pods: list[JSON]) -> None:
    """Delete all of them, some at a time. Raises the first ApiError."""
    for start in range(0, len(pods), 16):
        await asyncio.gather(*(delete(context, pod) for pod in pods[start : start + 16]))


def from_template(template: JSON, owner: JSON, api_version: str, kind: str) -> JSON:
    """metadata and spec of a new pod of an owner, with a generated name."""
    metadata = template.get("metadata") or {}
    made: JSON = {
        "metadata": {
            "generateName": f"{owner['metadata']['name']}-",
            "labels": dict(metadata.get("labels") or {}),
            "ownerReferences": [owner_reference(owner, api_version, kind)],
        },
        "spec": template["spec"],
    }
    for key in ("annotations", "finalizers"):
        if metadata.get(key):
            made["metadata"][key] = metadata[key]
    return made


def enqueue_owner(pod: JSON, kind: str, add: Any) -> None:
    """Add the key of the pod's controlling owner of this kind."""
    reference = controller_of(pod)
    if reference is not None and reference["kind"] == kind:
        add((pod["metadata"]["namespace"], reference["name"]))
