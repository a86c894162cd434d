"""What a person watches while a rotation runs: the phases, who is done, and (in a lab) every handshake.

On a terminal one block is redrawn in place; elsewhere the same facts are plain lines on stderr.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from capstan.cli.outages import span
from capstan.cli.output import stderr
from capstan.progress import LogWatcher, Watcher, watched_by

PHASES = ("prepare", "trust", "issue", "distrust")
_NAMED = 3  # of those waited for
_WORTH_SAYING = 5.0  # seconds of a step
_WIDTH = 100  # of a line; on a wider terminal it is not easier to read


@dataclass(frozen=True, slots=True)
class Handshakes:
    """What the lab's prober has counted so far."""

    attempted: int
    failed: int


class TerminalWatcher:
    """Redraws one block: a line a phase, the running step with its count, and the handshakes.

    Args:
        title: First line.
        handshakes: Called for each frame; None when nobody counts handshakes here.
        phases: Those that will come, in their order; others are shown once they begin.
        clock: Seconds, of any beginning.
        now: The time of day, aware.
    """

    def __init__(
        self,
        title: str,
        handshakes: Callable[[], Handshakes | None] | None = None,
        phases: Sequence[str] = PHASES,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._title = title
        self._handshakes = handshakes
        self._phases = tuple(phases)
        self._clock, self._now = clock, now
        self._lock = threading.Lock()
        self._began: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._current = ""
        self._step = ""
        self._stepped = clock()
        self._count: tuple[int, int, tuple[str, ...]] | None = None
        self._until: datetime | None = None
        self._notes: list[str] = []
        self._live = Live(console=stderr(), get_renderable=self.frame, refresh_per_second=8, transient=False)

    def phase(self, name: str) -> None:
        with self._lock:
            now = self._clock()
            if self._current:
                self._ended[self._current] = now
            self._current = name
            self._began.setdefault(name, now)
            self._ended.pop(name, None)
            self._step, self._count, self._until = "", None, None

    def step(self, name: str, detail: str = "") -> None:
        with self._lock:
            self._step = f"{name}: {detail}" if detail else name
            self._stepped = self._clock()
            self._count = self._until = None

    def count(self, done: int, total: int, waiting_for: Sequence[str] = ()) -> None:
        with self._lock:
            self._count = (done, total, tuple(waiting_for))

    def until(self, at: datetime) -> None:
        with self._lock:
            self._until = at

    def note(self, text: str) -> None:
        with self._lock:
            self._notes = [*self._notes[-2:], text]

    def finish(self) -> None:
        """The rotation is over; the running phase is marked done."""
        with self._lock:
            if self._current:
                self._ended[self._current] = self._clock()
            self._current, self._step, self._count, self._until = "", "", None, None

    @contextmanager
    def shown(self) -> Iterator[TerminalWatcher]:
        """Draw while the enclosed block runs."""
        global _drawing  # noqa: PLW0603  # one terminal, one block
        with self._live:
            _drawing = self._live
            try:
                yield self
            finally:
                _drawing = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop drawing while a person is asked something."""
        self._live.stop()
        try:
            yield
        finally:
            self._live.start(refresh=True)

    def frame(self) -> RenderableType:
        """What is drawn now."""
        # Asked before the lock is taken: whoever reports must not wait for an answer that may be late.
        seen = self._handshakes() if self._handshakes else None
        with self._lock:
            now = self._clock()
            lines: list[RenderableType] = [Text(self._title, style="bold")]
            if not self._current and self._step:  # before the first phase
                lines.append(self._step_line("  ", now))
            for name in (*self._phases, *(begun for begun in self._began if begun not in self._phases)):
                lines.append(self._phase_line(name, now))
                if name == self._current and self._step:
                    lines.append(self._step_line("      ", now))
                    if self._count and self._count[1]:
                        lines.extend(self._count_lines(*self._count))
            if seen:
                style = "bold red" if seen.failed else "bold green"
                lines.append(
                    Text.assemble(
                        "  handshakes ", f"{seen.attempted:,} new mTLS connections, ", (f"{seen.failed} failed", style)
                    )
                )
            lines.extend(Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in self._notes)
            return Constrain(Group(*lines), _WIDTH)

    def _phase_line(self, name: str, now: float) -> Text:
        if name not in self._began:
            return Text(f"  ·  {name}", style="dim")
        end = self._ended.get(name)
        seconds = (end or now) - self._began[name]
        mark, style = ("✓", "green") if end else ("▶", "bold cyan")
        return Text.assemble("  ", (mark, style), f"  {name:<9}", (f"{seconds:6.1f} s", "dim"))

    def _step_line(self, indent: str, now: float) -> RenderableType:
        """The step, and how long it has lasted."""
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_column(no_wrap=True, style="dim")
        line.add_row(Text(f"{indent}{self._step}", style="cyan"), _since(now - self._stepped))
        return line

    def _count_lines(self, done: int, total: int, waiting_for: tuple[str, ...]) -> Iterator[RenderableType]:
        """How many have arrived, until when the others are waited for, and the first of them with what they lack."""
        grid = Table.grid(padding=(0, 1))
        until = ""
        if self._until is not None and done < total:
            left = max(0.0, (self._until - self._now()).total_seconds())
            until = f"until {self._until:%Y-%m-%d %H:%M:%S} UTC, {span(left)} left"
        line = Text(until, overflow="ellipsis", no_wrap=True)
        grid.add_row("     ", ProgressBar(total=total, completed=done, width=20), f"{done}/{total}", line)
        yield grid
        for name in waiting_for[:_NAMED]:
            yield Text(f"      waits for {name}", style="dim", overflow="ellipsis", no_wrap=True)
        if len(waiting_for) > _NAMED:
            yield Text(f"      and for {len(waiting_for) - _NAMED} more (capstan status)", style="dim")


def _since(seconds: float) -> str:
    return f"for {span(seconds)}" if seconds >= _WORTH_SAYING else ""


_drawing: Live | None = None


def stop_drawing() -> None:
    """Leave the terminal to whoever has the last word."""
    if _drawing is not None:
        _drawing.stop()


@contextmanager
def watching(
    title: str, handshakes: Callable[[], Handshakes | None] | None = None, phases: Sequence[str] = PHASES
) -> Iterator[Watcher]:
    """Show the enclosed rotation to whoever is there: a live block on a terminal, plain lines elsewhere.

    Args:
        title: First line.
        handshakes: Tells what was counted; None where nobody counts.
        phases: Those that will come.
    """
    if sys.stderr.isatty():
        terminal = TerminalWatcher(title, handshakes, phases)
        with terminal.shown(), watched_by(terminal):
            yield terminal
            terminal.finish()
        return
    logger = logging.getLogger("capstan.progress")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    logger.info(title)
    with watched_by(_PlainWatcher(logger, handshakes)) as plain:
        yield plain
        plain.phase("over")


class _PlainWatcher(LogWatcher):
    """Plain lines, with the count of handshakes between the phases where somebody counts them."""

    def __init__(self, logger: logging.Logger, handshakes: Callable[[], Handshakes | None] | None) -> None:
        super().__init__(logger)
        self._plain = logger
        self._handshakes = handshakes

    def phase(self, name: str) -> None:
        if self._handshakes and (seen := self._handshakes()):
            self._plain.info("  %s new mTLS connections so far, %s failed", f"{seen.attempted:,}", seen.failed)
        if name != "over":
            super().phase(name)
