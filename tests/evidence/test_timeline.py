"""An account, read as a story and drawn: what is told, and that the picture can be read."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from capstan.cli import evidence as command
from capstan.errors import EvidenceTampered, InvalidInput
from capstan.evidence.chain import Entry
from capstan.evidence.story import Span, story
from capstan.evidence.timeline import CHARACTER, LEFT, WIDTH, draw

if TYPE_CHECKING:
    from pathlib import Path

BEGAN = datetime(2026, 11, 22, 2, 9, 3, tzinfo=UTC)
SVG = "{http://www.w3.org/2000/svg}"


def entries_of(*told: tuple[float, str, dict[str, Any]]) -> list[Entry]:
    """Entries at seconds after the beginning."""
    return [
        Entry(n, BEGAN + timedelta(seconds=second), "2026-11-22", kind, body, "", "")
        for n, (second, kind, body) in enumerate(told, 1)
    ]


def entered(phase: str, direction: str = "forward") -> dict[str, Any]:
    return {"phase": phase, "direction": direction}


def whole() -> list[Entry]:
    """A rotation whose run was suspended for an approval and came back."""
    owners = ["deployment/web -n shop", "deployment/linkerd-identity -n linkerd"]
    return entries_of(
        (0, "rotation-begun", {"domain": "prod-eu"}),
        (1, "phase-entered", entered("prepare")),
        (2, "look", {"peers": 12, "trust": 0, "present": 0, "only": 0}),
        (2, "handshakes", {"attempted": 100, "failed": 0}),
        (3, "phase-left", {"phase": "prepare"}),
        (3, "phase-entered", entered("trust")),
        (4, "approval-asked", {"gate": "trust", "request": "r1"}),
        (60, "rotation-resumed", {"domain": "prod-eu"}),
        (61, "phase-entered", entered("prepare")),
        (62, "phase-left", {"phase": "prepare"}),
        (62, "phase-entered", entered("trust")),
        (63, "approval", {"gate": "trust", "decision": "approved", "by": "Ada"}),
        (
            80,
            "restarted",
            {
                "cluster": "a",
                "phase": "trust",
                "what": "workloads",
                "owners": owners,
                "ended": {owners[0]: (BEGAN + timedelta(seconds=70)).isoformat()},
            },
        ),
        (81, "look", {"peers": 12, "trust": 12, "present": 0, "only": 0}),
        (82, "handshakes", {"attempted": 4100, "failed": 3}),
        (83, "phase-left", {"phase": "trust"}),
        (84, "finished", {"outcome": "completed"}),
    )


def seconds(*values: float) -> list[datetime]:
    return [BEGAN + timedelta(seconds=value) for value in values]


def test_a_phase_that_a_resumed_run_passes_again_is_told_once() -> None:
    told = story(whole())
    assert told.phases == (
        Span("prepare", *seconds(1, 3)),
        Span("trust", *seconds(3, 83)),
    )


def test_the_way_back_is_told_as_phases_of_its_own() -> None:
    entries = entries_of(
        (0, "phase-entered", entered("trust")),
        (5, "phase-entered", entered("distrust", "back")),
        (9, "phase-left", {"phase": "distrust"}),
        (10, "finished", {"outcome": "rolled back"}),
    )
    told = story(entries)
    assert [span.name for span in told.phases] == ["trust", "distrust back"]
    assert told.phases[0].end is None
    assert told.phases[1].end == seconds(9)[0]
    assert told.outcome == "rolled back"


def test_a_person_is_asked_until_something_is_decided_and_holding_decides_nothing() -> None:
    entries = entries_of(
        (1, "approval-asked", {"gate": "issue", "request": "r1"}),
        (5, "approval", {"gate": "issue", "decision": "held", "by": "Ada"}),
        (6, "approval-asked", {"gate": "issue", "request": "r2"}),
        (9, "approval", {"gate": "issue", "decision": "rejected", "by": "Ada"}),
    )
    assert story(entries).asking == (Span("issue", *seconds(1, 9)),)
    assert story(entries[:3]).asking == (Span("issue", seconds(1)[0], None),)


def test_no_process_worked_on_it_between_the_last_entry_and_going_on() -> None:
    assert story(whole()).away == (Span("no process", *seconds(4, 60)),)


def test_a_restart_is_told_when_it_ended_and_once_however_often_a_run_finds_it() -> None:
    entries = [
        *whole()[:-1],
        *entries_of((84, "restarted", dict(whole()[12].body)), (85, "finished", {"outcome": "x"})),
    ]
    told = story(entries)
    assert [(one.at, one.owner) for one in told.restarts] == [
        (seconds(70)[0], "deployment/web -n shop"),
        (seconds(80)[0], "deployment/linkerd-identity -n linkerd"),
    ]


def test_an_empty_account_has_no_story() -> None:
    with pytest.raises(InvalidInput, match="empty"):
        draw([])


def texts(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(f"{SVG}text"))


def said(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in texts(svg)]


def test_the_picture_names_domain_phases_decisions_and_handshakes() -> None:
    lines = said(draw(whole()))
    assert lines[0] == "prod-eu, rotation 2026-11-22: completed, 1 min 24 s"
    assert {"prepare", "trust", "trust approved by Ada", "restarts", "live proxies"} <= set(lines)
    assert "4,000 new connections counted from outside, 3 failed" in lines


def test_without_a_counter_the_picture_has_no_lane_for_handshakes() -> None:
    lines = said(draw([entry for entry in whole() if entry.kind != "handshakes"]))
    assert "handshakes" not in lines


def test_a_failed_handshake_is_red_and_none_is_not() -> None:
    body = draw(whole()).partition("</defs>")[2]
    assert body.count('class="bad"') == 2  # the number and the bar
    well = [entry for entry in whole() if entry.kind != "handshakes"]
    assert 'class="bad"' not in draw(well).partition("</defs>")[2]


def test_a_counter_that_was_set_to_zero_in_between_is_counted_on() -> None:
    entries = entries_of(
        (0, "handshakes", {"attempted": 900, "failed": 5}),
        (2, "handshakes", {"attempted": 10, "failed": 0}),
        (4, "handshakes", {"attempted": 40, "failed": 0}),
    )
    assert "40 new connections counted from outside, 0 failed" in said(draw(entries))


@pytest.mark.parametrize("days", [0.0002, 0.01, 0.3, 2, 30, 4000])
def test_times_on_the_axis_do_not_touch_however_long_it_took(days: float) -> None:
    entries = entries_of((0, "rotation-begun", {"domain": "d"}), (days * 86400, "finished", {"outcome": "completed"}))
    axis = [text for text in texts(draw(entries)) if text.get("class") == "m n"]
    assert 1 <= len(axis) <= 10
    spans = sorted(
        (float(text.attrib["x"]) - CHARACTER * len(text.text or "") / 2,
         float(text.attrib["x"]) + CHARACTER * len(text.text or "") / 2)
        for text in axis
    )  # fmt: skip
    assert all(left[1] < right[0] for left, right in itertools.pairwise(spans))
    assert spans[0][0] >= LEFT - 5
    assert spans[-1][1] <= WIDTH


def test_decisions_close_together_are_written_on_lines_of_their_own() -> None:
    entries = entries_of(
        (0, "rotation-begun", {"domain": "d"}),
        *((50 + n, "approval", {"gate": "trust", "decision": "held", "by": f"Approver {n}"}) for n in range(4)),
        (100, "finished", {"outcome": "completed"}),
    )
    rows = [float(text.attrib["y"]) for text in texts(draw(entries)) if "Approver" in (text.text or "")]
    assert len(set(rows)) == 4


def test_what_people_wrote_cannot_leave_its_text() -> None:
    entries = entries_of((0, "approval", {"gate": "trust", "decision": "approved", "by": "<script>&"}))
    svg = draw(entries)
    assert "<script>" not in svg
    assert any("<script>&" in line for line in said(svg))


def test_the_picture_fits_its_width() -> None:
    for x, width in re.findall(r'<rect class="\w+" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', draw(whole())):
        assert float(x) + float(width) <= WIDTH


def test_the_command_draws_a_verified_account_and_refuses_another(
    account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.timeline(account) == 0
    assert said(capsys.readouterr().out)[0].startswith("rotation r-1: done")
    account.write_text(account.read_text().replace("trust", "tryst"))
    with pytest.raises(EvidenceTampered):
        command.timeline(account)
