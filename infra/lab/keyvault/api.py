"""The REST API: requests to store operations and back, authentication by challenge, faults."""

from __future__ import annotations

import asyncio
import base64
import binascii
import email.utils
import json
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

from infra.lab.keyvault.store import RECOVERABLE_DAYS, RECOVERY_LEVEL, Secret, Store, VaultError, Version, not_found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping

    from infra.lab.keyvault.faults import Faults

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Any]
    Send = Callable[[MutableMapping[str, Any]], Any]

_PAGE = 25  # the service's largest page, and its default
_TOKEN_LIFE = 3600


class Api:
    """The ASGI application of one vault.

    Args:
        store: Its secrets.
        faults: What goes wrong.
        tokens: Bearer tokens that are accepted; the managed-identity endpoint adds to them.
        identity_header: What a caller of that endpoint must show in X-IDENTITY-HEADER.
        clock: Seconds since the epoch.
        changed: Called after each change, before it is answered.
    """

    def __init__(
        self,
        store: Store,
        faults: Faults,
        tokens: set[str],
        identity_header: str,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.store = store
        self.faults = faults
        self.tokens = tokens
        self.url = ""  # known once the port is
        self._identity_header = identity_header
        self._clock = clock
        self._changed = changed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        path = [part for part in scope["path"].split("/") if part]
        operation = _operation(scope["method"], path)
        extra: dict[str, str] = {}
        fault = None
        try:
            if operation == "token" or self._authenticated(headers, extra):
                fault = self.faults.strike(operation)
            if fault and fault.effect == "delay":
                await asyncio.sleep(fault.seconds)
            spoiled = fault is not None and fault.effect != "delay"
            if not spoiled or (fault and fault.after_commit):
                status, answer = 200, self._answer(operation, path, query, headers, _json(body))
                if operation not in _READS:
                    self._changed()
                if operation == "purge":
                    status = 204
            if fault and spoiled:
                if fault.effect == "disconnect":
                    # A lost answer. uvicorn's `send` is a method of the object that holds the transport.
                    send.__self__.transport.abort()  # type: ignore[attr-defined]  # as said: uvicorn's, not ASGI's
                    return
                if fault.retry_after is not None:
                    extra["retry-after"] = f"{fault.retry_after:g}"
                raise fault.error()
        except VaultError as error:
            status, answer = error.status, {"error": {"code": error.code, "message": error.message}}
            if error.inner:
                answer["error"]["innererror"] = {"code": error.inner}
        extra["date"] = email.utils.formatdate(self._clock(), usegmt=True)
        await _send(send, status, answer, extra)

    def _authenticated(self, headers: Mapping[str, str], extra: dict[str, str]) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme == "Bearer" and token in self.tokens:
            return True
        # The client checks that the vault's host ends in ".<host of the resource>": vault.azure.net for
        # NAME.vault.azure.net. The same rule for an address and a port gives this.
        resource = "https://" + self.url.removeprefix("https://").partition(".")[2]
        extra["www-authenticate"] = (
            f'Bearer authorization="{self.url}/00000000-0000-0000-0000-000000000001", resource="{resource}"'
        )
        raise VaultError(401, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.")

    def _answer(
        self, operation: str, path: list[str], query: Mapping[str, str], headers: Mapping[str, str], body: Any
    ) -> Any:
        store, name = self.store, path[1] if len(path) > 1 else ""
        version = path[2] if len(path) > 2 else ""
        match operation:
            case "token":
                return self._token(query, headers)
            case "set":
                return self._bundle(*store.set(name, body))
            case "get":
                return self._bundle(*store.readable(name, version))
            case "update":
                return self._bundle(*store.update(name, version, body)) | {"value": None}
            case "list":
                return self._page("/secrets", query, [self._item(s, s.latest, "") for s in store.all()])
            case "versions":
                secret, _ = store.find(name, "")
                # By id, not by age: the service promises no order.
                versions = sorted(secret.versions, key=lambda version: version.id)
                items = [self._item(secret, version, version.id) for version in versions]
                return self._page(f"/secrets/{quote(name)}/versions", query, items)
            case "delete":
                return self._deleted(store.delete(name)) | {"value": None}
            case "get-deleted":
                return self._deleted(store.deleted(name))
            case "list-deleted":
                return self._page("/deletedsecrets", query, [self._deleted(s) for s in store.all_deleted()])
            case "recover":
                secret = store.recover(name)
                return self._bundle(secret, secret.latest) | {"value": None}
            case "purge":
                return store.purge(name)
            case "backup":
                return {"value": base64.urlsafe_b64encode(store.backup(name)).decode().rstrip("=")}
            case "restore":
                try:
                    blob = base64.urlsafe_b64decode(body["value"] + "=" * (-len(body["value"]) % 4))
                except (binascii.Error, KeyError, TypeError):
                    raise VaultError(400, "BadParameter", "The backup blob is malformed.") from None
                secret = store.restore(blob)
                return self._bundle(secret, secret.latest) | {"value": None}
        raise not_found("/".join(path))

    def _token(self, query: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, str]:
        """The App Service managed-identity protocol, version 2019-08-01."""
        if headers.get("x-identity-header") != self._identity_header:
            raise VaultError(401, "Unauthorized", "The X-IDENTITY-HEADER is wrong.")
        token = secrets.token_urlsafe(32)
        self.tokens.add(token)
        expires = str(int(self._clock()) + _TOKEN_LIFE)
        return {
            "access_token": token,
            "expires_on": expires,
            "resource": query.get("resource", ""),
            "token_type": "Bearer",
        }

    def _attributes(self, version: Version) -> dict[str, Any]:
        attributes = {
            "enabled": version.enabled,
            "created": int(version.created),
            "updated": int(version.updated),
            "recoveryLevel": RECOVERY_LEVEL,
            "recoverableDays": RECOVERABLE_DAYS,
            "nbf": version.not_before,
            "exp": version.expires,
        }
        return {name: value for name, value in attributes.items() if value is not None}

    def _item(self, secret: Secret, version: Version, version_id: str) -> dict[str, Any]:
        item: dict[str, Any] = {
            "id": f"{self.url}/secrets/{secret.name}" + (f"/{version_id}" if version_id else ""),
            "attributes": self._attributes(version),
        }
        if version.tags:
            item["tags"] = version.tags
        if version.content_type is not None:
            item["contentType"] = version.content_type
        return item

    def _bundle(self, secret: Secret, version: Version) -> dict[str, Any]:
        return {"value": version.value} | self._item(secret, version, version.id)

    def _deleted(self, secret: Secret) -> dict[str, Any]:
        deleted, purge = self.store.deletion_times(secret)
        return self._item(secret, secret.latest, secret.latest.id) | {
            "recoveryId": f"{self.url}/deletedsecrets/{secret.name}",
            "deletedDate": deleted,
            "scheduledPurgeDate": purge,
        }

    def _page(self, path: str, query: Mapping[str, str], items: list[dict[str, Any]]) -> dict[str, Any]:
        size = int(query.get("maxresults", _PAGE))
        if not 1 <= size <= _PAGE:
            raise VaultError(400, "BadParameter", f"maxresults must be between 1 and {_PAGE}.")
        start = int(query.get("$skiptoken", "0"))
        following = start + size
        link = f"{self.url}{path}?api-version={query.get('api-version', '')}&maxresults={size}&$skiptoken={following}"
        return {"value": items[start:following], "nextLink": link if following < len(items) else None}


_OPERATIONS = {
    ("PUT", "secrets", 2): "set",
    ("GET", "secrets", 2): "get",
    ("GET", "secrets", 3): "get",
    ("PATCH", "secrets", 2): "update",
    ("PATCH", "secrets", 3): "update",
    ("GET", "secrets", 1): "list",
    ("DELETE", "secrets", 2): "delete",
    ("GET", "deletedsecrets", 1): "list-deleted",
    ("GET", "deletedsecrets", 2): "get-deleted",
    ("DELETE", "deletedsecrets", 2): "purge",
    ("GET", "identity", 1): "token",
}
_READS = {"get", "list", "versions", "get-deleted", "list-deleted", "backup"}
_SUFFIXES = {("GET", "versions"): "versions", ("POST", "backup"): "backup", ("POST", "recover"): "recover"}


def _operation(method: str, path: list[str]) -> str:
    if (method, path) == ("POST", ["secrets", "restore"]):
        return "restore"
    if len(path) == 3 and (method, path[2]) in _SUFFIXES:
        return _SUFFIXES[method, path[2]]
    return _OPERATIONS.get((method, path[0] if path else "", len(path)), "unknown")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body) if body else {}
    except ValueError:
        raise VaultError(400, "BadParameter", "The request body is no JSON.") from None


async def _send(send: Send, status: int, answer: Any, extra: Mapping[str, str]) -> None:
    data = b"" if answer is None else json.dumps(answer).encode()
    headers: Iterable[tuple[str, str]] = {
        "content-type": "application/json; charset=utf-8",
        "content-length": str(len(data)),
        "x-ms-keyvault-service-version": "lab",
        **extra,
    }.items()
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": data})
