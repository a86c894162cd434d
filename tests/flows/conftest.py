"""A Prefect server without a worker, and runs in whatever state a test puts them into."""

from __future__ import annotations

import secrets
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.record import Claim, RecordStore, RotationRecord
from tests.support.apiserver import Running
from tests.support.prefect_deployment import POOL, Deployed

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Domain:
    """A trust domain of its own for one test, on one API server, with its runs on one Prefect server."""

    prefect: Deployed
    api: Running
    name: str
    deployment: str

    @property
    def tag(self) -> str:
        """Runs of this test alone carry it."""
        return f"inventory:{self.name}"

    @property
    def parameter(self) -> dict[str, Any]:
        return {"name": self.name, "clusters": [{"name": "test", "kubeconfig": str(self.api.server.kubeconfig)}]}

    def launch(self, state: str, state_name: str = "", **more: Any) -> str:
        """A run in a state, by type (`CRASHED`) and maybe its name; no worker ever touches it."""
        body = {"tags": ["capstan", self.tag], **more}
        body.setdefault("parameters", {"domain": self.parameter})
        run = self.prefect.launch(self.deployment, **body)
        self.enter(run, state, state_name)
        return run

    def enter(self, run: str, state: str, name: str = "") -> None:
        """Force a state."""
        wanted: dict[str, Any] = {"type": state, "name": name or state.capitalize(), "message": "set by the test"}
        self.prefect.ask("POST", f"flow_runs/{run}/set_state", json={"state": wanted, "force": True})

    def states(self, run: str) -> list[str]:
        return [str(state["name"]) for state in self.prefect.history(run)]

    def record(self, run: str | None, **fields: Any) -> None:
        """A rotation under way, claimed by a run."""
        at = datetime.now(UTC)
        claim = None if run is None else Claim(run=run, name="a run", at=at)
        with closing(self.api.connect()) as cluster:
            RecordStore(cluster, self.name).begin(
                RotationRecord(
                    rotation_id="r-1", domain=self.name, system="linkerd", started=at, **{"claim": claim, **fields}
                )
            )

    def budget(self) -> int:
        with closing(self.api.connect()) as cluster:
            record = RecordStore(cluster, self.name).load()
            assert record is not None
            return record.budget


@pytest.fixture(scope="session")
def prefect(tmp_path_factory) -> Iterator[Deployed]:
    with Deployed(tmp_path_factory.mktemp("prefect"), worker=False) as prefect:
        prefect.ask("POST", "work_pools/", json={"name": POOL, "type": "process"})
        yield prefect


@pytest.fixture(scope="session")
def api(tmp_path_factory) -> Iterator[Running]:
    api = Running(tmp_path_factory.mktemp("apiserver"))
    yield api
    api.stop()


@pytest.fixture(scope="session")
def deployment(prefect) -> str:
    """A deployment that no worker serves, of a flow by a rotation's name."""
    flow = prefect.ask("POST", "flows/", json={"name": "linkerd-trust-anchor"})["id"]
    body = {"name": "nobody-runs-it", "flow_id": flow, "work_pool_name": POOL}
    return str(prefect.ask("POST", "deployments/", json=body)["id"])


@pytest.fixture
def domain(prefect, api, deployment) -> Domain:
    return Domain(prefect, api, f"d-{secrets.token_hex(4)}", deployment)
