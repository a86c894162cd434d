"""Runs the command line many times without importing it anew: one process imports everything, each run is its fork.

A run is a process of its own, with its own process id; killing it kills nothing else.

    python -m tests.rotation.runner        reads one JSON request a line, answers one JSON line each
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Call = tuple[str, str] | tuple[str, str, Any] | tuple[str, str, Any, str]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ran:
    """How a run ended.

    Attributes:
        code: Exit code; negative for the signal that ended it.
        passed: The points it passed, in order; the last one is where it died, if it did.
    """

    code: int
    stdout: str
    stderr: str
    passed: list[str]

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def data(self) -> Any:
        """The answer of a run with `-o json`."""
        return json.loads(self.stdout)


class Runner:
    """Keeps the process that has everything imported."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self._log = (directory / "runner.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rotation.runner"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT,
            env={**os.environ, **environment},
        )  # fmt: skip
        self.environment = environment
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")
        self._log.close()

    def run(
        self,
        *arguments: str | Path,
        home: Path,
        kubeconfig: Path | None = None,
        die_at: str = "",
        seconds: float = 600,
        call_at: Mapping[str, Sequence[Call]] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Ran:
        """One run of `capstan ARGUMENTS`, to its end.

        Args:
            home: Its CAPSTAN_HOME.
            kubeconfig: Its KUBECONFIG.
            die_at: The point at which it is to be killed.
            seconds: After which it is interrupted, which fails whoever expects anything of it.
            call_at: Requests that the administrator makes as soon as it comes to a point, before it goes on: method,
                path (or a whole URL), body, content type. Each point's are made once.
            environment: Variables of this run alone.
        """
        self._count += 1
        files = self.directory / f"run-{self._count}"
        request = {
            "arguments": [str(argument) for argument in arguments], "home": str(home), "die_at": die_at,
            "kubeconfig": str(kubeconfig or ""), "files": str(files), "seconds": seconds,
            "call_at": {point: list(calls) for point, calls in (call_at or {}).items()},
            "environment": dict(environment or {}),
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the runner has died: {(self.directory / 'runner.log').read_text()[-2000:]}"
        out, err, points = (files.with_suffix(suffix) for suffix in (".out", ".err", ".points"))
        passed = points.read_text().splitlines() if points.exists() else []
        return Ran(json.loads(answer)["code"], out.read_text(), err.read_text(), passed)


# --- the other side -------------------------------------------------------------------------------------------------


def serve() -> None:
    from capstan.cli import prefect_local

    prefect_local.prepare(Path(os.environ["CAPSTAN_HOME"]))
    for module in ("cli.evidence", "cli.plan", "cli.rollback", "cli.rotate", "systems.linkerd.adapter"):
        importlib.import_module(f"capstan.{module}")  # for the forks
    importlib.import_module("flows.linkerd")

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                become(request)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(70)
        sys.stdout.write(json.dumps({"code": await_end(child, request["seconds"])}) + "\n")
        sys.stdout.flush()


def await_end(child: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
            return -int(signal.SIGTERM)
        time.sleep(0.01)


def become(request: dict[str, Any]) -> None:
    """Turn this fork into a run of the command line."""
    import re

    from capstan.cli import main
    from tests.rotation.points import Watch

    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(request["files"] + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, descriptor)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.environ.update(request["environment"])
    os.environ["CAPSTAN_HOME"] = request["home"]
    if request["kubeconfig"]:
        os.environ["KUBECONFIG"] = request["kubeconfig"]
    points = os.open(request["files"] + ".points", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    write = os.write

    def die(point: str) -> bool:
        write(points, f"{point}\n".encode())
        for call in request["call_at"].pop(point, ()):
            as_administrator(request["kubeconfig"], *call)
        return bool(point == request["die_at"])

    def arm(method: str, target: str, after: bool) -> None:
        # The API server kills us: once the write is committed and not yet answered, or instead of doing it.
        action = {"kill": os.getpid(), "when": "after"} if after else {"kill": os.getpid(), "drop": "before"}
        rule = {"method": method, "path": f"^{re.escape(target)}$", "userAgent": "capstan", "action": action}
        as_administrator(request["kubeconfig"], "POST", "/lab/faults", rule)

    Watch(request["home"], die, arm).start()
    sys.argv = ["capstan", *request["arguments"]]
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)


def as_administrator(
    kubeconfig: str, method: str, path: str, body: Any = None, content_type: str = "application/json"
) -> None:
    """One request that must succeed, from within a run's process but not as the run."""
    import httpx
    from kubernetes import config

    if path.startswith("http://"):
        httpx.request(method, path, json=body, timeout=10.0).raise_for_status()
        if path.endswith("/outage"):
            await_silence(kubeconfig)
        return
    with config.new_client_from_config(kubeconfig) as api:
        answer = api.call_api(method, f"{api.configuration.host}{path}", {"Content-Type": content_type}, body)
        assert 200 <= answer.status <= 299, (answer.status, answer.read())


def await_silence(kubeconfig: str, seconds: float = 10.0) -> None:
    """An outage begins a moment after it was ordered: what is written in that moment would meet no fault."""
    import socket
    from urllib.parse import urlsplit

    from kubernetes import config

    with config.new_client_from_config(kubeconfig) as api:
        server = urlsplit(api.configuration.host)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection((str(server.hostname), server.port or 443), timeout=1.0).close()
        except OSError:
            return
        time.sleep(0.01)
    raise AssertionError(f"the API server still answered {seconds:.0f} s after an outage was ordered")


if __name__ == "__main__":
    serve()
