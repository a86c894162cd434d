"""What goes into and comes out of the Kubernetes API, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from capstan.errors import Conflict

Object = dict[str, Any]
"""A Kubernetes object as decoded JSON."""

Body = Object | list[Object]
"""What a request carries: an object, or a JSON patch's list of steps."""


class PatchKind(StrEnum):
    """How a patch body is to be read; the value is its content type."""

    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    JSON = "application/json-patch+json"
    APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class Listing:
    """A whole collection, all pages.

    Attributes:
        items: The objects, in the server's order.
        resource_version: From where a watch goes on without a gap.
    """

    items: tuple[Object, ...]
    resource_version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change. `type` is ADDED, MODIFIED, DELETED or BOOKMARK; from `follow` also SYNCED, after each listing."""

    type: str
    object: Object


class Expired(Conflict):
    """A watch asked for changes the server no longer remembers; list again."""
