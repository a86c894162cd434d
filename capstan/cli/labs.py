"""Starting and stopping the embedded lab as a process of its own; the product never imports it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from capstan.cli.live import Handshakes
from capstan.errors import InvalidInput, Unreachable

# How long a lab may take until every pod is Ready, on a slow and busy machine.
START_SECONDS = 240.0
STOP_SECONDS = 15.0


def command(*arguments: str) -> list[str]:
    """The command line that runs the lab with this interpreter."""
    return [sys.executable, "-m", "infra.lab", *arguments]


def exec_lab(*arguments: str) -> None:
    """Become the lab: same process id, so that whoever started us can signal it.

    Raises:
        InvalidInput: The lab's dependencies are not installed.
    """
    require_lab()
    os.execv(sys.executable, command(*arguments))  # noqa: S606  # no shell is wanted


def exec_vault(*arguments: str) -> None:
    """Become the lab's Key Vault.

    Raises:
        InvalidInput: The lab's dependencies are not installed.
    """
    require_lab()
    os.execv(sys.executable, [sys.executable, "-m", "infra.lab.keyvault", *arguments])  # noqa: S606  # no shell


@dataclass(frozen=True, slots=True)
class Lab:
    """A running lab.

    Attributes:
        directory: Where it keeps its kubeconfig, lab.json and logs.
        facts: Contents of lab.json.
    """

    directory: Path
    facts: dict[str, Any]

    @property
    def kubeconfig(self) -> Path:
        """Path of the kubeconfig of its system:masters user."""
        return self.directory / "kubeconfig"

    @property
    def vault_file(self) -> Path | None:
        """The vault.json of the Key Vault that runs beside it; None without one."""
        return self._beside("vault")

    @property
    def vault_url(self) -> str:
        """The Key Vault's URL; empty without one."""
        return str(json.loads(self.vault_file.read_text())["url"]) if self.vault_file else ""

    @property
    def environment(self) -> dict[str, str]:
        """What the lab's Key Vault and Azure API need to be found by, as environment; empty without them."""
        found: dict[str, str] = {}
        for file in (self._beside("vault"), self._beside("arm")):
            found |= json.loads(file.read_text()).get("environment", {}) if file else {}
        return found

    def _beside(self, name: str) -> Path | None:
        file = self.directory / "keyvault" / f"{name}.json"
        return file if file.exists() else None

    def prober(self) -> dict[str, Any]:
        """What the prober has counted: attempted, failed, and each failure.

        Raises:
            Unreachable: The lab does not answer.
        """
        counts: dict[str, Any] = self._ask("prober")
        return counts

    def pods(self) -> int:
        """How many proxies there are now, by the lab's own word.

        Raises:
            Unreachable: The lab does not answer.
        """
        return len(self._ask("pods"))

    def roots(self) -> list[str]:
        """Fingerprints of all roots that any proxy holds now, by the lab's own word.

        Raises:
            Unreachable: The lab does not answer.
        """
        return sorted({root for pod in self._ask("pods") for root in pod["roots"]})

    def _ask(self, what: str) -> Any:
        # `trust_env=False`: a proxy from the environment has no business between us and loopback
        url = f"{self.facts['control']}/{what}"
        try:
            answer = httpx.get(url, timeout=10.0, trust_env=False).raise_for_status()
        except httpx.HTTPError as error:
            raise Unreachable(
                "the lab does not answer",
                where=url,
                observed=f"{type(error).__name__}: {error}",
                expected="JSON",
                next_command=f"look at {self.directory / 'lab.log'}",
            ) from error
        return answer.json()

    def handshakes(self) -> Handshakes | None:
        """The counts alone, for a display; None while the lab does not answer."""
        try:
            counts = self.prober()
        except Unreachable:
            return None
        return Handshakes(attempted=counts["attempted"], failed=counts["failed"])


@contextlib.contextmanager
def running_lab(
    directory: Path, arguments: Sequence[str] = (), on_line: Callable[[str], None] = lambda _line: None
) -> Iterator[Lab]:
    """A lab for the enclosed block.

    Args:
        directory: Made if absent; the lab's log goes to `lab.log` in it.
        arguments: Further options of `capstan lab up`.
        on_line: Called with each line the lab writes while it starts.

    Raises:
        Unreachable: It stopped, or was not ready in time; the message names its log.
    """
    require_lab()
    directory.mkdir(parents=True, exist_ok=True)
    facts = directory / "lab.json"
    facts.unlink(missing_ok=True)
    log = directory / "lab.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            command("up", "--dir", str(directory), *arguments),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(process, facts, log, on_line)
        yield Lab(directory, json.loads(facts.read_text()))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], facts: Path, log: Path, on_line: Callable[[str], None]) -> None:
    deadline = time.monotonic() + START_SECONDS
    with log.open() as lines:
        while not facts.exists():
            for line in lines:
                on_line(line.rstrip())
            if process.poll() is not None or time.monotonic() > deadline:
                tail = " | ".join(log.read_text().splitlines()[-3:])
                observed = f"exit code {process.returncode}" if process.poll() is not None else f"{START_SECONDS:.0f} s"
                raise Unreachable(
                    "the lab did not become ready",
                    where=str(log),
                    observed=f"{observed}; its last lines: {tail}",
                    expected="lab.json, written when every pod is Ready",
                    next_command=f"read {log}",
                )
            time.sleep(0.1)
        for line in lines:
            on_line(line.rstrip())


def require_lab() -> None:
    """Refuse before anything is started where the lab cannot run.

    Raises:
        InvalidInput: The lab's dependencies are not installed.
    """
    import importlib.util

    missing = [name for name in ("infra.lab", "grpc", "uvicorn", "starlette") if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidInput(
            "the embedded lab is not installed",
            observed=f"missing: {', '.join(missing)}",
            expected="the extra `lab`",
            next_command="pip install 'capstan[lab]'",
        )
