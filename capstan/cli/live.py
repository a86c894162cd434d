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

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from capstan.cli.output import stderr
from capstan.progress import LogWatcher, Watcher, watched_by

PHASES = ("prepare", "trust", "issue", "distrust")


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
    """

    def __init__(self, title: str, handshakes: Callable[[], Handshakes | None] | None = None) -> None:
        self._title = title
        self._handshakes = handshakes
        self._lock = threading.Lock()
        self._began: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._current = ""
        self._step = ""
        self._count: tuple[int, int, tuple[str, ...]] | None = None
        self._notes: list[str] = []
        self._live = Live(console=stderr(), get_renderable=self._render, refresh_per_second=8, transient=False)

    def phase(self, name: str) -> None:
        with self._lock:
            now = time.monotonic()
            if self._current:
                self._ended[self._current] = now
            self._current = name
            self._began.setdefault(name, now)
            self._step, self._count = "", None

    def step(self, name: str, detail: str = "") -> None:
        with self._lock:
            self._step = f"{name}: {detail}" if detail else name
            self._count = None

    def count(self, done: int, total: int, waiting_for: Sequence[str] = ()) -> None:
        with self._lock:
            self._count = (done, total, tuple(waiting_for))

    def note(self, text: str) -> None:
        with self._lock:
            self._notes = [*self._notes[-2:], text]

    def finish(self) -> None:
        """The rotation is over; the running phase is marked done."""
        with self._lock:
            if self._current:
                self._ended[self._current] = time.monotonic()
            self._current, self._step, self._count = "", "", None

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

    def _render(self) -> RenderableType:
        with self._lock:
            now = time.monotonic()
            lines: list[RenderableType] = [Text(self._title, style="bold")]
            if not self._current and self._step:  # before the first phase
                lines.append(Text(f"  {self._step}", style="cyan", overflow="ellipsis", no_wrap=True))
            for name in PHASES:
                lines.append(self._phase_line(name, now))
                if name == self._current and self._step:
                    lines.append(Text(f"      {self._step}", style="cyan", overflow="ellipsis", no_wrap=True))
                    if self._count and self._count[1]:
                        lines.append(self._count_line(*self._count))
            if self._handshakes and (seen := self._handshakes()):
                style = "bold red" if seen.failed else "bold green"
                lines.append(
                    Text.assemble(
                        "  handshakes ", f"{seen.attempted:,} new mTLS connections, ", (f"{seen.failed} failed", style)
                    )
                )
            lines.extend(Text(f"  {note}", style="dim", overflow="ellipsis", no_wrap=True) for note in self._notes)
            return Group(*lines)

    def _phase_line(self, name: str, now: float) -> Text:
        if name not in self._began:
            return Text(f"  ·  {name}", style="dim")
        end = self._ended.get(name)
        seconds = (end or now) - self._began[name]
        mark, style = ("✓", "green") if end else ("▶", "bold cyan")
        return Text.assemble("  ", (mark, style), f"  {name:<9}", (f"{seconds:6.1f} s", "dim"))

    @staticmethod
    def _count_line(done: int, total: int, waiting_for: tuple[str, ...]) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        names = ", ".join(waiting_for[:2]) + (f" +{len(waiting_for) - 2}" if len(waiting_for) > 2 else "")
        grid.add_row(
            "     ", ProgressBar(total=total, completed=done, width=24), f"{done}/{total}", Text(names, style="dim")
        )
        return grid


_drawing: Live | None = None


def stop_drawing() -> None:
    """Leave the terminal to whoever has the last word."""
    if _drawing is not None:
        _drawing.stop()


@contextmanager
def watching(title: str, handshakes: Callable[[], Handshakes | None] | None = None) -> Iterator[Watcher]:
    """Show the enclosed rotation to whoever is there: a live block on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty():
        terminal = TerminalWatcher(title, handshakes)
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
