"""One rotation through a Prefect deployment, in which one part after another is killed.

A `Cell` is a kind of kill at a point of the rotation. Points inside a step are found by the product's own audit events,
where the flow process is held still (`halts`); the others are states of the run in Prefect. At each the test asserts
what it sees before it kills: a cell that was not reached fails the chain.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx

from tests.deployed.meshes import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.deployed.halts import Halts
    from tests.deployed.meshes import Mesh
    from tests.support.key_vaults import KeyVaultProcess
    from tests.support.prefect_deployment import Deployed

# Where a flow process is held, by its audit event.
STEPS = {
    "preparing": "mint begin",
    "minting": "vault.store/capstan-mesh-root end",
    "trust restart": "restart-data-plane/trust/cluster begin",
    "backing up": "back-up-issuer/cluster begin",
    "issue": "switch-issuer/cluster end",
    "distrust": "narrow-bundle/cluster end",
    "distrust restart": "restart-data-plane/distrust/cluster begin",
    "finishing": "finish begin",
}
# Told by the state of the run in Prefect, without a process of its own (or, resumed and woken, with one that has just
# come into being), and for most by the gate that was asked for.
STATES = {
    "launched": "Pending",
    "asked": "Suspended",
    "approved": "Resuming",
    "waking": "Pending",
    "resumed": "Running",
    "waiting": "Waiting",
    "woken": "Running",
}
FLOW, WORKER, WORKER_AND_FLOW, SERVER = "flow", "worker", "worker + flow", "server"
SERVER_AND_WORKER, API_SERVER, KEY_VAULT = "server + worker", "API server", "Key Vault"
MACHINE = "machine"

# Shorter than what the mesh bears (conftest.py, LEAF_SECONDS).
OUTAGE_SECONDS = 4.0
SWEEP_EVERY = 4.0
THRESHOLDS = {"silent_seconds": 35.0, "crashed_seconds": 4.0, "pending_seconds": 60.0}
ROTATION_SECONDS = 1500.0


@dataclass(frozen=True)
class Cell:
    """One kill of the matrix."""

    kind: str
    point: str

    def __str__(self) -> str:
        return f"{self.kind} while {self.point}"


class Chain:
    """Runs one rotation of `mesh` on `deployed` and does the kills of `cells`, in their order of points.

    Attributes:
        done: The cells that were done, with the state of the run right before the kill.
    """

    def __init__(
        self, deployed: Deployed, mesh: Mesh, halts: Halts, cells: Sequence[Cell], vault: KeyVaultProcess | None = None
    ) -> None:
        self.deployed = deployed
        self.mesh = mesh
        self.halts = halts
        self.cells = list(cells)
        self.vault = vault
        steps = [cell.point for cell in self.cells if cell.point in STEPS]
        assert len(steps) == len(set(steps)), "two kills at one step: only the last would be felt by the process"
        self.done: list[tuple[Cell, str]] = []
        self.given: list[tuple[str, str]] = []
        self.run = ""
        self._swept = time.monotonic()

    def rotate(self) -> None:
        """Launch, approve whatever is asked, kill at every cell, and return when the run is complete.

        Raises:
            AssertionError: It does not complete, or a cell was not reached.
        """
        self.halts.want(STEPS[cell.point] for cell in self.cells if cell.point in STEPS)
        self.run = self.deployed.launch("linkerd-trust-anchor/mesh")
        deadline = time.monotonic() + ROTATION_SECONDS
        while True:
            assert time.monotonic() < deadline, self._explain("the rotation takes too long")
            found = self.deployed.run(self.run)["state"]
            state = found["name"]
            if state == "Completed":
                break
            assert state not in ("Failed", "Cancelled"), self._explain(f"the run is {state}")
            self._at_a_step(state)
            match state:
                case "Pending" | "Submitting" if self._next("launched") is not None:
                    self._at("launched", state)
                case "Suspended":
                    self._answer(found["message"].rpartition(" ")[2])
                case "Waiting" if found["message"].startswith("gate before"):
                    # (a run that comes back after a fault waits as well, but for nobody)
                    self._at("waiting", state)
                    self._then("woken", "Running")
                case "Crashed" | "Pending" | "Submitting" | "Running":
                    self._sweep(state, found["timestamp"])
                case _:
                    pass
            time.sleep(0.1)
        missing = [str(cell) for cell in self.cells if cell not in [done for done, _ in self.done]]
        assert not missing, self._explain(f"never reached: {missing}")

    def require_nothing_lost(self) -> None:
        """The rotation is whole, and nobody was asked twice."""
        self.mesh.require_finished(self.given)
        asked = [state["message"] for state in self.deployed.history(self.run) if state["name"] == "Suspended"]
        assert asked == [f"waits for approval: {gate}" for gate in ("trust", "issue", "distrust")], asked

    # --- points -----------------------------------------------------------------------------------------------------

    def _next(self, point: str) -> Cell | None:
        return next((cell for cell in self.cells if cell.point == point and cell not in self._cells_done), None)

    @property
    def _cells_done(self) -> list[Cell]:
        return [cell for cell, _ in self.done]

    def _at(self, point: str, state: str) -> None:
        """Do the kills of a point that is told by the run's state, as long as the run stays in it."""
        expected = STATES[point.partition(":")[0]]
        while (cell := self._next(point)) is not None:
            if state != expected and not (expected == "Pending" and state == "Submitting"):
                return
            self._kill(cell, state, None)
            state = self.deployed.state(self.run)

    def _at_a_step(self, state: str) -> None:
        for cell in self.cells:
            if cell.point not in STEPS or cell in self._cells_done:
                continue
            process = self.halts.reached(STEPS[cell.point])
            if process is not None and process in self.deployed.flow_processes(self.run):
                assert state == "Running", (cell, state)
                self._kill(cell, state, STEPS[cell.point])
                return

    def _answer(self, gate: str) -> None:
        self._at(f"asked: {gate}", "Suspended")
        who = f"Ada of {gate}"
        assert (gate, who) not in self.given, self._explain(f"asked for {gate} twice")
        self.deployed.approve(self.run, name=who, ticket=f"CHG-{gate}")
        self.given.append((gate, who))
        # The server has the answer, and nobody has looked at it.
        self._at(f"approved: {gate}", "Resuming")
        self._then(f"waking: {gate}", "Pending", "Submitting")
        self._then(f"resumed: {gate}", "Running")

    def _then(self, point: str, *states: str) -> None:
        """Wait for a state that comes next, and do the kills of a point there."""
        if self._next(point) is not None:
            self._at(point, self.deployed.wait_for_state(self.run, *states, seconds=120, every=0.05))

    # --- kills ------------------------------------------------------------------------------------------------------

    def _kill(self, cell: Cell, state: str, point: str | None) -> None:
        """Kill, let go of what stands still at `point`, and bring the killed part back."""
        deployed = self.deployed

        def release() -> None:
            if point is not None:
                self.halts.release(point)

        self.done.append((cell, state))
        match cell.kind:
            case "flow":
                assert state == "Running", state
                deployed.kill_flow_process(self.run)
                release()
            case "worker":
                deployed.kill_worker()
                release()
                time.sleep(2)
                deployed.start_worker()
            case "worker + flow":
                assert state == "Running", state
                deployed.kill_worker_and_flow(self.run)
                release()
                deployed.start_worker()
            case "machine":
                # It dies with all that runs on it, and the next worker is on another one: nothing on disk is there.
                deployed.kill_worker()
                if deployed.flow_processes(self.run):
                    deployed.kill_flow_process(self.run)
                release()
                deployed.worker_environment["CAPSTAN_HOME"] = str(self.mesh.machines[len(self.done)])
                deployed.start_worker()
            case "server":
                deployed.kill_server()
                release()
                deployed.start_server()
            case "server + worker":
                # Their machine: what they had started on it goes too.
                deployed.kill_server()
                deployed.kill_worker()
                if deployed.flow_processes(self.run):
                    deployed.kill_flow_process(self.run)
                release()
                deployed.start_server()
                deployed.start_worker()
            case "API server":
                self.mesh.lab.outage(OUTAGE_SECONDS)
                wait_for(self._refused, "the API server to go down", 5)
                release()
                wait_for(lambda: not self._refused(), "the API server to come back", 60)
                # Once more, as a server does that fails its first start.
                self.mesh.lab.outage(0.2)
                wait_for(lambda: not self._refused(), "the API server to come back", 60)
            case "Key Vault":
                assert self.vault is not None
                self.vault.kill()
                release()
                time.sleep(OUTAGE_SECONDS)
                self.vault.start()
            case _:
                raise AssertionError(cell.kind)

    def _refused(self) -> bool:
        server = self.mesh.lab.facts["server"]
        try:
            httpx.get(f"{server}/livez", verify=False, timeout=5.0)  # only whether somebody is there
        except httpx.ConnectError:
            return True
        except httpx.TransportError:
            return False
        return False

    def _sweep(self, state: str, since: str) -> None:
        """What the sweep's schedule does, more often; not while it could only find that nobody is dead yet."""
        silent = (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()
        alive = state == "Running" and self.deployed.flow_processes(self.run)
        starting = state in ("Pending", "Submitting") and silent < THRESHOLDS["pending_seconds"]
        if alive or starting or time.monotonic() - self._swept < SWEEP_EVERY:
            return
        self._swept = time.monotonic()
        with suppress(httpx.TransportError):
            self.deployed.sweep_now(THRESHOLDS)

    def _explain(self, what: str) -> str:
        done = ", ".join(f"{cell} ({state})" for cell, state in self.done)
        return self.deployed.explain(self.run, f"{what}\nkills so far: {done}\napprovals: {self.given}")
