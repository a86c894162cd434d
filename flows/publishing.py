"""Sends what people see to Prefect, from a thread of its own.

What is published is for eyes only: no decision rests on it. So it never fails a rotation and never holds one up, even
while the Prefect server is down: of several versions of one thing the newest is sent, at most every `INTERVAL` seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    ArtifactFilterType,
)
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import FlowRunContext
from prefect.logging import get_logger

Send = Callable[["Sender"], None]

# Seconds between two rounds. A person's eye needs no more, and a server on SQLite has other things to do.
INTERVAL = 2.0
# Seconds the end of a run waits for the last round. The server may be away for longer than anybody wants to wait.
PATIENCE = 15.0

_BAR = "capstan-bar"

_log = get_logger("capstan")


@dataclass(frozen=True, slots=True)
class Run:
    """The flow run that is published for."""

    id: UUID
    name: str


class Sender:
    """What a publication may do, in the publisher's thread."""

    def __init__(self, client: SyncPrefectClient, run: Run) -> None:
        self._client = client
        self._run = run
        self._artifacts: dict[str, UUID] = {}

    def rename(self, name: str) -> None:
        """Give the run another name."""
        self._client.update_flow_run(self._run.id, name=name)

    def artifact(self, key: str, kind: str, data: object, description: str) -> None:
        """Create the run's artifact of this key, or replace what it shows: one version per run and key.

        Args:
            key: Lower-case letters, digits, hyphens.
            kind: Prefect's artifact type: `markdown`, `table`, `image`.
            data: As the type wants it, JSON values.
            description: Markdown; its first paragraph is what a list of artifacts shows.
        """
        made = ArtifactCreate(key=key, type=kind, data=data, description=description, flow_run_id=self._run.id)
        self._show(key, made, ArtifactFilter(key=ArtifactFilterKey(any_=[key])))

    def bar(self, name: str, percent: float, description: str) -> None:
        """The same for a progress bar. It has no key: bars are shown with their run, not among the artifacts of all.

        Args:
            name: Names the bar within the run.
            percent: 0 to 100.
        """
        made = ArtifactCreate(
            type="progress", data=percent, description=description, flow_run_id=self._run.id, metadata_={_BAR: name}
        )
        self._show(f"bar {name}", made, ArtifactFilter(type=ArtifactFilterType(any_=["progress"])), {_BAR: name})

    def _show(
        self, what: str, wanted: ArtifactCreate, like: ArtifactFilter, metadata: dict[str, str] | None = None
    ) -> None:
        present = self._artifacts.get(what) or self._find(like, metadata)
        if present is None:
            present = self._client.create_artifact(wanted).id
        else:
            self._client.update_artifact(present, ArtifactUpdate(data=wanted.data, description=wanted.description))
        self._artifacts[what] = present

    def _find(self, like: ArtifactFilter, metadata: dict[str, str] | None) -> UUID | None:
        """What an earlier process of the same run has published."""
        like.flow_run_id = ArtifactFilterFlowRunId(any_=[self._run.id])
        found = self._client.read_artifacts(artifact_filter=like, sort=ArtifactSort.CREATED_DESC, limit=100)
        return next((one.id for one in found if metadata is None or one.metadata_ == metadata), None)


class Publisher:
    """The mailbox and its thread.

    Args:
        client: Opened and closed by the thread.
        run: The flow run that is published for.
        interval: Seconds between two rounds.
    """

    def __init__(self, client: SyncPrefectClient, run: Run, *, interval: float = INTERVAL) -> None:
        self._client = client
        self._run = run
        self._interval = interval
        self._waiting: dict[str, Send] = {}
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="capstan-publisher", daemon=True)
        self._thread.start()

    @property
    def run(self) -> Run:
        """The flow run that is published for."""
        return self._run

    def put(self, what: str, send: Send) -> None:
        """Have something published soon; what waits under the same name and was not sent yet is replaced.

        Args:
            what: Names it, also in the log.
            send: Called in the publisher's thread, with values taken before: what it shows is the moment of the call.
        """
        with self._changed:
            self._waiting.pop(what, None)
            self._waiting[what] = send
            self._changed.notify()

    def close(self, patience: float = PATIENCE) -> None:
        """Publish what still waits, and end; after `patience` seconds what is left is given up."""
        with self._changed:
            self._closed.set()
            self._changed.notify()
        self._thread.join(patience)

    def _work(self) -> None:
        try:
            with self._client as client:
                sender = Sender(client, self._run)
                while (round_ := self._next()) is not None:
                    for what, send in round_.items():
                        self._try(sender, what, send)
                    self._closed.wait(self._interval)
        except Exception as error:  # noqa: BLE001  # nobody waits for this thread, and nothing may depend on it
            _log.warning("nothing more is published for %s: %s", self._run.name, error)

    def _next(self) -> dict[str, Send] | None:
        """What waits; None when all is sent and nothing will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed.is_set())
            taken, self._waiting = self._waiting, {}
        return taken or None

    @staticmethod
    def _try(sender: Sender, what: str, send: Send) -> None:
        try:
            send(sender)
        except Exception as error:  # noqa: BLE001  # for eyes only: what cannot be shown must not end a rotation
            _log.warning("could not publish %s: %s", what, error)


_publisher: ContextVar[Publisher | None] = ContextVar("capstan_publisher", default=None)


def publisher() -> Publisher | None:
    """Whoever publishes in this context; None where nobody does."""
    return _publisher.get()


@contextmanager
def published() -> Iterator[Publisher | None]:
    """Publish the enclosed calls for the flow run around them; outside a flow run, nothing is published."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield None
        return
    new = Publisher(get_client(sync_client=True), Run(context.flow_run.id, context.flow_run.name))
    token = _publisher.set(new)
    try:
        yield new
    finally:
        _publisher.reset(token)
        new.close()
