"""Prefect as an operator runs it, on loopback: a server, a process work pool, a worker, deployments of our flows.

Every part is a process of its own that can be killed and started again. What a part leaves behind when it is killed is
left behind here too: the server's database, the flow process of a dead worker.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import httpx

from tests.support.leash import Leash
from tests.support.prefect_server import await_health, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[2]
POOL = "capstan"

# What makes launch -> RUNNING fast on a machine that does little else. Nothing here changes what a run means.
_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # Prefect's least
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "2",
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
}

# How the worker starts a run. The command is Prefect's own default one; naming it saves the second process in which
# Prefect else resolves pull steps that we do not have. Without `stream_output` a run does not die of the broken pipe
# to a dead worker; its log goes to the server all the same.
JOB_VARIABLES = {"command": f"{sys.executable} -m prefect.engine", "stream_output": False}


class Deployed:
    """A Prefect server with its worker.

    Args:
        home: Directory of its own; PREFECT_HOME and the logs of all parts go there.
        environment: Added to the environment of worker and runs, such as CAPSTAN_HOME, KUBECONFIG.
        database_url: Of the server; default: SQLite in `home`.
        ui: Whether the server shows its pages.
        worker: Whether a worker is started at once.
    """

    def __init__(
        self,
        home: Path,
        *,
        environment: Mapping[str, str] | None = None,
        database_url: str = "",
        ui: bool = False,
        worker: bool = True,
    ) -> None:
        self.home = home
        self.port = free_port()
        self.api_url = f"http://127.0.0.1:{self.port}/api"
        self.ui_url = f"http://127.0.0.1:{self.port}"
        self._leash = Leash()
        self._ui = ui
        self._wants_worker = worker
        self._server: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._logs: list[IO[bytes]] = []
        self.client_environment = {
            **_SETTINGS,
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_UI_URL": self.ui_url,
        }
        self._server_environment = dict(self.client_environment)
        if database_url:
            self._server_environment["PREFECT_API_DATABASE_CONNECTION_URL"] = database_url
        self.worker_environment = {**self.client_environment, **(environment or {})}
        self.http = httpx.Client(base_url=f"{self.api_url}/", timeout=60.0)

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        self._leash.__enter__()
        try:
            self.start_server()
            if self._wants_worker:
                self.start_worker()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill every part and every run."""
        self.http.close()
        for part in (self._worker, self._server):
            if part is not None:
                part.kill()
                part.wait()
        self._leash.__exit__()
        for log in self._logs:
            log.close()

    # --- parts ------------------------------------------------------------------------------------------------------

    def start_server(self) -> None:
        """Start the server on its port and its database; returns when it answers.

        Raises:
            AssertionError: It does not.
        """
        assert self._server is None, "the server is running"
        command = ["server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        if not self._ui:
            command.append("--no-ui")
        self._server = self._spawn(command, self._server_environment, "server.log")
        await_health(self._server, self.api_url, self.home / "server.log")

    def start_worker(self) -> None:
        """Start a worker of the pool; it makes the pool if there is none. Returns at once."""
        assert self._worker is None, "the worker is running"
        name = f"worker-{uuid.uuid4().hex[:6]}"
        command = ["worker", "start", "--pool", POOL, "--type", "process", "--name", name, "--install-policy", "never"]
        self._worker = self._spawn(command, self.worker_environment, "worker.log")

    def kill_server(self) -> None:
        """SIGKILL, as a power cut."""
        self._server = self._killed(self._server)

    def kill_worker(self) -> None:
        """SIGKILL; its runs stay alive without a parent."""
        self._worker = self._killed(self._worker)

    def kill_flow_process(self, run: str) -> None:
        """SIGKILL the process of one run; the worker notices.

        Raises:
            AssertionError: No process of this run is alive.
        """
        processes = self.flow_processes(run)
        assert processes, f"no process of run {run} is alive"
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def kill_worker_and_flow(self, run: str) -> None:
        """SIGKILL both, as when their machine dies: nobody is left to report it."""
        self.kill_worker()
        self.kill_flow_process(run)

    def flow_processes(self, run: str) -> list[int]:
        """Process ids of a run that are alive now."""
        wanted = f"PREFECT__FLOW_RUN_ID={run}".encode()
        return [pid for pid, environment in _environments() if wanted in environment and self._leash.holds(environment)]

    @property
    def worker_log(self) -> str:
        return (self.home / "worker.log").read_text(errors="replace")

    @property
    def server_log(self) -> str:
        return (self.home / "server.log").read_text(errors="replace")

    # --- runs -------------------------------------------------------------------------------------------------------

    @contextmanager
    def as_client(self) -> Iterator[None]:
        """Prefect's own client in this process talks to this server."""
        from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

        from tests.support.prefect_server import send_what_is_queued

        # Prefect's queues of events and logs belong to the process, and keep to the server they first spoke to.
        send_what_is_queued()
        with temporary_settings({PREFECT_API_URL: self.api_url, PREFECT_UI_URL: self.ui_url}):
            try:
                yield
            finally:
                send_what_is_queued()

    def deploy(self, entrypoint: str, name: str, **options: Any) -> str:
        """Create or update a deployment of a flow by its module path.

        Args:
            entrypoint: As `flows.linkerd.rotate_trust_anchor`.
            options: Further arguments of Prefect's `flow.to_deployment`, such as parameters, tags, schedules.

        Returns:
            The deployment's id.
        """
        from importlib import import_module

        from prefect.types.entrypoint import EntrypointType

        module, _, function = entrypoint.rpartition(".")
        flow = getattr(import_module(module), function)
        self.await_pool()
        with self.as_client():
            deployment = flow.to_deployment(
                name,
                work_pool_name=POOL,
                job_variables=options.pop("job_variables", JOB_VARIABLES),
                entrypoint_type=EntrypointType.MODULE_PATH,
                **options,
            )
            return str(deployment.apply())

    def deploy_inventory(self, file: Path) -> None:
        """Bring an inventory file to the server, as `capstan deploy` does.

        Raises:
            CapstanError: The inventory or the server refuses.
        """
        from prefect.client.orchestration import get_client

        from deployments.apply import apply, plan
        from deployments.reading import load

        self.await_pool()
        inventory = load(file)
        with self.as_client(), get_client(sync_client=True) as client:
            list(apply(client, inventory, plan(client, inventory, file)))

    def await_pool(self, seconds: float = 120.0) -> None:
        """Return once the worker has made its pool."""
        self._wait(lambda: self.http.get(f"work_pools/{POOL}").is_success, "the work pool", seconds)

    def launch(
        self, deployment: str, parameters: Mapping[str, Any] | None = None, *, idempotency_key: str = "", **more: Any
    ) -> str:
        """Launch a run over the REST API, as curl would.

        Args:
            deployment: Id, or `FLOW/DEPLOYMENT`.
            more: Further fields of the body, such as name, tags, state.

        Returns:
            The run's id.
        """
        if "/" in deployment:
            deployment = self.ask("GET", f"deployments/name/{deployment}")["id"]
        # A key of its own where none is given: the request may have to be repeated.
        body = {"parameters": dict(parameters or {}), "idempotency_key": idempotency_key or uuid.uuid4().hex, **more}
        return str(self.ask("POST", f"deployments/{deployment}/create_flow_run", json=body)["id"])

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """A request to the REST API; asked again while the database is busy, as the server says with 503.

        What only reads is asked again, too, when the server is too slow to answer: a machine may be busy.

        Raises:
            HTTPStatusError: The answer is no success.
            TransportError: No answer.
        """
        deadline = time.monotonic() + 60.0
        while True:
            try:
                answer = self.http.request(method, path, **options)
            except httpx.TimeoutException:
                if method != "GET" or time.monotonic() > deadline + 60.0:
                    raise
                continue
            if answer.status_code != 503 or time.monotonic() > deadline:
                return answer.raise_for_status().json() if answer.content else answer.raise_for_status()
            time.sleep(0.5)

    def run(self, run: str) -> dict[str, Any]:
        """A flow run, as the API describes it."""
        found: dict[str, Any] = self.ask("GET", f"flow_runs/{run}")
        return found

    def state(self, run: str) -> str:
        """Name of the run's state, such as Running, Waiting, Suspended, Completed."""
        return str(self.run(run)["state"]["name"])

    def history(self, run: str) -> list[dict[str, Any]]:
        """Every state the run has been in, oldest first."""
        states = self.ask("GET", "flow_run_states/", params={"flow_run_id": run})
        return sorted(states, key=lambda state: str(state["timestamp"]))

    def logs(self, run: str) -> str:
        """What the run has logged."""
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        lines = self.ask("POST", "logs/filter", json=body)
        return "\n".join(str(line["message"]) for line in lines)

    def wait_for_state(
        self, run: str, *names: str, seconds: float = 120.0, every: float = 0.2, fatal: Sequence[str] = ()
    ) -> str:
        """Return the state's name once it is one of `names`.

        Args:
            every: Seconds between two looks.
            fatal: Names of states that end the wait as a failure at once.

        Raises:
            AssertionError: It does not become one of them in time; the message has the run's history and log.
        """
        deadline = time.monotonic() + seconds
        found = ""
        while True:
            with suppress(httpx.TransportError):
                found = self.state(run)
            if found in names:
                return found
            if found in fatal or time.monotonic() > deadline:
                raise AssertionError(self.explain(run, f"waited for {' or '.join(names)}, found {found}"))
            time.sleep(every)

    def explain(self, run: str, what: str) -> str:
        """A failure's message: what the run went through."""
        past = "\n".join(
            f"  {state['timestamp']} {state['type']} {state['name']}: {state['message']}" for state in self.history(run)
        )
        return f"{what}\n{past}\nlog of the run:\n{self.logs(run)[-4000:]}\nworker:\n{self.worker_log[-2000:]}"

    def resume(self, run: str, answer: Mapping[str, Any] | None) -> dict[str, Any]:
        """Resume a suspended run with what was typed into its form; the server's word on it (`status`)."""
        body = {} if answer is None else {"run_input": dict(answer)}
        reply: dict[str, Any] = self.ask("POST", f"flow_runs/{run}/resume", json=body)
        return reply

    def approve(self, run: str, *, name: str = "Ada", **answer: Any) -> None:
        """Approve what a suspended run asks for, over the REST API.

        Raises:
            AssertionError: The server did not accept.
        """
        given = {"decision": "approve", "name": name, **answer}
        reply = self.resume(run, given)
        assert reply["status"] == "ACCEPT", reply

    def sweep_now(self, thresholds: Mapping[str, float]) -> tuple[Any, ...]:
        """Run the sweep in this process, against this server; what it found.

        Args:
            thresholds: Fields of `SweepThresholds`.
        """
        from capstan.rotation.reviving import SweepThresholds
        from flows.sweep import sweep

        with self.as_client():
            return sweep(SweepThresholds.model_validate(dict(thresholds)))

    # --- below ------------------------------------------------------------------------------------------------------

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str], log: str) -> subprocess.Popen[bytes]:
        others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        file = (self.home / log).open("ab")
        self._logs.append(file)
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", *command],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd=self.home,
            env={**others, **environment, **self._leash.environment},
        )  # fmt: skip

    def call(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end beside the parts, with nothing of Prefect's in its environment but `environment`."""
        others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        with (self.home / "calls.log").open("ab") as log:
            return subprocess.run(
                list(command), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.home,
                env={**others, **environment, **self._leash.environment}, check=False,
            )  # fmt: skip

    @staticmethod
    def _killed(part: subprocess.Popen[bytes] | None) -> None:
        assert part is not None, "it is not running"
        part.kill()
        part.wait()

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:.0f} s for {what}; worker:\n{self.worker_log[-3000:]}")
            time.sleep(0.2)


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    """Process id and environment of every process of ours on this machine (Linux)."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            yield int(path.parent.name), path.read_bytes().split(b"\0")
