"""A running lab for tests, as a user starts it: by the command line, as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

if TYPE_CHECKING:
    from pathlib import Path

READY_SECONDS = 240.0


@dataclass
class RunningLab:
    """A lab process with its files."""

    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.directory / "lab.json").read_text())

    def prober(self) -> dict[str, Any]:
        return httpx.get(f"{self.facts['control']}/prober", timeout=10.0).raise_for_status().json()

    def reset_prober(self) -> None:
        httpx.post(f"{self.facts['control']}/prober/reset", timeout=10.0).raise_for_status()

    def pods(self) -> list[dict[str, Any]]:
        """What each proxy truly holds, by the lab's own word."""
        return httpx.get(f"{self.facts['control']}/pods", timeout=10.0).raise_for_status().json()

    def api(self) -> kubernetes_client.ApiClient:
        """The official client on the lab's API server."""
        configuration = kubernetes_client.Configuration()
        kubernetes_config.load_kube_config(str(self.kubeconfig), client_configuration=configuration)
        configuration.proxy = None
        return kubernetes_client.ApiClient(configuration)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A raw request with the lab's admin identity; the decoded answer.

        Raises:
            ApiException: The answer is no success.
        """
        with self.api() as api:
            answer = api.call_api(method, api.configuration.host + path, {"Content-Type": "application/json"}, body)
            data = answer.read()
            if not 200 <= answer.status <= 299:
                raise kubernetes_client.ApiException(status=answer.status, reason=data.decode())
        return json.loads(data)

    def outage(self, seconds: float) -> None:
        """Kill the API server; it comes back over the same state after so many seconds."""
        httpx.post(f"{self.facts['control']}/outage", json={"seconds": seconds}, timeout=10.0).raise_for_status()

    def add_fault(self, rule: dict[str, Any]) -> None:
        self.call("POST", "/lab/faults", rule)

    def clear_faults(self) -> None:
        self.call("DELETE", "/lab/faults")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def start_lab(directory: Path, *arguments: str, program: tuple[str, ...] = ("capstan.cli", "lab")) -> RunningLab:
    """`capstan lab up` until it is ready.

    Args:
        program: `("infra.lab",)` takes the lab's own options too, which the command line does not show to users.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lab.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *program, "up", "--dir", str(directory), *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "CAPSTAN_HOME": str(directory / "home")},
        )
    lab = RunningLab(directory, process)
    deadline = time.monotonic() + READY_SECONDS
    while not (directory / "lab.json").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            lab.stop()
            raise AssertionError(f"the lab did not start:\n{(directory / 'lab.log').read_text()[-3000:]}")
        time.sleep(0.1)
    return lab
