"""What a rotation in Prefect reports while it runs: log lines of the run, and a bar for each step that counts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

from capstan.progress import NEWS, Watcher, watched_by
from flows.publishing import Publisher, published

# Names of those waited for that a bar lists; the log and the gate's error have the rest.
SHOWN = 8


class Follower(Protocol):
    """Who wants to know of each phase and step; must not raise."""

    def phase(self, name: str) -> None:
        """A phase begins."""

    def step(self) -> None:
        """A step of it begins."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One step that counts."""

    phase: str
    step: str
    detail: str
    done: int = 0
    total: int = 0
    waiting_for: tuple[str, ...] = ()
    until: datetime | None = None

    @property
    def name(self) -> str:
        """Names the bar within its run."""
        return " ".join(part for part in (self.phase, self.step, self.detail) if part)

    def percent(self) -> float:
        """0 to 100."""
        return 100.0 * self.done / self.total if self.total else 0.0

    def line(self) -> str:
        """For a log."""
        names = ", ".join(self.waiting_for[:3])
        more = f" and {len(self.waiting_for) - 3} more" if len(self.waiting_for) > 3 else ""
        return f"{self.step}: {self.done} of {self.total}" + (f", waiting for {names}{more}" if names else "")

    def text(self) -> str:
        """Markdown."""
        title = f"**{self.phase}: {self.step}**" + (f" ({self.detail})" if self.detail else "")
        lines = [f"{title}: {self.done} of {self.total}"]
        if self.until is not None and self.done < self.total:
            lines += ["", f"At the latest until {self.until:%Y-%m-%d %H:%M:%S} UTC"]
        if self.waiting_for:
            lines += ["", "Waiting for", "", *(f"- `{_plain(name)}`" for name in self.waiting_for[:SHOWN])]
        if len(self.waiting_for) > SHOWN:
            lines.append(f"- and {len(self.waiting_for) - SHOWN} more")
        return "\n".join(lines)


class PrefectWatcher:
    """Writes to the log of the task or flow run it is called in, and keeps one bar per step on the run's page.

    May be called from any thread.

    Args:
        publisher: Where the bars go; None: only lines.
    """

    def __init__(self, publisher: Publisher | None = None) -> None:
        self._publisher = publisher
        self._lock = threading.Lock()
        self._bar = Bar("begin", "", "")
        self._follower: Follower | None = None
        self._log: logging.Logger | logging.LoggerAdapter[logging.Logger] = get_logger("capstan")

    def followed_by(self, follower: Follower | None) -> None:
        """Tell somebody else too; None: nobody any more."""
        self._follower = follower

    def phase(self, name: str) -> None:
        with self._lock:
            self._bar = Bar(name, "", "")
        self._say(f"phase {name}")
        if self._follower is not None:
            self._follower.phase(name)

    def step(self, name: str, detail: str = "") -> None:
        with self._lock:
            self._bar = Bar(self._bar.phase, name, detail)
        self._say(f"{name}: {detail}" if detail else name)
        if self._follower is not None:
            self._follower.step()

    def count(self, done: int, total: int, waiting_for: Sequence[str] = ()) -> None:
        with self._lock:
            bar = replace(self._bar, done=done, total=total, waiting_for=tuple(waiting_for))
            if bar == self._bar:
                return
            counted = (bar.done, bar.total) != (self._bar.done, self._bar.total)
            self._bar = bar
        if counted:
            self._say(bar.line())
        self._show(bar)

    def until(self, at: datetime) -> None:
        with self._lock:
            before = self._bar.until
            if before == at:
                return
            bar = self._bar = replace(self._bar, until=at)
        if before is None or abs(at - before) > NEWS:
            self._say(f"{bar.step}: waits until {at:%Y-%m-%d %H:%M:%S} UTC at the latest")
        self._show(bar)

    def note(self, text: str) -> None:
        self._say(text)

    def _show(self, bar: Bar) -> None:
        if self._publisher is not None and bar.total:
            self._publisher.put(bar.name, lambda sender: sender.bar(bar.name, bar.percent(), bar.text()))

    def _say(self, text: str) -> None:
        """Into the log of the innermost run of the calling thread; a thread without one uses that of the last call."""
        with suppress(MissingContextError):
            self._log = get_run_logger()
        self._log.info("%s", text)


@contextmanager
def watched_in_prefect() -> Iterator[Watcher]:
    """Report the enclosed rotation to the flow run around it; also opens the publisher."""
    with published() as publisher, watched_by(PrefectWatcher(publisher)) as watcher:
        yield watcher


def _plain(text: str) -> str:
    return text.replace("`", "'")
