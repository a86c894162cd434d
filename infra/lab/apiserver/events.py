"""Events are one resource in two API groups: stored as core/v1, converted for events.k8s.io/v1.

Field names: Kubernetes API reference, Event core/v1 and Event events.k8s.io/v1.
"""

from __future__ import annotations

from typing import Any

# core/v1 name -> events.k8s.io/v1 name
_RENAMED = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}


def to_events_v1(obj: dict[str, Any]) -> dict[str, Any]:
    """A core/v1 Event as events.k8s.io/v1 shows it."""
    out = {_RENAMED.get(key, key): value for key, value in obj.items()}
    out["apiVersion"] = "events.k8s.io/v1"
    return out


def to_core(obj: dict[str, Any]) -> dict[str, Any]:
    """An events.k8s.io/v1 Event as it is stored."""
    back = {new: old for old, new in _RENAMED.items()}
    out = {back.get(key, key): value for key, value in obj.items()}
    out["apiVersion"] = "v1"
    return out
