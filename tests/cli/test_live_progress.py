"""What a person watches while a rotation runs: which phases come, who is waited for, since when and until when."""

from __future__ import annotations

import io
import logging
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from capstan.cli.entry_points import What, phases_of
from capstan.cli.live import TerminalWatcher
from capstan.progress import LogWatcher
from flows.watching import Bar, PrefectWatcher

NOON = datetime(2027, 3, 1, 12, tzinfo=UTC)


class Clock:
    """Both clocks of a display, moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watcher(clock: Clock, what: What = What.ROOT) -> TerminalWatcher:
    return TerminalWatcher("rotation of trust domain mesh", phases=phases_of(what), clock=clock, now=clock.now)


def shown(watched: TerminalWatcher, width: int = 100) -> list[str]:
    """The lines a terminal of this width has."""
    screen = io.StringIO()
    Console(file=screen, width=width, highlight=False).print(watched.frame())
    return [line.rstrip() for line in screen.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("what", "phases"),
    [
        (What.ROOT, ["prepare", "trust", "issue", "distrust"]),
        (What.WEBHOOKS, ["prepare", "trust", "issue", "distrust"]),
        (What.ISSUER, ["prepare", "issue"]),
        (What.EXPIRED, ["prepare", "issue"]),
        (What.RE_DATE, ["prepare", "trust"]),
    ],
)
def test_only_phases_that_will_come_are_announced(clock: Clock, what: What, phases: list[str]) -> None:
    assert [line.split()[-1] for line in shown(watcher(clock, what))[1:]] == phases


def test_a_phase_that_nobody_announced_is_shown_once_it_begins(clock: Clock) -> None:
    watched = TerminalWatcher("roll-back of trust domain mesh", phases=(), clock=clock, now=clock.now)
    assert len(shown(watched)) == 1
    watched.phase("distrust")
    assert [line.split()[1] for line in shown(watched)[1:]] == ["distrust"]


def test_a_wait_says_for_whom_since_when_and_until_when(clock: Clock) -> None:
    watched = watcher(clock)
    watched.phase("issue")
    watched.step("gate before distrust")
    watched.count(7, 12, [f"cluster/shop/web-{n}: presents a leaf of the old issuer" for n in range(5)])
    watched.until(NOON + timedelta(hours=5, minutes=3))
    clock.seconds = 125.0
    lines = shown(watched)
    step = next(number for number, line in enumerate(lines) if "gate before distrust" in line)
    assert lines[step].endswith("for 2 min")
    assert "7/12 until 2027-03-01 17:03:00 UTC, 5 h 00 min left" in lines[step + 1]
    assert lines[step + 2].strip() == "waits for cluster/shop/web-0: presents a leaf of the old issuer"
    assert lines[step + 5].strip() == "and for 2 more (capstan status)"
    watched.count(12, 12)
    assert "until" not in "\n".join(shown(watched))


def test_a_step_that_follows_has_no_bound_of_the_one_before(clock: Clock) -> None:
    watched = watcher(clock)
    watched.phase("trust")
    watched.step("restart workloads", "cluster")
    watched.count(1, 2, ["deployment/web -n shop"])
    watched.until(NOON + timedelta(minutes=30))
    watched.step("gate before issue")
    watched.count(1, 2, ["cluster/shop/web-0"])
    assert "until" not in "\n".join(shown(watched))


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_broken_or_wider_than_100_columns_whatever_the_names(clock: Clock, width: int) -> None:
    watched = watcher(clock)
    watched.phase("trust")
    watched.step("mint", "new root and 3 issuer(s) into local:/" + "very-long-directory/" * 20)
    watched.count(0, 3, ["cluster/namespace/" + "pod-" * 60] * 9)
    watched.until(NOON + timedelta(days=1))
    clock.seconds = 4000.0
    lines = shown(watched, width)
    assert max(map(len, lines)) <= min(width, 100)
    assert len(lines) == 1 + 4 + 1 + 1 + 3 + 1


def test_plain_lines_say_a_bound_once_and_again_only_when_it_has_moved(caplog: pytest.LogCaptureFixture) -> None:
    watched = LogWatcher(logging.getLogger("plain"))
    with caplog.at_level(logging.INFO):
        watched.step("gate before issue")
        for seconds in (0, 10, 50, 100):
            watched.until(NOON + timedelta(seconds=seconds))
    told = [line.strip() for line in caplog.messages if "until" in line]
    assert told == ["waits until 2027-03-01 12:00:00 UTC at the latest",
                    "waits until 2027-03-01 12:01:40 UTC at the latest"]  # fmt: skip


def test_a_bar_on_the_runs_page_says_until_when_while_somebody_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    line = "At the latest until 2027-03-01 12:00:00 UTC"
    assert line in Bar("issue", "gate before distrust", "", 1, 2, ("p",), NOON).text()
    assert line not in Bar("issue", "gate before distrust", "", 2, 2, (), NOON).text()
    watched = PrefectWatcher()
    with caplog.at_level(logging.INFO):
        watched.step("gate before distrust")
        watched.until(NOON)
        watched.until(NOON)
    assert caplog.messages.count("gate before distrust: waits until 2027-03-01 12:00:00 UTC at the latest") == 1
