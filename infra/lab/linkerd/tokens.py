"""Whose token is it: the TokenReview that linkerd-identity makes before it signs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.lab.client import KubeClient

AUDIENCE = "identity.l5d.io"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class InvalidTokenError(ValueError):
    """The API server does not accept the token; gRPC INVALID_ARGUMENT."""


class NotAuthenticatedError(ValueError):
    """The token is nobody's; gRPC FAILED_PRECONDITION."""


async def identity_of(client: KubeClient, token: bytes, identity_suffix: str) -> str:
    """The mesh identity of the service account that `token` belongs to.

    The token is reviewed for Linkerd's own audience; if that fails because of its audiences, for the API server's
    default one: a token of either is accepted (trace 08), and the message of a refusal is that of the last review.

    Args:
        identity_suffix: What follows `<sa>.<ns>.serviceaccount.`, e.g. `identity.linkerd.cluster.local`.

    Raises:
        InvalidTokenError, NotAuthenticatedError: With the text that the caller of Certify gets.
        ApiError: If the review itself failed.
    """
    status = await _review(client, token, [AUDIENCE])
    if "token audiences" in status.get("error", ""):
        status = await _review(client, token, None)
    if error := status.get("error"):
        raise InvalidTokenError(error)
    if not status.get("authenticated"):
        raise NotAuthenticatedError("authentication token could not be authenticated")
    username = str((status.get("user") or {}).get("username", ""))
    parts = username.split(":")
    if len(parts) != 4 or parts[0] != "system":
        raise InvalidTokenError(f"Username must be in form system:TYPE:NS:SA: {username}")
    _, kind, namespace, account = parts
    for label in (kind, namespace, account):
        if not _LABEL.fullmatch(label):
            raise InvalidTokenError(f"Not a label: {label}")
    return f"{account}.{namespace}.{kind}.{identity_suffix}"


async def check_access(client: KubeClient) -> str | None:
    """Why this program may not review tokens; None if it may.

    Raises:
        ApiError: If that cannot be asked.
    """
    attributes = {"group": "authentication.k8s.io", "version": "v1", "resource": "tokenreviews", "verb": "create"}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = await client.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
    status = answer.get("status") or {}
    return None if status.get("allowed") else f"Unable to create kubernetes token reviews: {status.get('reason', '')}"


async def _review(client: KubeClient, token: bytes, audiences: list[str] | None) -> dict[str, Any]:
    spec: dict[str, Any] = {"token": token.decode("utf-8", "replace")}
    if audiences:
        spec["audiences"] = audiences
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
    answer = await client.create("/apis/authentication.k8s.io/v1/tokenreviews", body)
    status: dict[str, Any] = answer.get("status") or {}
    return status
