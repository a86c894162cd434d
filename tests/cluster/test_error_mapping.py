"""Every exception of the libraries under us is one of ours by the time anybody sees it."""

from __future__ import annotations

import inspect
import json
import ssl

import kubernetes.client.exceptions
import kubernetes.config.config_exception
import pytest
import urllib3.exceptions
import websocket._exceptions

from capstan.cluster.errors import TABLE, Call, from_status, handles, redact, translate
from capstan.errors import (
    CapstanError,
    Conflict,
    Denied,
    InvalidInput,
    NotFound,
    Permanent,
    Retryable,
    ServerFault,
    Throttled,
    Unreachable,
)

CALL = Call("patch", "configmaps", "linkerd", "roots", "east")
MODULES = [
    urllib3.exceptions,
    websocket._exceptions,
    kubernetes.client.exceptions,
    kubernetes.config.config_exception,
]


def own_exceptions(module):
    package = module.__name__.split(".")[0]
    return {
        item
        for item in vars(module).values()
        if inspect.isclass(item)
        and issubclass(item, Exception)
        and not issubclass(item, Warning)
        and item.__module__.split(".")[0] == package
    }


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_exception_class_of_the_library_is_named_in_the_table(module):
    missing = own_exceptions(module) - set(TABLE)
    assert not missing, f"decide what these mean: {sorted(item.__name__ for item in missing)}"
    assert own_exceptions(module), "the module was read"


def test_the_table_names_no_class_that_is_not_an_exception():
    assert all(issubclass(item, Exception) for item in TABLE)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, InvalidInput),
        (401, Denied),
        (403, Denied),
        (404, NotFound),
        (405, InvalidInput),
        (408, ServerFault),
        (409, Conflict),
        (410, Conflict),
        (413, InvalidInput),
        (415, InvalidInput),
        (422, InvalidInput),
        (429, Throttled),
        (500, ServerFault),
        (503, ServerFault),
        (504, ServerFault),
        (302, InvalidInput),
    ],
)
def test_an_http_status_becomes_the_error_that_says_what_to_do(status, expected):
    body = json.dumps({"kind": "Status", "message": "the reason", "reason": "Because"})
    error = from_status(status, body, {}, CALL)
    assert type(error) is expected
    assert isinstance(error, Retryable | Permanent)
    assert error.where == "configmaps linkerd/roots in cluster east"
    assert "the reason" in error.observed
    assert error.next_command


def test_retry_after_becomes_the_delay():
    error = from_status(429, "", {"Retry-After": "7"}, CALL)
    assert isinstance(error, Throttled)
    assert error.delay == 7.0


def test_a_retry_after_that_is_no_number_is_ignored():
    error = from_status(503, "", {"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, CALL)
    assert isinstance(error, ServerFault)
    assert error.delay is None


def test_forbidden_names_the_command_that_asks_for_the_permission():
    assert from_status(403, "", {}, CALL).next_command == "kubectl auth can-i patch configmaps/roots -n linkerd"


def test_a_refused_api_server_certificate_is_permanent_and_a_refused_connection_is_not():
    untrusted = urllib3.exceptions.SSLError(ssl.SSLCertVerificationError("unable to get local issuer"))
    assert isinstance(translate(untrusted, CALL), Denied)
    assert isinstance(translate(ConnectionRefusedError(111, "refused"), CALL), Unreachable)


def test_an_unknown_subclass_is_treated_as_its_parent():
    class FutureError(urllib3.exceptions.ProtocolError):
        pass

    assert isinstance(translate(FutureError("new"), CALL), Unreachable)


def test_a_programming_error_is_not_swallowed():
    assert not handles(KeyError("x"))
    with pytest.raises(TypeError):
        translate(KeyError("x"), CALL)


def test_an_api_exception_without_status_is_a_transport_error():
    assert isinstance(translate(kubernetes.client.exceptions.ApiException(status=0, reason="gone"), CALL), Unreachable)


def test_a_refused_upgrade_carries_the_servers_own_status():
    error = websocket._exceptions.WebSocketBadStatusException(
        "Handshake status 404", 404, "Not Found", {}, b'{"kind":"Status","message":"pods \\"x\\" not found"}'
    )
    mapped = translate(error, CALL)
    assert isinstance(mapped, NotFound)
    assert 'pods "x" not found' in mapped.observed


@pytest.mark.parametrize(
    "secret",
    [
        "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIOr\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\ncut short",
        "LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWS0tLS0tCk1IY0NBUUVF",
    ],
)
def test_a_key_that_a_server_quotes_back_is_cut_out(secret):
    message = f'Secret "x" is invalid: data: Invalid value: "{secret}": bad'
    error = from_status(422, json.dumps({"message": message}), {}, CALL)
    assert "MHcC" not in str(error)
    assert "TUhj" not in str(error)
    assert "LS0tLS1CRUdJTi" not in str(error)
    assert "cut short" not in str(error)
    assert "[redacted]" in redact(secret)


def test_errors_of_ours_pass_through_unchanged():
    ours = CapstanError("already")
    assert translate(ours, CALL) is ours
