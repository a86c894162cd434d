"""What `capstan status` says of a rotation that no process works on just now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from capstan.cli.domain_view import whose
from capstan.cluster.record import Approval, Asked, Claim, RotationRecord

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
RUN = Claim(run="0d3f", name="prod: issue", url="https://prefect.example/runs/flow-run/0d3f", at=NOW)
ASKED = Asked(id="r1", digest="d", at=NOW, until=NOW + timedelta(days=7))


def record(**fields: object) -> RotationRecord:
    made = RotationRecord(rotation_id="r", domain="prod", system="linkerd", started=NOW)
    return made.model_copy(update=fields)


def test_a_rotation_on_a_terminal_belongs_to_no_run() -> None:
    assert whose(record(), NOW) == []


def test_the_run_it_belongs_to_is_named_with_its_page() -> None:
    (line,) = whose(record(claim=RUN), NOW)
    assert "'prod: issue'" in line
    assert RUN.url in line


def test_an_approval_that_is_waited_for_is_said_with_the_command_that_gives_it() -> None:
    line = whose(record(claim=RUN, asked={"issue": ASKED}), NOW)[-1]
    assert line == "issue waits for an approval until 2026-11-29 03:00 UTC: capstan approve 0d3f"


def test_an_approval_that_was_answered_or_has_run_out_is_not_waited_for() -> None:
    given = Approval(gate="issue", decision="approved", by="ada", at=NOW, digest="d", request="r1")
    assert whose(record(asked={"issue": ASKED}, approvals=(given,)), NOW) == []
    assert whose(record(asked={"issue": ASKED}), NOW + timedelta(days=8)) == []


def test_a_wait_without_a_process_says_until_when() -> None:
    (line,) = whose(record(deadlines={"turn 1, gate distrust": NOW + timedelta(hours=20)}), NOW)
    assert "until 2026-11-22 23:00:00 UTC" in line
    assert "gate distrust" in line
