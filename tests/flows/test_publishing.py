"""What people see in Prefect never holds a rotation up and never fails it; the newest of each thing is what is sent."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import UUID, uuid4

import httpx
import pytest

from flows.publishing import Publisher, Run, Sender
from flows.watching import SHOWN, Bar, PrefectWatcher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
    from prefect.client.schemas.filters import ArtifactFilter

RUN = Run(uuid4(), "brave-otter")
SOON = 10.0


class Server:
    """Keeps artifacts and names as Prefect's server does, as far as its client can tell."""

    def __init__(self) -> None:
        self.artifacts: dict[UUID, dict[str, Any]] = {}
        self.names: list[str] = []
        self.requests = 0
        self.answers = threading.Event()
        self.answers.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _asked(self) -> None:
        self.requests += 1
        if not self.answers.wait(SOON):
            raise httpx.ReadTimeout("no answer")

    def update_flow_run(self, _run: UUID, *, name: str) -> None:
        self._asked()
        self.names.append(name)

    def create_artifact(self, artifact: ArtifactCreate) -> SimpleNamespace:
        self._asked()
        made = uuid4()
        self.artifacts[made] = artifact.model_dump()
        return SimpleNamespace(id=made)

    def update_artifact(self, artifact_id: UUID, artifact: ArtifactUpdate) -> None:
        self._asked()
        self.artifacts[artifact_id].update(artifact.model_dump(exclude_unset=True))

    def read_artifacts(self, *, artifact_filter: ArtifactFilter, **_: object) -> list[SimpleNamespace]:
        self._asked()
        keys = artifact_filter.key.any_ if artifact_filter.key else None
        kinds = artifact_filter.type.any_ if artifact_filter.type else None
        return [
            SimpleNamespace(id=one, metadata_=kept["metadata_"])
            for one, kept in self.artifacts.items()
            if (keys is None or kept["key"] in keys) and (kinds is None or kept["type"] in kinds)
        ]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def publisher(server: Server) -> Iterator[Publisher]:
    running = Publisher(cast("SyncPrefectClient", server), RUN, interval=0.01)
    yield running
    server.answers.set()
    running.close()


def shown(server: Server) -> list[tuple[Any, Any]]:
    return [(kept["key"], kept["data"]) for kept in server.artifacts.values()]


def test_closing_publishes_what_waits(server: Server, publisher: Publisher) -> None:
    publisher.put("plan", lambda sender: sender.artifact("capstan-x-plan", "table", [1], "Plan"))
    publisher.put("name", lambda sender: sender.rename("x: trust (r)"))
    publisher.close()
    assert shown(server) == [("capstan-x-plan", [1])]
    assert server.names == ["x: trust (r)"]


def test_of_several_versions_only_the_newest_is_sent(server: Server, publisher: Publisher) -> None:
    server.answers.clear()
    publisher.put("first", lambda sender: sender.rename("keeps the thread busy"))
    while not server.requests:
        time.sleep(0.001)
    for number in range(100):
        publisher.put("name", partial(Sender.rename, name=f"version {number}"))
    server.answers.set()
    publisher.close()
    assert server.names == ["keeps the thread busy", "version 99"]


def test_an_artifact_is_made_once_a_run_and_replaced_after_that_also_by_a_later_process(server: Server) -> None:
    for process in range(2):
        sender = Sender(cast("SyncPrefectClient", server), RUN)
        for version in range(2):
            sender.artifact("capstan-x-plan", "table", [process, version], "Plan")
            sender.bar("trust restart workloads a", 50.0 + version, "text")
            sender.bar("trust restart workloads b", 10.0 + process, "text")
    assert shown(server) == [("capstan-x-plan", [1, 1]), (None, 51.0), (None, 11.0)]


def test_a_server_that_fails_is_told_to_the_log_and_to_nobody_else(
    publisher: Publisher, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_sender: Sender) -> None:
        raise httpx.ConnectError("connection refused")

    with caplog.at_level(logging.WARNING, "prefect.capstan"):
        publisher.put("timeline", refuse)
        publisher.put("name", lambda sender: sender.rename("goes on"))
        publisher.close()
    assert server.names == ["goes on"]


def test_a_server_that_does_not_answer_holds_nobody_up(server: Server, publisher: Publisher) -> None:
    server.answers.clear()
    began = time.monotonic()
    for number in range(50):
        publisher.put(f"bar {number}", lambda sender: sender.rename("never seen"))
    assert time.monotonic() - began < 1.0
    publisher.close(patience=0.1)
    assert time.monotonic() - began < 2.0


def test_a_bar_names_step_and_cluster_and_some_of_those_waited_for() -> None:
    names = tuple(f"deployment/web-{n} -n shop" for n in range(SHOWN + 3))
    bar = Bar("trust", "restart workloads", "eu-1", 4, 4 + len(names), names)
    assert bar.text().splitlines()[0] == "**trust: restart workloads** (eu-1): 4 of 15"
    assert bar.text().count("\n- `deployment/") == SHOWN
    assert bar.text().endswith("- and 3 more")
    assert bar.percent() == pytest.approx(100 * 4 / 15)
    assert bar.line() == (
        "restart workloads: 4 of 15, waiting for deployment/web-0 -n shop, deployment/web-1 -n shop,"
        " deployment/web-2 -n shop and 8 more"
    )


def test_a_name_cannot_break_out_of_its_place_in_a_bar() -> None:
    assert "`a'b`" in Bar("trust", "step", "", 0, 1, ("a`b",)).text()


def test_counts_become_one_bar_a_step_and_nothing_is_sent_while_nothing_changes(
    server: Server, publisher: Publisher
) -> None:
    watcher = PrefectWatcher(publisher)
    watcher.phase("trust")
    watcher.step("restart workloads", "eu-1")
    watcher.count(1, 4, ["a", "b", "c"])
    watcher.count(4, 4)
    watcher.step("gate before issue")
    watcher.count(2, 12, ["p"])
    for _ in range(20):
        watcher.count(2, 12, ["p"])
    publisher.close()
    bars = {kept["metadata_"]["capstan-bar"]: kept["data"] for kept in server.artifacts.values()}
    assert bars == {"trust restart workloads eu-1": 100.0, "trust gate before issue": pytest.approx(100 / 6)}
    assert server.requests <= 6


def test_a_watcher_outside_a_run_and_without_a_publisher_only_logs(caplog: pytest.LogCaptureFixture) -> None:
    watcher = PrefectWatcher()
    with caplog.at_level(logging.INFO):
        watcher.phase("issue")
        watcher.step("issuer := new", "eu-1")
        watcher.count(1, 2, ["x"])
        watcher.note("something")
