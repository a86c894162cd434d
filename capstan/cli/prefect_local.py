"""Prefect on one machine, without a server of the operator's: quiet, private, in Capstan's own home.

Whoever has configured Prefect (an API URL, a profile, a home of their own) keeps exactly that.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from pathlib import Path


def prepare(home: Path) -> None:
    """Set Prefect's environment before its first import.

    Args:
        home: Capstan's home; Prefect's database goes to `prefect` in it.
    """
    if not _configured():
        directory = home / "prefect"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.environ["PREFECT_HOME"] = str(directory)
    defaults = {
        # Measured: the embedded server needs up to 30 s on a busy machine; Prefect gives up after 20.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # What people see is ours (progress, errors); Prefect's own lines stay in its database and in the UI.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_CLI_PROMPT": "false",
        # Key material never enters a result; nothing else needs to be kept in a second place either.
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


_starting: threading.Thread | None = None


def start_early(home: Path, flows: str) -> None:
    """Begin to import Prefect and to start its temporary server, in the background, while something else is awaited.

    Nothing depends on it: whatever goes wrong here happens again, and is reported, when the flow is run.

    Args:
        flows: The module of the flow that will be run.
    """
    prepare(home)

    def warm_up() -> None:
        with contextlib.suppress(Exception):
            from prefect.client.orchestration import get_client

            importlib.import_module(flows)  # Prefect itself, and everything the flow needs

            with get_client(sync_client=True) as client:
                client.api_healthcheck()

    global _starting  # noqa: PLW0603  # Prefect's temporary server is one per process as well
    _starting = threading.Thread(target=warm_up, name="start Prefect early", daemon=True)
    _starting.start()


def await_early_start() -> None:
    """Wait for `start_early`, if it was called: two threads must not start the temporary server at once."""
    if _starting is not None:
        _starting.join()


def _configured() -> bool:
    if any(os.environ.get(name) for name in ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE")):
        return True
    return (Path.home() / ".prefect" / "profiles.toml").exists()
