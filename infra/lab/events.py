"""Events (core/v1) about objects, as the lab's components record them."""

from __future__ import annotations

import logging
import secrets
from datetime import UTC, datetime
from typing import Any

from infra.lab.client import ApiError, KubeClient

JSON = dict[str, Any]

log = logging.getLogger(__name__)


async def record(
    client: KubeClient, about: JSON, kind: str, reason: str, message: str, *, component: str, host: str = ""
) -> None:
    """Create one Event. `kind` is Normal or Warning. A refusal is logged at debug level: an event is never worth a
    failure.
    """
    metadata = about["metadata"]
    namespace = metadata.get("namespace") or "default"
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    body = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{secrets.token_hex(8)}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": about.get("apiVersion", "v1"),
            "kind": about["kind"],
            "name": metadata["name"],
            "uid": metadata.get("uid", ""),
            "resourceVersion": metadata.get("resourceVersion", ""),
            **({"namespace": metadata["namespace"]} if metadata.get("namespace") else {}),
        },
        "type": kind,
        "reason": reason,
        "message": message,
        "source": {"component": component, **({"host": host} if host else {})},
        "reportingComponent": component,
        "reportingInstance": host,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    try:
        await client.create(f"/api/v1/namespaces/{namespace}/events", body)
    except ApiError as error:
        log.debug("event %s on %s: %s", reason, metadata["name"], error)
