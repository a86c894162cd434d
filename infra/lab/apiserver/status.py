"""Status bodies: every answer of the API server which is not the object asked for.

The words are those of Kubernetes v1.36 as seen on the wire; clients match on ``reason`` and ``details``, people on
``message``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Cause:
    """One entry of ``details.causes``: what is wrong with which field (a dotted path, ``spec.containers[0].image``)."""

    reason: str
    message: str
    field: str = ""

    def body(self) -> dict[str, str]:
        out = {"reason": self.reason, "message": self.message}
        if self.field:
            out["field"] = self.field
        return out

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def required(path: str, message: str = "") -> Cause:
    return Cause("FieldValueRequired", f"Required value: {message}" if message else "Required value", path)


def invalid_value(path: str, shown: str, message: str) -> Cause:
    """`shown` is the bad value as the server prints it: strings quoted, structures as compact JSON."""
    return Cause(
        "FieldValueInvalid", f"Invalid value: {shown}: {message}" if message else f"Invalid value: {shown}", path
    )


def unsupported_value(path: str, shown: str, supported: Sequence[str]) -> Cause:
    """`supported` in the order the server lists them (sorted for sets)."""
    names = ", ".join(f'"{value}"' for value in supported)
    return Cause("FieldValueNotSupported", f"Unsupported value: {shown}: supported values: {names}", path)


def forbidden_field(path: str, message: str) -> Cause:
    return Cause("FieldValueForbidden", f"Forbidden: {message}", path)


def duplicate_value(path: str, shown: str) -> Cause:
    return Cause("FieldValueDuplicate", f"Duplicate value: {shown}", path)


def too_long(path: str, message: str) -> Cause:
    return Cause("FieldValueTooLong", f"Too long: {message}", path)


def not_found_value(path: str, shown: str) -> Cause:
    return Cause("FieldValueNotFound", f"Not found: {shown}", path)


@dataclass
class ApiStatusError(Exception):
    """An answer with a Status body, or (`plain`) with plain text such as ``404 page not found``.

    `details` None leaves the key out, an empty dict shows it empty: real servers do both and clients see which.
    `headers` go out as they are (Retry-After, Allow).
    """

    code: int
    message: str
    reason: str = ""
    details: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    plain: bool = False

    def __str__(self) -> str:
        return f"{self.code} {self.reason or '-'}: {self.message}"

    def body(self) -> dict[str, Any]:
        """The Status object as it goes over the wire."""
        out: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            out["reason"] = self.reason
        if self.details is not None:
            out["details"] = self.details
        out["code"] = self.code
        return out


def qualified(resource: str, group: str) -> str:
    """``deployments`` + ``apps`` -> ``deployments.apps``; the core group has no suffix."""
    return f"{resource}.{group}" if group else resource


def _details(resource: str, group: str, name: str, **more: object) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if name:
        details["name"] = name
    if group:
        details["group"] = group
    if resource:
        details["kind"] = resource
    details.update({key: value for key, value in more.items() if value})
    return details


def not_found(resource: str, name: str, group: str = "") -> ApiStatusError:
    message = f'{qualified(resource, group)} "{name}" not found'
    return ApiStatusError(404, message, "NotFound", _details(resource, group, name))


def page_not_found() -> ApiStatusError:
    """Plain text, as for a path or a group which does not exist."""
    return ApiStatusError(404, "404 page not found\n", plain=True)


def resource_not_found() -> ApiStatusError:
    """An unknown resource or version within a group which exists."""
    return ApiStatusError(404, "the server could not find the requested resource", "NotFound", {})


def already_exists(resource: str, name: str, group: str = "", prefix: str = "") -> ApiStatusError:
    """`prefix` is ``object is being deleted: `` while the old object waits for its finalizers."""
    message = f'{prefix}{qualified(resource, group)} "{name}" already exists'
    return ApiStatusError(409, message, "AlreadyExists", _details(resource, group, name))


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def conflict(resource: str, name: str, group: str = "", message: str = MODIFIED) -> ApiStatusError:
    """409 Conflict. `resource` is the plural; the delete preconditions put the Kind there."""
    text = f'Operation cannot be fulfilled on {qualified(resource, group)} "{name}": {message}'
    return ApiStatusError(409, text, "Conflict", _details(resource, group, name))


def apply_conflict(message: str, causes: Sequence[Cause]) -> ApiStatusError:
    """409 of server-side apply: other managers own the fields named in `causes` (reason FieldManagerConflict)."""
    return ApiStatusError(409, message, "Conflict", {"causes": [cause.body() for cause in causes]})


def invalid(kind: str, name: str, causes: Sequence[Cause], group: str = "") -> ApiStatusError:
    """422 Invalid. `kind` is the Kind, not the plural. Equal causes appear once in the message but stay in the list."""
    shown = list(dict.fromkeys(str(cause) for cause in causes))
    text = shown[0] if len(shown) == 1 else "[" + ", ".join(shown) + "]"
    message = f'{qualified(kind, group)} "{name}" is invalid: {text}'
    if not causes:
        message = f'{qualified(kind, group)} "{name}" is invalid'
    bodies = [cause.body() for cause in causes]
    return ApiStatusError(422, message, "Invalid", _details(kind, group, name, causes=bodies))


def request_rejected() -> ApiStatusError:
    """422 with the fixed words of a JSON patch which could not be applied."""
    return ApiStatusError(422, "the server rejected our request due to an error in our request", "Invalid", {})


def bad_request(message: str) -> ApiStatusError:
    return ApiStatusError(400, message, "BadRequest")


def unauthorized() -> ApiStatusError:
    return ApiStatusError(401, "Unauthorized", "Unauthorized")


def forbidden(resource: str, name: str, message: str, group: str = "") -> ApiStatusError:
    """403. `message` is what follows ``is forbidden: ``; without a resource it is the whole reason for a path."""
    if not resource:
        return ApiStatusError(403, f"forbidden: {message}", "Forbidden", {})
    text = f'{qualified(resource, group)} "{name}" is forbidden: {message}' if name else None
    text = text or f"{qualified(resource, group)} is forbidden: {message}"
    return ApiStatusError(403, text, "Forbidden", _details(resource, group, name))


def method_not_allowed() -> ApiStatusError:
    message = "the server does not allow this method on the requested resource"
    return ApiStatusError(405, message, "MethodNotAllowed", {})


def method_not_supported(resource: str, action: str, group: str = "") -> ApiStatusError:
    message = f'{action} is not supported on resources of kind "{qualified(resource, group)}"'
    return ApiStatusError(405, message, "MethodNotAllowed", _details(resource, group, ""))


def not_acceptable(offered: Sequence[str]) -> ApiStatusError:
    message = f"406: Not Acceptable\n\nAvailable representations: {', '.join(offered)}"
    return ApiStatusError(406, message, "NotAcceptable", {})


def unsupported_media_type() -> ApiStatusError:
    """A patch type the resource does not take."""
    return ApiStatusError(415, "415: Unsupported Media Type", "UnsupportedMediaType", {})


def unknown_body_format(accepted: Sequence[str]) -> ApiStatusError:
    """A body in a media type the server cannot decode."""
    message = f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}"
    return ApiStatusError(415, message, "UnsupportedMediaType")


def gone_expired(message: str, continue_token: str = "") -> ApiStatusError:
    """410 Expired: a resourceVersion or continue token older than the history kept."""
    metadata = {"continue": continue_token} if continue_token else {}
    return ApiStatusError(410, message, "Expired", metadata=metadata)


def too_many_requests(message: str, retry_after: int = 0, causes: Sequence[Cause] = ()) -> ApiStatusError:
    """429. `retry_after` in seconds; 0 leaves the header out (an eviction which a budget forbids has none)."""
    details: dict[str, Any] = {"causes": [cause.body() for cause in causes]} if causes else {}
    if retry_after:
        details["retryAfterSeconds"] = retry_after
    headers = {"Retry-After": str(retry_after)} if retry_after else {}
    return ApiStatusError(429, message, "TooManyRequests", details, headers)


def internal_error(message: str) -> ApiStatusError:
    """500 with the ``Internal error occurred: `` prefix and the cause in details."""
    text = f"Internal error occurred: {message}"
    return ApiStatusError(500, text, "InternalError", {"causes": [{"message": message}]})


def plain_error(message: str, code: int = 500) -> ApiStatusError:
    """An error the real server passes on as it came: a Status without reason and details."""
    return ApiStatusError(code, message)


def gateway_timeout(message: str, causes: Sequence[Cause] = (), retry_after: int = 0) -> ApiStatusError:
    details: dict[str, Any] = {"causes": [cause.body() for cause in causes]} if causes else {}
    if retry_after:
        details["retryAfterSeconds"] = retry_after
    headers = {"Retry-After": str(retry_after)} if retry_after else {}
    return ApiStatusError(504, message, "Timeout", details, headers)


def success(details: dict[str, Any] | None = None, code: int = 0, message: str = "") -> dict[str, Any]:
    """A Status which reports success (deletes of kinds which do not return the object)."""
    out: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if message:
        out["message"] = message
    if details is not None:
        out["details"] = details
    if code:
        out["code"] = code
    return out
