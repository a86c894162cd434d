"""Kubernetes Events of our steps, on the rotation record: `kubectl get events -n capstan-system` tells the story.

Events are for people. Nothing ever waits for one, and one that could not be written stops nothing.
"""

from __future__ import annotations

import logging
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from capstan.cluster.record import NAMESPACE, record_name
from capstan.cluster.resources import EVENTS
from capstan.errors import CapstanError

if TYPE_CHECKING:
    from collections.abc import Callable

    from capstan.cluster.client import Cluster

_log = logging.getLogger(__name__)


def emit(
    cluster: Cluster,
    domain: str,
    reason: str,
    message: str,
    *,
    kind: Literal["Normal", "Warning"] = "Normal",
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> bool:
    """Write one Event about the domain's rotation; whether it was written.

    Args:
        reason: CamelCase word, such as `BundleWidened`.
        message: One sentence; cut at 1,024 bytes, the API's limit.
    """
    name = record_name(domain)
    at = now().strftime("%Y-%m-%dT%H:%M:%SZ")
    body = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name}.{secrets.token_hex(8)}", "namespace": NAMESPACE},
        "involvedObject": {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "namespace": NAMESPACE},
        "reason": reason,
        "message": message.encode()[:1024].decode("utf-8", "ignore"),
        "type": kind,
        "source": {"component": "capstan"},
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
    try:
        cluster.create(EVENTS, body)
    except CapstanError as error:
        _log.warning("could not write the event %s: %s", reason, error.observed or error.what)
        return False
    return True
