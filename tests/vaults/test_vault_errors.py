"""No exception of Azure's libraries reaches a caller as itself."""

from __future__ import annotations

import email.utils
import inspect
import json
from types import SimpleNamespace

import azure.core.exceptions
import azure.identity
import pytest
from azure.core.exceptions import HttpResponseError

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
from capstan.vaults.errors import mapped

# What each class becomes when it carries no answer. Classes for an HTTP status become what the status says, below.
WITHOUT_ANSWER: dict[str, type[CapstanError]] = {
    "AzureError": Unreachable,
    "ServiceRequestError": Unreachable,
    "ServiceResponseError": Unreachable,
    "ServiceRequestTimeoutError": Unreachable,
    "ServiceResponseTimeoutError": Unreachable,
    "HttpResponseError": Unreachable,
    "DecodeError": Unreachable,
    "IncompleteReadError": Unreachable,
    "ResourceExistsError": Unreachable,
    "ResourceNotFoundError": Unreachable,
    "ClientAuthenticationError": Denied,
    "ResourceModifiedError": Unreachable,
    "ResourceNotModifiedError": Unreachable,
    "TooManyRedirectsError": InvalidInput,
    "ODataV4Error": InvalidInput,  # cannot be made without an answer; the one below has status 400
    "StreamConsumedError": Unreachable,
    "StreamClosedError": Unreachable,
    "ResponseNotReadError": Unreachable,
    "SerializationError": InvalidInput,
    "DeserializationError": ServerFault,
    "CredentialUnavailableError": Denied,
    "AuthenticationRequiredError": Denied,
}


def answer(status: int, body: object = None, **headers: str) -> SimpleNamespace:
    text = json.dumps(body or {})
    return SimpleNamespace(
        status_code=status,
        reason="reason",
        headers=headers,
        text=lambda *_: text,
        request="the request",
        body=lambda: b"",
    )


def made(kind: type[Exception]) -> Exception:
    parameters = list(inspect.signature(kind.__init__).parameters)
    if "history" in parameters:
        return kind([])  # type: ignore[call-arg]
    if "scopes" in parameters:
        return kind(scopes=["x"])  # type: ignore[call-arg]
    if parameters[1:2] == ["response"]:
        return kind(answer(400))  # type: ignore[call-arg]
    return kind("something happened")


def azure_exceptions() -> dict[str, type[Exception]]:
    found = {}
    for module in (azure.core.exceptions, azure.identity):
        for name, kind in vars(module).items():
            if inspect.isclass(kind) and issubclass(kind, Exception):
                found[name] = kind
    return found


def test_every_exception_of_azure_core_and_identity_is_known_here() -> None:
    assert set(azure_exceptions()) == set(WITHOUT_ANSWER)


@pytest.mark.parametrize("name", sorted(azure_exceptions()))
def test_each_becomes_ours(name: str) -> None:
    ours = mapped(made(azure_exceptions()[name]), "the secret cannot be read", "secret root")
    assert type(ours) is WITHOUT_ANSWER[name]
    assert (ours.what, ours.where) == ("the secret cannot be read", "secret root")
    assert ours.observed
    assert ours.expected


@pytest.mark.parametrize(
    ("status", "inner", "expected"),
    [
        (304, None, ServerFault),
        (400, None, InvalidInput),
        (401, None, Denied),
        (403, None, Denied),
        (403, "ForbiddenByPolicy", Denied),
        (403, "ForbiddenByRbac", Denied),
        (403, "ForbiddenByFirewall", Denied),
        (403, "ForbiddenByConnection", Denied),
        (403, "SecretDisabled", InvalidInput),
        (404, None, NotFound),
        (405, None, InvalidInput),
        (408, None, Unreachable),
        (409, None, Conflict),
        (409, "ObjectIsBeingDeleted", Conflict),
        (409, "ObjectIsBeingRecovered", Conflict),
        (409, "ObjectIsDeletedButRecoverable", InvalidInput),
        (412, None, Conflict),
        (413, None, InvalidInput),
        (429, None, Throttled),
        (500, None, ServerFault),
        (502, None, ServerFault),
        (503, None, ServerFault),
        (504, None, ServerFault),
    ],
)
def test_a_status_becomes_what_it_means(status: int, inner: str | None, expected: type[CapstanError]) -> None:
    body = {"error": {"code": "C", "message": "m", **({"innererror": {"code": inner}} if inner else {})}}
    ours = mapped(HttpResponseError(response=answer(status, body)), "w", "there")
    assert type(ours) is expected
    assert f"HTTP {status}" in ours.observed


@pytest.mark.parametrize(
    ("header", "delay"),
    [("7", 7.0), ("0.5", 0.5), ("-1", 0.0), (email.utils.formatdate(1_000_060, usegmt=True), 60.0), ("soon", None)],
)
def test_retry_after_is_kept_whether_seconds_or_date(header: str, delay: float | None) -> None:
    error = HttpResponseError(response=answer(429, **{"Retry-After": header}))
    ours = mapped(error, "w", "there", now=lambda: 1_000_000.0)
    assert isinstance(ours, Throttled)
    assert ours.delay == delay


def test_a_certificate_that_does_not_verify_is_not_taken_for_a_network_fault() -> None:
    error = azure.core.exceptions.ServiceRequestError("SSLError: [SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
    assert type(mapped(error, "w", "there")) is VerificationFailed


def test_a_refusal_of_the_client_itself_is_invalid_input() -> None:
    assert type(mapped(ValueError("challenge resource does not match"), "w", "there")) is InvalidInput
