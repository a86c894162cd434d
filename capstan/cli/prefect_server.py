"""The Prefect server that deployments live on: one that stays, named by the operator."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from capstan.errors import InvalidInput

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


@contextmanager
def connected(what: str) -> Iterator[SyncPrefectClient]:
    """A client of the configured server; what fails is told in our own words.

    Args:
        what: What fails if it cannot be asked, as one clause.

    Raises:
        InvalidInput: No server is configured. A temporary one would forget everything with this command.
        CapstanError: As `flows.errors` maps it.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    from flows.errors import prefect_errors

    if not PREFECT_API_URL.value():
        raise InvalidInput(
            what,
            where="Prefect's settings",
            observed="no server is configured (PREFECT_API_URL)",
            expected="the API of a Prefect server that stays",
            next_command="prefect server start & prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api",
        )
    with prefect_errors(what), get_client(sync_client=True) as client:
        yield client


def ui_url(path: str) -> str:
    """The address of a page of the server's UI."""
    from prefect.settings import PREFECT_UI_URL

    return f"{PREFECT_UI_URL.value() or ''}{path}"


def api_url() -> str:
    """The address of the configured server's API."""
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value() or ""
