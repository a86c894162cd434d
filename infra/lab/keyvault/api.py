"""The REST API: requests to store operations and back, authentication by challenge, faults."""

from __future__ import annotations

import asyncio
import base64
import binascii
import email.utils
import json
import secrets
import uuid
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
_TENANT = "00000000-0000-0000-0000-000000000001"
VERSIONS = ("2016-10-01", "7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "2025-07-01", "2026-04-01")
_WITHOUT_RECOVERABLE_DAYS = ("2016-10-01", "7.0")


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
        self.tenant = _TENANT
        self.claims = ""
        self._insufficient: set[str] = set()
        self._identity_header = identity_header
        self._clock = clock
        self._changed = changed
        self._recoverable_days = True

    def move_to_tenant(self, tenant: str) -> None:
        """The vault belongs to another tenant: tokens of the former one are refused, and challenges name the new."""
        self.tenant = tenant
        self.tokens.clear()

    def demand_claims(self, claims: str) -> None:
        """Every token so far lacks these claims (JSON): continuous access evaluation asks for another one."""
        self.claims = claims
        self._insufficient |= self.tokens
        self.tokens.clear()

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
            if operation != "token":
                _check_version(query)
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
        if token in self._insufficient:
            claims = base64.b64encode(self.claims.encode()).decode()
            extra["www-authenticate"] = (
                f'Bearer realm="", authorization_uri="https://login.microsoftonline.com/common/oauth2/authorize",'
                f' error="insufficient_claims", claims="{claims}"'
            )
            raise VaultError(401, "Unauthorized", "AKV10153: Continuous access evaluation: claims are insufficient.")
        # The client checks that the vault's host ends in ".<host of the resource>": vault.azure.net for
        # NAME.vault.azure.net. The same rule for an address and a port gives this.
        resource = "https://" + self.url.removeprefix("https://").partition(".")[2]
        extra["www-authenticate"] = f'Bearer authorization="{self.url}/{self.tenant}", resource="{resource}"'
        problem = "Error validating token." if token else "Request is missing a Bearer or PoP token."
        raise VaultError(401, "Unauthorized", f"AKV10000: {problem}")

    def _answer(
        self, operation: str, path: list[str], query: Mapping[str, str], headers: Mapping[str, str], body: Any
    ) -> Any:
        self._recoverable_days = query.get("api-version") not in _WITHOUT_RECOVERABLE_DAYS
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
                items = [self._item(secret, version, version.id) for secret, version in store.versions(name)]
                return self._page(f"/secrets/{quote(name)}/versions", query, items)
            case "delete":
                return self._deleted(store.delete(name)) | {"value": None}
            case "get-deleted":
                return self._deleted(store.deleted(name))
            case "list-deleted":
                return self._page("/deletedsecrets", query, [self._deleted(s, "") for s in store.all_deleted()])
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
            "recoverableDays": RECOVERABLE_DAYS if self._recoverable_days else None,
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

    def _deleted(self, secret: Secret, version_id: str | None = None) -> dict[str, Any]:
        """A deleted secret; lists of them leave the version out."""
        deleted, purge = self.store.deletion_times(secret)
        return self._item(secret, secret.latest, secret.latest.id if version_id is None else version_id) | {
            "recoveryId": f"{self.url}/deletedsecrets/{secret.name}",
            "deletedDate": deleted,
            "scheduledPurgeDate": purge,
        }

    def _page(self, path: str, query: Mapping[str, str], items: list[dict[str, Any]]) -> dict[str, Any]:
        size, start = _number(query, "maxresults", _PAGE), _number(query, "$skiptoken", 0)
        if not 1 <= size <= _PAGE:
            raise VaultError(400, "BadParameter", f"maxresults must be between 1 and {_PAGE}.")
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


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body) if body else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise VaultError(400, "BadParameter", "The request body is no JSON object.")
    return found


def _check_version(query: Mapping[str, str]) -> None:
    version = query.get("api-version")
    if version is None:
        raise VaultError(400, "BadParameter", "api-version must be specified")
    if version not in VERSIONS:
        raise VaultError(
            400,
            "BadParameter",
            f"The specified version ({version}) is not recognized. Consider using the latest supported version"
            f" ({VERSIONS[-1]}).",
        )


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not text.isdigit():
        raise VaultError(400, "BadParameter", f"{name} must be a number.")
    return int(text)


async def _send(send: Send, status: int, answer: Any, extra: Mapping[str, str]) -> None:
    data = b"" if answer is None else json.dumps(answer).encode()
    headers: Iterable[tuple[str, str]] = {
        "content-type": "application/json; charset=utf-8",
        "content-length": str(len(data)),
        "x-ms-keyvault-region": "lab",
        "x-ms-keyvault-network-info": "conn_type=Ipv4;addr=127.0.0.1;act_addr_fam=InterNetwork;",
        "x-ms-keyvault-service-version": "lab",
        "x-ms-request-id": str(uuid.uuid4()),
        **extra,
    }.items()
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": data})
