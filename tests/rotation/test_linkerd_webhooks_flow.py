"""The command line turns webhook certificates: killed in every phase and run again, asked, accounted for, taken back.

The servers stand on a mesh without proxies, so that it is the flow that is tested; the whole lab is in
test_linkerd_webhooks.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.apiserver import Running
from tests.support.mesh import Mesh
from tests.support.webhook_servers import WebhookServers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rotation.runner import Ran, Runner

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

KILLS = (
    "prepare > mint > account minted, half-written",
    "trust > widen-ca-bundle/cluster/sp-validator > account bundle-widened, half-written",
    "issue > switch-serving/cluster/sp-validator > account serving-switched, half-written",
    "distrust > narrow-ca-bundle/cluster/sp-validator > account bundle-narrowed, half-written",
)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path / "apiserver")
    yield running
    running.stop()


@pytest.fixture
def servers(running: Running) -> Iterator[WebhookServers]:
    cluster = running.connect()
    mesh = Mesh(running, cluster)
    servers = WebhookServers(mesh, cluster, replicas=1)
    with servers.following():
        yield servers
    servers.close()
    mesh.close()
    cluster.close()


class Commands:
    """The command line on this mesh."""

    def __init__(self, runner: Runner, running: Running, home: Path) -> None:
        self._run, self._kubeconfig, self._home = runner.run, running.server.kubeconfig, home

    def __call__(self, command: str, *more: str, die_at: str = "") -> Ran:
        arguments = (command, "--system", "linkerd", *more, "-o", "json")
        return self._run(*arguments, home=self._home, kubeconfig=self._kubeconfig, die_at=die_at)


@pytest.fixture
def capstan(runner: Runner, running: Running, servers: WebhookServers, tmp_path: Path) -> Commands:
    del servers
    return Commands(runner, running, tmp_path / "home")


def entries(ran: Ran) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(ran.data["evidence"]).read_text().splitlines()]


@pytest.mark.proves("faults", "webhook rotation killed in every phase", "gone on with, then taken back; no call fails")
def test_the_command_line_turns_them_killed_in_every_phase_and_takes_them_back(
    capstan: Commands, servers: WebhookServers, running: Running
) -> None:
    # 1. What would be done.
    planned = capstan("plan", "--what", "webhooks")
    assert planned.code == 2, planned.stderr
    assert planned.data["phase"] == "prepare"
    # 2. Killed in each phase, and gone on with.
    rotate = ("rotate", "--what", "webhooks", "--approve", "auto")
    for point in KILLS:
        killed = capstan(*rotate, die_at=point)
        assert killed.killed, (point, killed.code, killed.stderr[-2000:], killed.passed)
        servers.call_each()
    status = capstan("status")
    assert status.code == 2, status.stderr
    assert status.data["phase"] == "distrust"
    ran = capstan(*rotate)
    assert ran.code == 0, ran.stderr[-3000:]
    assert (ran.data["kind"], ran.data["completed"], ran.data["resumed"]) == ("webhooks", True, True)
    assert set(servers.ca_bundles().values()) == {1}
    servers.call_each()
    approved = [entry["body"]["gate"] for entry in entries(ran) if entry["kind"] == "approval"]
    assert approved == ["trust", "issue", "distrust"], entries
    # 3. And the whole way back.
    shown = capstan("rollback", "--dry-run")
    assert shown.code == 2, shown.stderr
    back = capstan("rollback", "--approve", "auto")
    assert back.code == 0, back.stderr[-3000:]
    assert (back.data["direction"], back.data["completed"]) == ("back", True)
    assert set(back.data["roots"]["after"]) <= set(ran.data["roots"]["before"])
    assert set(servers.ca_bundles().values()) == {1}
    servers.call_each()
    assert running.server.access.calls.body()["failures"] == []
