"""Reading a Kubernetes API: one object, or a whole collection in pages; repeated while the server is in trouble."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from capstan.cluster.connection import Connection
from capstan.cluster.errors import READ_LOGS, Call
from capstan.cluster.resources import PODS
from capstan.cluster.values import Listing, Object
from capstan.errors import Conflict, NotFound, ServerFault, Throttled, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from capstan.cluster.resources import Resource

PAGE: Final = 500  # kubectl's own chunk size; keeps one page of 2,000 pods near 2.5 MB
READ_ATTEMPTS: Final = 4
LONGEST_WAIT: Final = 30.0  # seconds of Retry-After that a read waits; asked for more, it fails and says how much
LOG_BYTES: Final = 4 * 1024 * 1024
METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"

Answer = TypeVar("Answer")


class Reading(Connection):
    """Requests that change nothing, so that repeating them is safe."""

    def get(self, resource: Resource, name: str, namespace: str = "") -> Object:
        """One object.

        Raises:
            NotFound: It does not exist. Other errors: see `capstan.cluster.errors`.
        """
        call = Call("get", resource.plural, namespace, name, self.name)
        found = self._read(call, resource.path(namespace, name))
        if not isinstance(found.get("metadata"), dict):
            raise _no_such_answer(call, found, "an object, with its metadata")
        return found

    def find(self, resource: Resource, name: str, namespace: str = "") -> Object | None:
        """One object, or None if it does not exist."""
        try:
            return self.get(resource, name, namespace)
        except NotFound:
            return None

    def get_path(self, path: str) -> Object:
        """Any path that answers with JSON, such as `/version`."""
        return self._read(Call("get", path.strip("/"), cluster=self.name), path)

    def logs(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        since: datetime | None = None,
        previous: bool = False,
        limit: int = LOG_BYTES,
    ) -> str:
        """What a container wrote, oldest first.

        Args:
            since: From this moment by the clock of its node, aware UTC; the API counts whole seconds.
            previous: Of the instance before the one that runs.
            limit: Bytes at most, from the beginning.

        Raises:
            NotFound: No such pod. InvalidInput: No such container, or there was none before. Denied: No permission for
                pods/log.
        """
        call = Call(READ_LOGS, PODS.plural, namespace, pod, self.name)
        query = {"container": container, "limitBytes": str(limit)}
        if since is not None:
            query["sinceTime"] = since.strftime("%Y-%m-%dT%H:%M:%SZ")
        if previous:
            query["previous"] = "true"
        return self._repeated(lambda: self.send_for_text(call, PODS.path(namespace, pod, "log"), query))

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
            if "items" not in page:  # an empty list has them, too: something else answered
                raise _no_such_answer(call, page, "a list, with its items")
            items.extend(page["items"] or [])
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

    def _repeated(self, ask: Callable[[], Answer]) -> Answer:
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


def _no_such_answer(call: Call, found: Object, expected: str) -> ServerFault:
    """A proxy or a portal in front of the API server answered in its place: that is no "there is none"."""
    return ServerFault(
        call.what, where=call.where, observed=f"200 with {', '.join(sorted(found)[:5]) or 'nothing in it'}",
        expected=expected, next_command="kubectl cluster-info",
    )  # fmt: skip
