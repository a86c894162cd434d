"""What makes a run dead, and events that never cost a rotation anything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from capstan.config import TrustDomain
from capstan.rotation.reviving import SweepThresholds
from flows import events
from flows.events import MAX_TEXT, EventName, raise_event
from flows.sweep import why_dead

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LIMITS = SweepThresholds(silent_seconds=600, crashed_seconds=60, pending_seconds=300, crashed_at_most_days=1)


def run(kind, seconds, name=None):
    return FlowRun(
        flow_id=uuid4(), name="a run", state=State(type=kind, name=name, timestamp=NOW - timedelta(seconds=seconds))
    )


@pytest.mark.parametrize(
    ("kind", "seconds", "dead"),
    [
        (StateType.CRASHED, 59, False),
        (StateType.CRASHED, 60, True),
        (StateType.CRASHED, 2 * 86400, False),  # history
        (StateType.PENDING, 299, False),
        (StateType.PENDING, 300, True),
        (StateType.RUNNING, 599, False),
        (StateType.RUNNING, 600, True),
        *((kind, 10**6, False) for kind in StateType if kind.name not in ("CRASHED", "PENDING", "RUNNING")),
    ],
)
def test_a_run_is_dead_by_its_state_and_how_long_it_is_in_it(kind, seconds, dead):
    assert (why_dead(run(kind, seconds), None, LIMITS, NOW) is not None) == dead


def test_a_running_run_is_as_dead_as_its_last_heartbeat_is_old():
    old = run(StateType.RUNNING, 5000)
    assert why_dead(old, NOW - timedelta(seconds=599), LIMITS, NOW) is None
    assert why_dead(old, NOW - timedelta(seconds=600), LIMITS, NOW) == "running, and silent for 600 s"


def test_an_event_outside_a_flow_run_starts_no_server_and_is_dropped(monkeypatch):
    monkeypatch.setattr(events, "emit_event", lambda *_, **__: pytest.fail("Prefect was asked to send"))
    raise_event(EventName.FINISHED, TrustDomain())


def test_whatever_sending_an_event_fails_with_stays_here(monkeypatch, caplog):
    def broken(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(events, "emit_event", broken)
    monkeypatch.setattr(events.FlowRunContext, "get", classmethod(lambda cls: object()))
    raise_event(EventName.FAILED, TrustDomain(name="prod-eu"), "r-1", {"message": "x"})


def test_an_event_names_domain_rotation_and_run_and_its_texts_are_bounded(monkeypatch):
    sent = {}
    monkeypatch.setattr(events, "emit_event", lambda event, **more: sent.update(event=event, **more))
    monkeypatch.setattr(events.FlowRunContext, "get", classmethod(lambda cls: object()))
    about = uuid4()
    raise_event(
        EventName.STRAGGLER, TrustDomain(name="prod-eu"), "r-1",
        {"message": "x" * 10_000, "at": NOW, "waiting_for": ("a", "b" * 10_000)}, run=(about, "prod-eu: trust"),
    )  # fmt: skip
    assert sent["event"] == "capstan.straggler"
    assert sent["resource"]["prefect.resource.id"] == "capstan.domain.prod-eu"
    assert sent["related"][0]["prefect.resource.id"] == f"prefect.flow-run.{about}"
    assert (sent["payload"]["domain"], sent["payload"]["rotation"]) == ("prod-eu", "r-1")
    assert len(sent["payload"]["message"]) == len(sent["payload"]["waiting_for"][1]) == MAX_TEXT
