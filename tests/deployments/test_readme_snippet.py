"""A rotation begins as the README says: by its curl commands, and by schedule; a real server, a real worker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from prefect.client.orchestration import get_client

from deployments.apply import apply, plan
from deployments.reading import load
from tests.deployments.inventories import HEAD
from tests.support.prefect_deployment import Deployed

if TYPE_CHECKING:
    from collections.abc import Iterator

README = Path(__file__).parents[2] / "README.md"


def snippet() -> str:
    """The one block of the README that launches a run."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if "create_flow_run" in block]
    return str(found)


pytestmark = [pytest.mark.slow, pytest.mark.timeout(540), pytest.mark.xdist_group("deployments")]

# An ISO week that is near enough for Prefect to have created its run (100 days), and far enough never to be this one.
SOON = datetime.now(UTC) + timedelta(weeks=3)


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig that is not there: a run that gets as far as its cluster has proven what is claimed here."""
    return tmp_path_factory.mktemp("clusters") / "no-kubeconfig"


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory, nowhere: Path) -> Iterator[Deployed]:
    """A server with an inventory deployed, and a worker in a directory that has no source of ours."""
    directory = tmp_path_factory.mktemp("deployed")
    inventory = directory / "fleet.yaml"
    inventory.write_text(
        f"{HEAD}sweep: {{enabled: false}}\ndomains:\n"
        f"  - name: prod-eu\n    clusters: [{{kubeconfig: {nowhere}}}]\n    tags: [production]\n"
        f"    schedule: {{week: {SOON.isocalendar().week}}}\n"
    )
    environment = {"CAPSTAN_HOME": str(directory / "capstan")}
    with Deployed(directory / "prefect", environment=environment, worker=False) as server:
        with server.as_client(), get_client(sync_client=True) as client:
            loaded = load(inventory)
            list(apply(client, loaded, plan(client, loaded, inventory)))  # makes the work pool too
        server.start_worker()
        yield server


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="the snippet needs curl and jq")
def test_launching_twice_with_one_key_is_one_run_and_a_worker_anywhere_runs_it_from_installed_code(
    prefect: Deployed, nowhere: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PREFECT_API_URL": prefect.api_url}
    first, second = (
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", snippet()],
            capture_output=True, text=True, check=True, env=environment, cwd=tmp_path, timeout=60,
        ).stdout.strip()
        for _ in range(2)
    )  # fmt: skip
    assert re.fullmatch(r"[0-9a-f-]{36}", first)
    assert second == first
    prefect.wait_for_state(first, "Failed", seconds=300, fatal=("Completed", "Crashed"))
    run = prefect.run(first)
    assert run["parameters"]["rotation"] == "prod-eu-2027"
    assert run["parameters"]["domain"]["clusters"][0]["kubeconfig"] == str(nowhere)
    assert sorted(run["tags"]) == ["capstan", "domain:prod-eu", "inventory:fleet", "production", "system:linkerd"]
    assert f"cannot use this kubeconfig ({nowhere}" in run["state"]["message"]


def test_the_server_creates_the_run_of_a_near_week_when_its_window_opens(prefect: Deployed) -> None:
    # Found missing once: the scheduler of Prefect 3.8.8 creates no run at all with SQLAlchemy 2.1.
    query = {
        "deployments": {"tags": {"all_": ["domain:prod-eu"]}},
        "flows": {"name": {"any_": ["linkerd-trust-anchor"]}},
    }
    query["flow_runs"] = {"state": {"type": {"any_": ["SCHEDULED"]}}}
    deadline = time.monotonic() + 180.0
    runs: list[dict[str, Any]] = []
    while not runs and time.monotonic() < deadline:
        runs = [run for run in prefect.ask("POST", "flow_runs/filter", json=query) if run["auto_scheduled"]]
        time.sleep(0.5)
    assert runs, prefect.server_log[-2000:]
    start = datetime.fromisoformat(runs[0]["next_scheduled_start_time"]).astimezone(ZoneInfo("Europe/Berlin"))
    assert (start.isocalendar()[:2], start.isoweekday(), start.hour) == (SOON.isocalendar()[:2], 6, 3)
    assert "domain:prod-eu" in runs[0]["tags"]
