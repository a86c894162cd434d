"""Every exception of Prefect has a place in our tree."""

from __future__ import annotations

import inspect

import httpx
import pytest
from prefect import exceptions

from capstan import errors
from flows.errors import MAPPING, prefect_errors, translated

SIGNALS = (exceptions.PrefectSignal, exceptions.ExternalSignal)


def prefect_exceptions() -> list[type[BaseException]]:
    found = [
        kind
        for _, kind in inspect.getmembers(exceptions, inspect.isclass)
        if issubclass(kind, BaseException) and kind.__module__ == "prefect.exceptions"
    ]
    return [kind for kind in found if not issubclass(kind, SIGNALS)]


def test_every_prefect_exception_but_its_control_flow_signals_is_mapped() -> None:
    assert len(prefect_exceptions()) > 30
    unmapped = {kind.__name__ for kind in prefect_exceptions()} - {kind.__name__ for kind in MAPPING}
    assert not unmapped, f"decide where these belong: {sorted(unmapped)}"


def test_a_mapped_exception_says_what_was_done_and_what_to_do_next() -> None:
    with pytest.raises(errors.NotFound) as caught, prefect_errors("launch the rotation"):
        raise exceptions.ObjectNotFound(http_exc=ValueError("no such deployment"))
    assert caught.value.what == "launch the rotation"
    assert "no such deployment" in caught.value.observed or "ObjectNotFound" in caught.value.observed
    assert caught.value.next_command


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (401, errors.Denied),
        (403, errors.Denied),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (422, errors.InvalidInput),
        (429, errors.Throttled),
        (503, errors.ServerFault),
    ],
)
def test_an_http_status_decides_the_kind_of_error(code: int, kind: type[errors.CapstanError]) -> None:
    request = httpx.Request("POST", "http://127.0.0.1:4200/api/flow_runs/")
    error = httpx.HTTPStatusError("no", request=request, response=httpx.Response(code, request=request))
    assert type(translated(error, "ask")) is kind


def test_a_temporary_server_that_does_not_start_is_said_to_be_unreachable() -> None:
    with pytest.raises(errors.Unreachable) as caught, prefect_errors("rotate"):
        raise RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server.")
    assert "prefect server start" in caught.value.next_command
    with pytest.raises(RuntimeError), prefect_errors("rotate"):
        raise RuntimeError("something else")


def test_our_own_errors_and_prefects_signals_pass_unchanged() -> None:
    with pytest.raises(errors.GateRefused), prefect_errors("rotate"):
        raise errors.GateRefused("no")
    with pytest.raises(exceptions.Pause), prefect_errors("rotate"):
        raise exceptions.Pause
