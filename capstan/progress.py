"""Progress of long work, reported as it happens to whoever watches: a terminal, a log, or nobody.

The domain reports facts (`phase`, `step`, `count`); how they look is the watcher's business. The watcher is kept in a
context variable, so it follows calls and Prefect's task engine without being passed through every signature.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

# A bound that follows the leaves that are seen moves by seconds at each look; by so much, it is worth a line.
NEWS: Final = timedelta(minutes=1)

_log = logging.getLogger("capstan")


class Watcher(Protocol):
    """What can be told about a rotation while it runs."""

    def phase(self, name: str) -> None:
        """A phase begins."""

    def step(self, name: str, detail: str = "") -> None:
        """A step of the phase begins."""

    def count(self, done: int, total: int, waiting_for: Sequence[str] = ()) -> None:
        """So many of all have arrived; these have not (may be cut short)."""

    def until(self, at: datetime) -> None:
        """What the step waits for is waited for until then at the latest, aware UTC; it may change as evidence does."""

    def note(self, text: str) -> None:
        """Something a person reading along wants to know."""


class LogWatcher:
    """Plain lines through `logging`: for workers, pipes and CI. Counts are reported when they change."""

    def __init__(self, logger: logging.Logger = _log) -> None:
        self._log = logger
        self._last: tuple[int, int] | None = None
        self._until: datetime | None = None

    def phase(self, name: str) -> None:
        self._last = self._until = None
        self._log.info("phase %s", name)

    def step(self, name: str, detail: str = "") -> None:
        self._last = self._until = None
        self._log.info("  %s%s", name, f": {detail}" if detail else "")

    def count(self, done: int, total: int, waiting_for: Sequence[str] = ()) -> None:
        if (done, total) == self._last:
            return
        self._last = (done, total)
        names = ", ".join(waiting_for[:3]) + (f" and {len(waiting_for) - 3} more" if len(waiting_for) > 3 else "")
        self._log.info("    %d/%d%s", done, total, f", waiting for {names}" if names else "")

    def until(self, at: datetime) -> None:
        if self._until is None or abs(at - self._until) > NEWS:
            self._until = at
            self._log.info("    waits until %s UTC at the latest", f"{at:%Y-%m-%d %H:%M:%S}")

    def note(self, text: str) -> None:
        self._log.info("    %s", text)


_watcher: ContextVar[Watcher] = ContextVar("capstan_watcher", default=LogWatcher())  # noqa: B039  # stateless enough


def watcher() -> Watcher:
    """Whoever watches in this context."""
    return _watcher.get()


@contextmanager
def watched_by(new: Watcher) -> Iterator[Watcher]:
    """Reports of the enclosed calls go to `new`."""
    token = _watcher.set(new)
    try:
        yield new
    finally:
        _watcher.reset(token)
