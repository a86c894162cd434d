"""Reading a Kubernetes API: one object, or a whole collection in pages; repeated while the server is in trouble."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.cluster.connection import Connection
from capstan.cluster.errors import Call
from capstan.cluster.values import Listing, Object
from capstan.errors import Conflict, NotFound, ServerFault, Throttled, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from capstan.cluster.resources import Resource

PAGE: Final = 500  # kubectl's own chunk size; keeps one page of 2,000 pods near 2.5 MB
READ_ATTEMPTS: Final = 4
LONGEST_WAIT: Final = 30.0  # seconds of Retry-After that a read waits; asked for more, it fails and says how much
METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"


class Reading(Connection):
    """Requests that change nothing, so that repeating them is safe."""

    def get(self, resource: Resource, name: str, namespace: str = "") -> Object:
        """One object.

        Raises:
            NotFound: It does not exist. Other errors: see `capstan.cluster.errors`.
        """
        call = Call("get", resource.plural, namespace, name, self.name)
        return self._read(call, resource.path(namespace, name))

    def find(self, resource: Resource, name: str, namespace: str = "") -> Object | None:
        """One object, or None if it does not exist."""
        try:
            return self.get(resource, name, namespace)
        except NotFound:
            return None

    def get_path(self, path: str) -> Object:
        """Any path that answers with JSON, such as `/version`."""
        return self._read(Call("get", path.strip("/"), cluster=self.name), path)

    def list(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
        metadata_only: bool = False,
    ) -> Listing:
        """A whole collection, read in pages of 500; an expired continue token starts it over (at most three times).

        Args:
            metadata_only: Ask for PartialObjectMetadata: only `metadata` of each object is sent.
        """
        call = Call("list", resource.plural, namespace, cluster=self.name)
        for attempt in range(3):
            try:
                return self._list_once(call, resource.path(namespace), label_selector, field_selector, metadata_only)
            except Conflict:  # 410: the list's snapshot is no longer there
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def _list_once(
        self, call: Call, path: str, label_selector: str, field_selector: str, metadata_only: bool
    ) -> Listing:
        query = {"limit": str(PAGE), "labelSelector": label_selector, "fieldSelector": field_selector}
        items: list[Object] = []
        while True:
            page = self._read(call, path, query, accept=METADATA_ONLY if metadata_only else "application/json")
            items.extend(page.get("items") or [])
            metadata = page.get("metadata") or {}
            token = metadata.get("continue")
            if not token:
                return Listing(tuple(items), str(metadata.get("resourceVersion", "")))
            query["continue"] = token

    def _read(
        self, call: Call, path: str, query: Mapping[str, str] | None = None, accept: str = "application/json"
    ) -> Object:
        """A GET, repeated a few times on errors that pass; reads change nothing, so repeating is safe.

        A server that says how long to wait (Retry-After) is never asked sooner; one that wants longer than
        LONGEST_WAIT is not asked again here, and the error carries the delay.
        """
        return self._repeated(lambda: self.send(call, "GET", path, query, accept=accept))

    def review(self, resource: Resource, body: Object) -> Object:
        """Ask a question that is put by POST and stored nowhere (an access review); repeated like a read."""
        call = Call("create", resource.plural, cluster=self.name)
        return self._repeated(lambda: self.send(call, "POST", resource.path(), None, body=body))

    def _repeated(self, ask: Callable[[], Object]) -> Object:
        pause = 0.2
        for attempt in range(1, READ_ATTEMPTS + 1):
            try:
                return ask()
            except (Unreachable, Throttled, ServerFault) as error:
                if attempt == READ_ATTEMPTS or (error.delay or 0.0) > LONGEST_WAIT:
                    raise
                self.sleep(pause if error.delay is None else error.delay)
                pause *= 2
        raise AssertionError("unreachable")
