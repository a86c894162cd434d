"""Writing to a Kubernetes API. No write is repeated: only the caller knows whether a second try is the same write."""

from __future__ import annotations

from capstan.cluster.connection import Connection
from capstan.cluster.errors import Call
from capstan.cluster.resources import PODS, SERVICE_ACCOUNTS, Resource
from capstan.cluster.values import Body, Object, PatchKind
from capstan.errors import InvalidInput, NotFound, ServerFault


class Writing(Connection):
    """Requests that change something, each sent once."""

    def create(self, resource: Resource, body: Object, *, dry_run: bool = False) -> Object:
        """Create an object; its namespace is taken from its metadata.

        Raises:
            Conflict: It exists already.
        """
        namespace, name = _key(body)
        call = Call("create", resource.plural, namespace, name, self.name)
        return self.send(call, "POST", resource.path(namespace), _dry(dry_run), body=body)

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
        return self.send(call, "PUT", resource.path(namespace, name), _dry(dry_run), body=body)

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
        return self.send(
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
            self.send(call, "DELETE", resource.path(namespace, name), None, body=options)
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
            self.send(call, "POST", PODS.path(namespace, name, "eviction"), None, body=body)
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
        answer = self.send(call, "POST", path, None, body=body)
        token = (answer.get("status") or {}).get("token")
        if not isinstance(token, str) or not token:
            raise ServerFault(call.what, where=call.where, observed="no token in the answer", expected="status.token")
        return token


def _key(body: Object) -> tuple[str, str]:
    metadata = body.get("metadata") or {}
    return str(metadata.get("namespace", "")), str(metadata.get("name", ""))


def _dry(dry_run: bool) -> dict[str, str]:
    return {"dryRun": "All"} if dry_run else {}
