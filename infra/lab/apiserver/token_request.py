"""TokenRequest: a new token for a ServiceAccount, perhaps bound to a pod, a Secret or a node.

Kubernetes API reference, authentication.k8s.io/v1 TokenRequest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .api import timestamp
from .status import bad_request, conflict, invalid, invalid_value, not_found, unsupported_value
from .tokens import EXTENDED_SECONDS, ISSUER, WARN_ONLY_BOUND_SECONDS, BoundTo, Claims, SigningKey

if TYPE_CHECKING:
    from datetime import datetime

    from .status import Cause
    from .store import Store, Stored

DEFAULT_SECONDS = 3600
MIN_SECONDS = 600
MAX_SECONDS = 1 << 32
_BOUND_KINDS = {"Pod": "pods", "Secret": "secrets", "Node": "nodes"}


def issue(
    store: Store, key: SigningKey, namespace: str, name: str, body: dict[str, Any], now: datetime
) -> dict[str, Any]:
    """The completed TokenRequest for ServiceAccount `name`.

    Raises ApiStatusError: 404 without the account or the bound object, 422 for a life out of bounds, 409 for a bound
    object that is another one by now, 400 for a pod of another account.
    """
    account = store.get("serviceaccounts", namespace, name)
    if account is None:
        raise not_found("serviceaccounts", name)
    _check_identity(body.get("metadata") or {}, namespace, name)
    spec = body.get("spec") or {}
    given_audiences = [audience for audience in spec.get("audiences") or [] if audience]
    audiences = given_audiences or [ISSUER]
    seconds = spec.get("expirationSeconds")
    seconds = DEFAULT_SECONDS if seconds is None else int(seconds)
    _check_seconds(seconds)
    reference = spec.get("boundObjectRef")
    bound = _bound(store, namespace, name, reference) if reference else []
    issued = int(now.timestamp())
    lives, warn_after = seconds, 0
    on_pod = any(b.kind == "Pod" for b in bound)
    if seconds == WARN_ONLY_BOUND_SECONDS and on_pod and audiences == [ISSUER]:
        # A token as admission projects it into pods: clients that never re-read their file go on working for a year.
        lives, warn_after = EXTENDED_SECONDS, issued + seconds
    claims = Claims(namespace, name, account.uid, audiences, issued, issued + lives, bound, warn_after)
    return {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": account.uid,
            "creationTimestamp": timestamp(now),
        },
        "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": reference or None},
        "status": {
            "token": key.sign(claims.payload(ISSUER)),
            "expirationTimestamp": timestamp(now.fromtimestamp(issued + seconds, now.tzinfo)),
        },
    }


def _check_seconds(seconds: int) -> None:
    path = "spec.expirationSeconds"
    causes: list[Cause] = []
    if seconds < MIN_SECONDS:
        causes.append(invalid_value(path, str(seconds), "may not specify a duration less than 10 minutes"))
    if seconds > MAX_SECONDS:
        causes.append(invalid_value(path, str(seconds), "may not specify a duration larger than 2^32 seconds"))
    if causes:
        raise invalid("TokenRequest", "", causes, "authentication.k8s.io")


def _check_identity(metadata: dict[str, Any], namespace: str, name: str) -> None:
    """A request may name the account it is for; then it must be the one of the URL."""
    for field, wanted, what in (("name", name, "name"), ("namespace", namespace, "namespace")):
        given = metadata.get(field) or ""
        if given and given != wanted:
            message = f"must match the service account {what} if specified"
            cause = invalid_value(f"metadata.{field}", f'"{given}"', message)
            raise invalid("TokenRequest", name, [cause], "authentication.k8s.io")


def _bound(store: Store, namespace: str, account: str, reference: dict[str, Any]) -> list[BoundTo]:
    kind, name = reference.get("kind", ""), reference.get("name", "")
    if kind not in _BOUND_KINDS or reference.get("apiVersion", "v1") != "v1":
        cause = unsupported_value("spec.boundObjectRef.kind", f'"{kind}"', sorted(_BOUND_KINDS))
        raise invalid("TokenRequest", "", [cause], "authentication.k8s.io")
    found = store.get(_BOUND_KINDS[kind], "" if kind == "Node" else namespace, name)
    if found is None:
        raise not_found(_BOUND_KINDS[kind], name)
    if reference.get("uid") and reference["uid"] != found.uid:
        message = (
            f"the UID in the bound object reference ({reference['uid']}) does not match the UID in record. "
            "The object might have been deleted and then recreated"
        )
        raise conflict(_BOUND_KINDS[kind], name, message=message)
    bound = [BoundTo(kind, name, found.uid)]
    if kind == "Pod":
        if found.obj["spec"].get("serviceAccountName", "default") != account:
            raise bad_request(
                f'cannot bind token for serviceaccount "{account}" to pod running with different serviceaccount name.'
            )
        bound += _node_of(store, found)
    return bound


def _node_of(store: Store, pod: Stored) -> list[BoundTo]:
    """A pod's token tells its node too, for information."""
    name = pod.obj["spec"].get("nodeName")
    node = store.get("nodes", "", name) if name else None
    return [BoundTo("Node", node.key[1], node.uid)] if node is not None else []
