"""Following a collection: its state, and every change to it, across lost streams and forgotten history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.cluster.values import Expired, WatchEvent
from capstan.errors import Retryable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster
    from capstan.cluster.resources import Resource


def follow(
    cluster: Cluster,
    resource: Resource,
    namespace: str = "",
    *,
    until: float,
    label_selector: str = "",
    field_selector: str = "",
    window: float = 30.0,
) -> Iterator[WatchEvent]:
    """The state of a collection and then every change to it, until the clock passes `until`.

    Starts with one ADDED event per existing object and then SYNCED, which carries all of them as `items`. Lost
    streams are resumed, expired ones listed again, and a stream that stayed silent for a whole window is distrusted
    and listed again. So an object may be reported twice: what a consumer sees is state, never a difference. A deletion
    that happened in a gap is not reported as DELETED; it shows as an absence in the next SYNCED.
    """
    while cluster.clock() < until:
        try:
            listing = cluster.list(resource, namespace, label_selector=label_selector, field_selector=field_selector)
            yield from (WatchEvent("ADDED", item) for item in listing.items)
            yield WatchEvent("SYNCED", {"items": listing.items})
            position = listing.resource_version
            while (left := until - cluster.clock()) > 0:
                heard = False
                for event in cluster.watch(
                    resource, namespace, resource_version=position, label_selector=label_selector,
                    field_selector=field_selector, seconds=min(window, max(left, 1.0)),
                ):  # fmt: skip
                    heard = True
                    position = event.object.get("metadata", {}).get("resourceVersion", position)
                    yield event
                if not heard:
                    break
        except Expired:
            continue
        except Retryable as error:
            cluster.sleep(min(error.delay or 0.5, max(until - cluster.clock(), 0.0)))
