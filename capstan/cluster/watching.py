"""Watching a Kubernetes API: what changes, as it changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import urllib3

from capstan.cluster.connection import Connection
from capstan.cluster.errors import HANDLED, Call, translate
from capstan.cluster.values import WatchEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.resources import Resource


class Watching(Connection):
    """One long request, whose answer comes line by line."""

    def watch(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        seconds: float = 30.0,
    ) -> Iterator[WatchEvent]:
        """Changes after `resource_version`, for at most `seconds`; bookmarks included.

        Raises:
            Expired: The server no longer has that version; list again.
        """
        call = Call("watch", resource.plural, namespace, cluster=self.name)
        window = max(1, round(seconds))
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(window),
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
        }
        timeout = urllib3.Timeout(connect=min(10.0, self.timeout), read=window + 5.0)
        try:
            response = self.request("GET", resource.path(namespace), query, timeout=timeout, preload_content=False)
            try:
                if response.status >= 300:
                    self.refuse(response.status, response.data, response.headers, call)
                yield from self._events(response, call)
            finally:
                response.close()  # also when the caller stops early: the rest of the stream is of no use
                response.release_conn()
        except HANDLED as error:
            raise translate(error, call) from error

    def _events(self, response: Any, call: Call) -> Iterator[WatchEvent]:
        rest = b""
        for chunk in response.stream(amt=None, decode_content=True):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if not line.strip():
                    continue
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    self.refuse(int(status.get("code", 500)), json.dumps(status), None, call)
                yield WatchEvent(event["type"], event["object"])
