"""A Prefect server of our own, as an operator runs one: a process on loopback, in a home of its own."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

READY_SECONDS = 240.0


@contextmanager
def prefect_server(home: Path) -> Iterator[dict[str, str]]:
    """Run one; yields the environment of its clients."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
    }
    others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = ["server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-services", "--no-ui"]
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env={**others, **environment},
        )  # fmt: skip
    try:
        await_health(process, environment["PREFECT_API_URL"], home / "server.log")
        yield environment
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_health(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return once the server answers under `url`."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=5.0).is_success:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the Prefect server did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)


def send_what_is_queued(seconds: float = 20.0) -> None:
    """End the queues of events and logs that Prefect keeps in this process, once what is in them was sent.

    Its next event opens a new one, to the server that is spoken to by then.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=seconds, at_exit=False)


def free_port() -> int:
    """A port that nobody listens on now, and that no outgoing connection gets before a server of ours is up on it.

    A server takes seconds to start, is killed and comes back: it needs a port from below those that the system gives to
    connections (32768 and above on Linux, 49152 by RFC 6335).
    """
    for port in random.sample(range(20000, 32768), 100):
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("none of 100 ports is free")
