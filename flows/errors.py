"""Every exception of Prefect, mapped onto `capstan.errors`.

`tests/flows/test_prefect_errors.py` fails when Prefect brings a class the table does not name, so that a new one is a
decision and not an accident; at run time an unnamed subclass is treated as its nearest named parent.

Prefect's control-flow signals (`Pause`, `Abort`, `TerminationSignal` ...) are BaseExceptions on purpose and pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect import exceptions as p

from capstan.errors import (
    ApprovalRequired,
    CapstanError,
    Conflict,
    Denied,
    InvalidInput,
    NotFound,
    Permanent,
    ServerFault,
    Throttled,
    Unreachable,
)

_SERVER = "prefect config view; prefect version"
_AGAIN = "run the same command again; it goes on from what it observes"

MAPPING: dict[type[BaseException], type[CapstanError]] = {
    # the server does not answer, or not now
    httpx.TransportError: Unreachable,
    httpx.HTTPStatusError: ServerFault,
    p.PrefectHTTPStatusError: ServerFault,
    p.FlowRunWaitTimeout: Unreachable,
    p.FlowRunWatchError: Unreachable,
    # the run did not end as it should
    p.CrashedRun: ServerFault,
    p.FailedRun: Permanent,
    p.CancelledRun: Permanent,
    p.PausedRun: ApprovalRequired,
    p.UnfinishedRun: ServerFault,
    p.FlowPauseTimeout: ApprovalRequired,
    p.NotPausedError: InvalidInput,
    p.MissingResult: ServerFault,
    p.UpstreamTaskError: Permanent,
    # objects of the server
    p.ObjectNotFound: NotFound,
    p.ObjectAlreadyExists: Conflict,
    p.ObjectLimitReached: Throttled,
    p.ObjectUnsupported: InvalidInput,
    p.EventTooLarge: InvalidInput,
    p.ProtectedBlockError: Denied,
    p.BlockMissingCapabilities: InvalidInput,
    # how Prefect, a flow or a deployment is set up
    p.ConfigurationError: InvalidInput,
    p.MissingProfileError: InvalidInput,
    p.ProfileSettingsValidationError: InvalidInput,
    p.InvalidNameError: InvalidInput,
    p.InvalidRepositoryURLError: InvalidInput,
    p.MissingContextError: InvalidInput,
    p.MissingFlowError: InvalidInput,
    p.UnspecifiedFlowError: InvalidInput,
    p.ScriptError: InvalidInput,
    p.PrefectImportError: InvalidInput,
    p.InfrastructureError: ServerFault,
    p.InfrastructureNotAvailable: ServerFault,
    p.InfrastructureNotFound: NotFound,
    # parameters and values
    p.ParameterTypeError: InvalidInput,
    p.ParameterBindError: InvalidInput,
    p.SignatureMismatchError: InvalidInput,
    p.ReservedArgumentError: InvalidInput,
    p.MappingLengthMismatch: InvalidInput,
    p.MappingMissingIterable: InvalidInput,
    p.HashError: InvalidInput,
    p.SerializationError: InvalidInput,
    p.PrefectException: Permanent,
}


@contextmanager
def prefect_errors(what: str) -> Iterator[None]:
    """Raise what Prefect (or the way to its server) fails with as an error of ours; ours pass unchanged.

    Args:
        what: What was being done, as one clause.

    Raises:
        CapstanError: As `MAPPING` says.
    """
    try:
        yield
    except tuple(MAPPING) as error:
        raise translated(error, what) from error
    except RuntimeError as error:
        # The one failure of its own that Prefect raises without a class of its own.
        if "ephemeral Prefect API server" not in str(error):
            raise
        raise Unreachable(
            what,
            where="Prefect's temporary server on this machine",
            observed=str(error),
            expected="the server to answer within PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS",
            next_command="start one that stays: prefect server start, and set PREFECT_API_URL",
        ) from error


def translated(error: BaseException, what: str) -> CapstanError:
    """The error of our tree for one of Prefect's."""
    if isinstance(error, httpx.HTTPStatusError):
        return _of_status(error, what)
    kind = next(MAPPING[base] for base in type(error).__mro__ if base in MAPPING)
    return kind(
        what,
        where="Prefect",
        observed=f"{type(error).__name__}: {error}",
        expected="Prefect to answer and to run the flow",
        next_command=_SERVER if kind in (Unreachable, InvalidInput) else _AGAIN,
    )


def _of_status(error: httpx.HTTPStatusError, what: str) -> CapstanError:
    code = error.response.status_code
    kinds: dict[int, type[CapstanError]] = {401: Denied, 403: Denied, 404: NotFound, 409: Conflict, 422: InvalidInput}
    kind = Throttled if code == 429 else kinds.get(code, ServerFault if code >= 500 else Permanent)
    return kind(
        what,
        where=f"{error.request.method} {error.request.url}",
        observed=f"HTTP {code}",
        expected="an answer with success",
        next_command=_SERVER if kind is Denied else _AGAIN,
    )
