"""A container instance's log: a bounded buffer of timestamped lines that readers can follow."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LINES_KEPT = 5000  # a real kubelet rotates at 10 MiB; a lab with thousands of pods has to be thriftier


@dataclass(frozen=True)
class Line:
    """One line of output, without its newline."""

    number: int
    time: datetime
    text: str

    def render(self, timestamps: bool) -> str:
        """The line as the log endpoint sends it: optionally after an RFC 3339 time, always ended by a newline."""
        return f"{self.time:%Y-%m-%dT%H:%M:%S.%f}000Z {self.text}\n" if timestamps else f"{self.text}\n"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ContainerLog:
    """Lines of one container instance, from its start to its exit (`close`)."""

    def __init__(self, keep: int = LINES_KEPT, now: Callable[[], datetime] = _utc_now) -> None:
        self._lines: deque[Line] = deque(maxlen=keep)
        self._written = 0
        self._now = now
        self._news = asyncio.Event()
        self.closed = False

    def write(self, text: str) -> None:
        """Append; text with newlines becomes several lines."""
        time = self._now()
        for part in text.split("\n") if "\n" in text else (text,):
            self._lines.append(Line(self._written, time, part))
            self._written += 1
        self._wake()

    def close(self) -> None:
        """The instance has exited: followers end after the last line."""
        self.closed = True
        self._wake()

    def lines(self, *, tail: int | None = None, since: datetime | None = None) -> list[Line]:
        """Lines kept so far, oldest first; `since` is applied before `tail`, as a real kubelet does."""
        chosen = [line for line in self._lines if since is None or line.time >= since]
        return chosen if tail is None else chosen[max(len(chosen) - tail, 0) :]

    async def follow(self, *, tail: int | None = None, since: datetime | None = None) -> AsyncIterator[Line]:
        """As `lines`, then every new line until the instance exits."""
        following = 0
        chosen = self.lines(tail=tail, since=since)
        following = self._written
        for line in chosen:
            yield line
        while True:
            news = self._news
            fresh = [line for line in self._lines if line.number >= following]
            following = self._written
            for line in fresh:
                yield line
            if following == self._written:
                if self.closed:
                    return
                await news.wait()

    def _wake(self) -> None:
        # One event per generation: whoever waits holds the old one, whoever comes later the new one.
        self._news.set()
        self._news = asyncio.Event()
