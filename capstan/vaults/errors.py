"""Azure's exceptions to ours. `tests/vaults/test_errors.py` proves that none is forgotten."""

from __future__ import annotations

import email.utils
import time
from typing import TYPE_CHECKING, Any, TypeVar

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    DecodeError,
    DeserializationError,
    HttpResponseError,
    SerializationError,
    TooManyRedirectsError,
)

from capstan.errors import (
    CapstanError,
    Conflict,
    Denied,
    InvalidInput,
    NotFound,
    ServerFault,
    Throttled,
    Unreachable,
    VerificationFailed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# Deletion and recovery take the service some seconds ("Key Vault soft-delete": wait a few seconds and try again).
_DELETION_DELAY = 10.0


def calling(what: str, where: str, request: Callable[[], T]) -> T:
    """The request's answer; whatever Azure's client raises becomes one of ours.

    Args:
        what: What fails if it does, as one clause.
        where: The secret and vault.
    """
    try:
        return request()
    except CapstanError:
        raise
    except Exception as error:  # noqa: BLE001 - everything the client raises is mapped; nothing is swallowed
        problem = mapped(error, what, where)
    # Outside the handler: Azure's exception holds the request, and with it the secret, so it is not chained.
    raise problem


def mapped(error: Exception, what: str, where: str, *, now: Callable[[], float] = time.time) -> CapstanError:
    """The error of ours that says what Azure's said.

    The result does not refer to `error`: its request holds the secret that was being written. Raise it outside the
    `except` block, or Python attaches `error` to it again.

    Args:
        error: What azure-core, azure-identity or azure-keyvault-secrets raised.
        what: What failed, as one clause.
        where: The secret and vault.
        now: Seconds since the epoch, for a Retry-After given as a date.
    """
    observed = _one_line(error)
    if isinstance(error, ClientAuthenticationError):
        return Denied(
            what,
            where=where,
            observed=observed,
            expected="an identity the vault's tenant knows",
            next_command="az login, or set AZURE_CLIENT_ID, AZURE_TENANT_ID and a secret or federated token",
        )
    if isinstance(error, TooManyRedirectsError):
        return InvalidInput(what, where=where, observed=observed, expected="the URL of a Key Vault")
    if isinstance(error, HttpResponseError) and error.status_code is not None and not isinstance(error, DecodeError):
        return _by_status(error, what, where, observed, now)
    if isinstance(error, SerializationError):
        return InvalidInput(what, where=where, observed=observed, expected="values Key Vault can take")
    if isinstance(error, DeserializationError):
        return ServerFault(what, where=where, observed=observed, expected="an answer of the Key Vault API")
    if isinstance(error, AzureError):  # no answer, half an answer, or a stream used after its end
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return VerificationFailed(
                what,
                where=where,
                observed=observed,
                expected="a server certificate that verifies",
                next_command="check the URL; behind a TLS proxy, name its CA in REQUESTS_CA_BUNDLE",
            )
        return Unreachable(
            what, where=where, observed=observed, expected="an answer", next_command="check network, firewall and DNS"
        )
    # What the client refuses before it sends anything, such as a challenge for another host.
    return InvalidInput(what, where=where, observed=observed, expected="a Key Vault at this URL")


def _by_status(
    error: HttpResponseError, what: str, where: str, observed: str, now: Callable[[], float]
) -> CapstanError:
    status, inner = error.status_code or 0, inner_code(error)
    told: dict[str, Any] = {"where": where, "observed": observed}
    if inner == "SecretDisabled":
        return InvalidInput(
            what,
            expected="an enabled version",
            next_command="find out who disabled it and why; az keyvault secret set-attributes --enabled true",
            **told,
        )
    if inner in ("ObjectIsBeingDeleted", "ObjectIsBeingRecovered"):
        return Conflict(what, expected="a secret at rest", delay=_DELETION_DELAY, **told)
    if inner == "ObjectIsDeletedButRecoverable":
        return InvalidInput(
            what,
            expected="a name that is free or in use",
            next_command="az keyvault secret recover (then run again), or az keyvault secret purge",
            **told,
        )
    match status:
        case 401 | 403:
            hint = {
                "ForbiddenByFirewall": "allow this machine's address in the vault's network rules",
                "ForbiddenByConnection": "connect through the vault's private endpoint",
                "ForbiddenByPolicy": "add get, list and set for secrets to the access policy",
            }.get(inner, "assign the role Key Vault Secrets Officer on the vault")
            return Denied(what, expected="permission", next_command=hint, **told)
        case 404:
            return NotFound(what, expected="the secret", next_command="az keyvault secret list-deleted", **told)
        case 408:
            return Unreachable(what, expected="an answer in time", **told)
        case 409 | 412:
            return Conflict(what, expected="no other writer", **told)
        case 429:
            delay = _retry_after(error, now)
            return Throttled(what, expected="fewer than the vault's limit of requests", delay=delay, **told)
    if status >= 500 or status < 400:
        return ServerFault(what, expected="success", delay=_retry_after(error, now), **told)
    return InvalidInput(what, expected="a request Key Vault accepts", **told)


def inner_code(error: HttpResponseError) -> str:
    """`error.innererror.code` of the answer, which tells apart what shares a status; empty if there is none."""
    details = getattr(error, "error", None)
    inner = getattr(details, "innererror", None) if details is not None else None
    return str(inner.get("code", "")) if isinstance(inner, dict) else ""


def _retry_after(error: HttpResponseError, now: Callable[[], float]) -> float | None:
    """Retry-After in seconds: a number or an HTTP date (RFC 9110 section 10.2.3)."""
    response: Any = error.response  # typed by a protocol that leaves out the headers every response has
    text = response.headers.get("Retry-After", "") if response is not None else ""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now())
    except (ValueError, TypeError):
        return None


def _one_line(error: Exception) -> str:
    status = getattr(error, "status_code", None)
    first = str(error).strip().splitlines()
    return (f"HTTP {status}: " if status else "") + (first[0] if first else type(error).__name__)
