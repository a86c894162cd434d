"""`Cluster`: one Kubernetes API, raw JSON in and out.

Configuration, credentials and connections are the official client's; objects stay plain dicts, because models cost more
than the network on large lists and refuse what a newer server sends. Every answer is read to its end, which is what
lets a connection be used again.
"""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlparse

import urllib3
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config_untyped

from capstan.cluster.errors import HANDLED, Call, from_status, translate
from capstan.cluster.resources import PODS, SERVICE_ACCOUNTS, Resource
from capstan.cluster.values import Body, Expired, Listing, Object, PatchKind, WatchEvent
from capstan.errors import Conflict, InvalidInput, NotFound, ServerFault, Throttled, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

kubernetes_config: Any = kubernetes_config_untyped  # it has no annotations

PAGE: Final = 500  # kubectl's own chunk size; keeps one page of 2,000 pods near 2.5 MB
READ_ATTEMPTS: Final = 4
LONGEST_WAIT: Final = 30.0  # seconds of Retry-After that a read waits; asked for more, it fails and says how much
METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"


def user_agent() -> str:
    """`capstan/<version>`, by which our requests are told apart in audit logs."""
    try:
        return f"capstan/{version('capstan')}"
    except PackageNotFoundError:
        return "capstan/0"


class Cluster:
    """One Kubernetes API.

    Args:
        name: Its name in the trust domain; only for messages.
        configuration: The official client's configuration: host, TLS, credentials.
        timeout: Seconds a single request may take.
        sleep: Waits, between tries of a read.
        clock: Monotonic seconds, for deadlines.

    Thread-safe: `map_bounded` calls it from many threads.
    """

    def __init__(
        self,
        name: str,
        configuration: kubernetes_client.Configuration,
        *,
        timeout: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        configuration.retries = False  # urllib3 would repeat PUT and DELETE by itself
        configuration.connection_pool_maxsize = 32
        if _is_loopback(str(configuration.host)):
            configuration.proxy = None  # as every Go client does (net/http ProxyFromEnvironment)
        self.name = name
        self.configuration = configuration
        self.timeout = timeout
        self.sleep = sleep
        self.clock = clock
        self._api: Any = kubernetes_client.ApiClient(configuration)
        self._pool = self._api.rest_client.pool_manager
        self._requests = 0
        self._lock = threading.Lock()

    @classmethod
    def connect(
        cls,
        *,
        kubeconfig: Path | str | None = None,
        context: str | None = None,
        name: str = "",
        in_cluster: bool = False,
        **options: Any,
    ) -> Cluster:
        """The cluster of a kubeconfig and context (kubectl's defaults if neither is given), or the one we run in.

        Raises:
            InvalidInput: The kubeconfig is missing, unreadable or lacks the context.
        """
        configuration = kubernetes_client.Configuration()
        where = "in-cluster service account" if in_cluster else str(kubeconfig or "default kubeconfig")
        try:
            if in_cluster:
                kubernetes_config.load_incluster_config(client_configuration=configuration)
            else:
                kubernetes_config.load_kube_config(
                    config_file=str(kubeconfig) if kubeconfig else None,
                    context=context,
                    client_configuration=configuration,
                )
        except HANDLED as error:
            raise InvalidInput(
                "cannot use this kubeconfig",
                where=f"{where}, context {context or '(current)'}",
                observed=str(error),
                expected="a readable kubeconfig with the wanted context",
                next_command="kubectl config get-contexts",
            ) from error
        return cls(name or context or "cluster", configuration, **options)

    @property
    def requests(self) -> int:
        """How many requests were sent to the API server so far, port-forwards included."""
        return self._requests

    @property
    def host(self) -> str:
        """The API server's URL."""
        return str(self.configuration.host).rstrip("/")

    def count_request(self) -> None:
        """Note one more request; for transports that are not this class's own."""
        with self._lock:
            self._requests += 1

    def auth_headers(self) -> dict[str, str]:
        """User-Agent and, where the credentials are a token, Authorization (refreshed if it ran out)."""
        headers: dict[str, str] = {"User-Agent": user_agent()}
        self._api.update_params_for_auth(headers, [], ["BearerToken"], "", "GET", None)
        return headers

    def close(self) -> None:
        """Close the pooled connections."""
        self._api.close()

    # --- reading ------------------------------------------------------------------------------------------------

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
        pause = 0.2
        for attempt in range(1, READ_ATTEMPTS + 1):
            try:
                return self._send(call, "GET", path, query, accept=accept)
            except (Unreachable, Throttled, ServerFault) as error:
                if attempt == READ_ATTEMPTS or (error.delay or 0.0) > LONGEST_WAIT:
                    raise
                self.sleep(pause if error.delay is None else error.delay)
                pause *= 2
        raise AssertionError("unreachable")

    # --- writing (never repeated here: only the caller knows whether a second try is the same write) -------------

    def create(self, resource: Resource, body: Object, *, dry_run: bool = False) -> Object:
        """Create an object; its namespace is taken from its metadata.

        Raises:
            Conflict: It exists already.
        """
        namespace, name = _key(body)
        call = Call("create", resource.plural, namespace, name, self.name)
        return self._send(call, "POST", resource.path(namespace), _dry(dry_run), body=body)

    def replace(self, resource: Resource, body: Object, *, dry_run: bool = False) -> Object:
        """Replace an object by one that carries the resourceVersion it was read with.

        Raises:
            Conflict: Somebody wrote in between.
            InvalidInput: The body carries no resourceVersion (an unconditional write is never ours to make).
        """
        namespace, name = _key(body)
        call = Call("replace", resource.plural, namespace, name, self.name)
        if not body["metadata"].get("resourceVersion"):
            raise InvalidInput(
                call.what, where=call.where, observed="no metadata.resourceVersion", expected="the one it was read with"
            )
        return self._send(call, "PUT", resource.path(namespace, name), _dry(dry_run), body=body)

    def patch(
        self,
        resource: Resource,
        name: str,
        body: Body,
        namespace: str = "",
        *,
        kind: PatchKind = PatchKind.MERGE,
        resource_version: str = "",
        subresource: str = "",
        field_manager: str = "capstan",
        force: bool = False,
        dry_run: bool = False,
    ) -> Object:
        """Patch an object.

        Args:
            resource_version: If given, the write happens only while the object is at that version (merge, strategic).
            force: Take over fields of other managers (apply only).

        Raises:
            Conflict: The object moved on from `resource_version`, or another manager owns an applied field.
        """
        call = Call("patch", resource.plural, namespace, name, self.name)
        if resource_version:
            if not isinstance(body, dict):
                raise InvalidInput(
                    call.what, where=call.where, observed="resource_version beside a JSON patch", expected="a test step"
                )
            body = {**body, "metadata": {**body.get("metadata", {}), "resourceVersion": resource_version}}
        query = _dry(dry_run) | {"fieldManager": field_manager} | ({"force": "true"} if force else {})
        return self._send(
            call, "PATCH", resource.path(namespace, name, subresource), query, body=body, content_type=kind
        )

    def delete(self, resource: Resource, name: str, namespace: str = "", *, uid: str = "") -> None:
        """Delete an object (of that uid, if given). One that is already gone is no error.

        Raises:
            Conflict: An object of another uid has the name now.
        """
        call = Call("delete", resource.plural, namespace, name, self.name)
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            self._send(call, "DELETE", resource.path(namespace, name), None, body=options)
        except NotFound:
            return

    def evict(self, name: str, namespace: str, *, uid: str = "") -> None:
        """Ask for a pod to go, under its PodDisruptionBudgets. One that is already gone is no error.

        Raises:
            Throttled: A budget does not allow it now.
            Conflict: A pod of another uid has the name now.
        """
        call = Call("evict", PODS.plural, namespace, name, self.name)
        body: Object = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
        }
        if uid:
            body["deleteOptions"] = {"preconditions": {"uid": uid}}
        try:
            self._send(call, "POST", PODS.path(namespace, name, "eviction"), None, body=body)
        except NotFound:
            return

    def request_token(self, service_account: str, namespace: str, audience: str, *, seconds: int = 600) -> str:
        """A short-lived token of a service account, for one audience (TokenRequest, `kubectl create token`).

        Args:
            seconds: How long it is valid; the API server gives no less than 600.

        Raises:
            NotFound: No such service account. Denied: no right to create serviceaccounts/token.
        """
        call = Call("create token of", SERVICE_ACCOUNTS.plural, namespace, service_account, self.name)
        body: Object = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [audience], "expirationSeconds": seconds},
        }
        path = SERVICE_ACCOUNTS.path(namespace, service_account, "token")
        answer = self._send(call, "POST", path, None, body=body)
        token = (answer.get("status") or {}).get("token")
        if not isinstance(token, str) or not token:
            raise ServerFault(call.what, where=call.where, observed="no token in the answer", expected="status.token")
        return token

    # --- watching -----------------------------------------------------------------------------------------------

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
            response = self._request("GET", resource.path(namespace), query, timeout=timeout, preload_content=False)
            try:
                if response.status >= 300:
                    self._raise(response.status, response.data, response.headers, call)
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
                    self._raise(int(status.get("code", 500)), json.dumps(status), None, call)
                yield WatchEvent(event["type"], event["object"])

    # --- one request --------------------------------------------------------------------------------------------

    def _send(
        self,
        call: Call,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        *,
        body: Body | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        headers = {"Accept": accept}
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = content_type
        timeout = urllib3.Timeout(connect=min(10.0, self.timeout), read=self.timeout)
        try:
            response = self._request(method, path, query, headers=headers, body=payload, timeout=timeout)
            data = response.data
            if response.status >= 300:
                self._raise(response.status, data, response.headers, call)
            decoded = json.loads(data) if data else {}
        except HANDLED as error:
            raise translate(error, call) from error
        if not isinstance(decoded, dict):
            raise ServerFault(
                call.what, where=call.where, observed=f"a JSON {type(decoded).__name__}", expected="a JSON object"
            )
        return decoded

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: urllib3.Timeout,
        preload_content: bool = True,
    ) -> Any:
        self.count_request()
        wanted = {key: value for key, value in (query or {}).items() if value}
        url = f"{self.host}{path}" + (f"?{urlencode(wanted)}" if wanted else "")
        return self._pool.request(
            method,
            url,
            body=body,
            headers={**self.auth_headers(), **(headers or {})},
            timeout=timeout,
            preload_content=preload_content,
            redirect=False,
        )

    def _raise(self, code: int, body: bytes | str, headers: Mapping[str, str] | None, call: Call) -> None:
        error = from_status(code, body, headers, call)
        if code == 410 and call.verb == "watch":
            raise Expired(
                error.what, where=error.where, observed=error.observed, expected=error.expected,
                next_command=error.next_command,
            )  # fmt: skip
        raise error


def _key(body: Object) -> tuple[str, str]:
    metadata = body.get("metadata") or {}
    return str(metadata.get("namespace", "")), str(metadata.get("name", ""))


def _dry(dry_run: bool) -> dict[str, str]:
    return {"dryRun": "All"} if dry_run else {}


def _is_loopback(url: str) -> bool:
    host = urlparse(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
