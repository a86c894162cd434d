"""Progress of long work, reported as it happens to whoever watches: a terminal, a log, or nobody.

The domain reports facts (`phase`, `step`, `count`); how they look is the watcher's business. The watcher is kept in a
context variable, so it follows calls and Prefect's task engine without being passed through every signature.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_log = logging.getLogger("capstan")


class Watcher(Protocol):
    """What can be told about a rotation while it runs."""

    def phase(self, name: str) -> None:
        """A phase begins."""

    def step(self, name: str, detail: str = "") -> None:
        """A step of the phase begins."""

    def count(self, done: int, total: int, waiting_for: Sequence[str] = ()) -> None:
        """So many of all have arrived; these have not (may be cut short)."""

    def note(self, text: str) -> None:
        """Something a person reading along wants to know."""


class LogWatcher:
    """Plain lines through `logging`: for workers, pipes and CI. Counts are reported when they change."""

    def __init__(self, logger: logging.Logger = _log) -> None:
        self._log = logger
        self._last: tuple[int, int] | None = None

    def phase(self, name: str) -> None:
        self._last = None
        self._log.info("phase %s", name)

    def step(self, name: str, detail: str = "") -> None:
        self._last = None
        self._log.info("  %s%s", name, f": {detail}" if detail else "")

    def count(self, done: int, total: int, waiting_for: Sequence[str] = ()) -> None:
        if (done, total) == self._last:
            return
        self._last = (done, total)
        names = ", ".join(waiting_for[:3]) + (f" and {len(waiting_for) - 3} more" if len(waiting_for) > 3 else "")
        self._log.info("    %d/%d%s", done, total, f", waiting for {names}" if names else "")

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
