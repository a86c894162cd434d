"""Every point of a rotation at which its process may die: the boundaries of its steps, and each of its writes.

`Watch` names the points as a process passes them, from outside: through Python's audit events (PEP 578), and through
`os.write` for the account. A name says phase, step and what happens there; it is the same in a run that goes on from
an earlier one, so that a point can be met there too. `points.txt` is the list, and a test holds a clean run against it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

LIST = Path(__file__).with_name("points.txt")

BEFORE, AFTER, TORN = "before its commit", "after its commit", "half-written"

_WRITES = re.compile(rb"(POST|PUT|PATCH|DELETE) (\S+) HTTP/")
_RANDOM = re.compile(r"[0-9a-f]{16,}")
_MINE = threading.local()


class Watch:
    """Names the points that this process passes.

    Args:
        home: The product's directory; writes below it count, but for Prefect's.
        die: Asked at each point; True means to die there.
        arm: Called with method and target of a request that must not survive its commit (`after`: nor be answered).
    """

    def __init__(
        self, home: str, die: Callable[[str], bool], arm: Callable[[str, str, bool], None] | None = None
    ) -> None:
        self._home = home
        self._die = die
        self._arm = arm
        self._phase = ""
        self._steps: list[str] = []
        self._finished = False
        self._counts: Counter[str] = Counter()
        self._write = os.write

    def start(self) -> None:
        """Begin to listen; there is no way to stop (PEP 578)."""
        sys.addaudithook(self._on_event)
        os.write = self._on_write  # type: ignore[assignment]  # the account writes through it; no audit event is raised

    # --- what happens -----------------------------------------------------------------------------------------------

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if getattr(_MINE, "busy", False):
            return
        _MINE.busy = True
        try:
            if event in ("capstan.step", "capstan.phase"):
                self._boundary(event, *arguments)
            elif event == "http.client.send":
                self._request(arguments[1])
            elif event in ("open", "os.rename", "os.link", "os.remove"):
                self._file(event.removeprefix("os."), arguments)
        finally:
            _MINE.busy = False

    def _boundary(self, event: str, name: str, which: str) -> None:
        if event == "capstan.phase":
            self._phase, self._steps = (name if which == "begin" else ""), []
            return
        if which == "begin":
            del self._steps[self._steps.index(name) if name in self._steps else len(self._steps) :]
            self._steps.append(name)
            self._passed(which)
            return
        self._passed(which)
        self._steps.pop()
        self._finished |= name == "finish"

    def _request(self, data: Any) -> None:
        match = _WRITES.match(data) if isinstance(data, bytes) else None
        if match is None:
            return
        method, target = match[1].decode(), match[2].decode()
        path = target.partition("?")[0]
        if "dryRun" in target or path.endswith("reviews"):  # questions, stored nowhere
            return
        name = f"{method} {path}"
        if "/leases" in path:
            # The lock is renewed by the clock, whatever step is under way.
            if not self._counts["lease"]:
                name = f"lock taken: {method}"
            else:
                name = "lock given back" if self._finished else "lock renewed"
            self._counts["lease"] += 1
        for suffix in (BEFORE, AFTER):
            if self._die(self._named(f"{name}, {suffix}", anywhere=name.startswith("lock"))) and self._arm:
                self._arm(method, target, suffix == AFTER)
                return

    def _file(self, what: str, arguments: tuple[Any, ...]) -> None:
        if not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.fsdecode(arguments[0])
        if what == "open" and not int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        if path.startswith(self._home) and not path.endswith(("/lock", ".jsonl")) and "/prefect/" not in path:
            self._passed(f"{what} {_RANDOM.sub('*', path[len(self._home) + 1 :])}")

    def _on_write(self, descriptor: int, data: Any) -> int:
        if not getattr(_MINE, "busy", False) and self._is_account(descriptor):
            kind = json.loads(bytes(data))["kind"]
            # A run that goes on says so instead of "begun", at the same place.
            kind = kind.replace("rotation-resumed", "rotation-begun")
            if self._die(self._named(f"account {kind}, {TORN}")):
                self._write(descriptor, data[: len(data) // 2])
                die_now()
        return self._write(descriptor, data)

    def _is_account(self, descriptor: int) -> bool:
        try:
            path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        except OSError:
            return False
        return path.startswith(self._home) and path.endswith(".jsonl")

    # --- how it is called -------------------------------------------------------------------------------------------

    def _passed(self, what: str) -> None:
        if self._die(self._named(what)):
            die_now()

    def _named(self, what: str, *, anywhere: bool = False) -> str:
        name = what if anywhere else " > ".join((*filter(None, [self._phase]), *self._steps, what))
        self._counts[name] += 1
        return name if self._counts[name] == 1 else f"{name} #{self._counts[name]}"


def die_now() -> None:
    """SIGKILL, to ourselves."""
    os.kill(os.getpid(), signal.SIGKILL)


def listed(file: Path = LIST) -> list[str]:
    """All points, in the order in which a rotation passes them."""
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]


def chains(
    points: Sequence[str], count: int, zones: Callable[[Sequence[str]], Iterable[str]] | None = None
) -> list[list[str]]:
    """Share the points out among rotations, each of which dies at its points in order and is run again each time.

    Once all workloads are restarted, a phase is done and a later run passes over it; so a rotation can die only once
    between the first of these restarts and the end of the phase. Elsewhere the later points are met again.

    Args:
        zones: For each point, the stretch of which a rotation may die only at one; Linkerd's by default.

    Raises:
        ValueError: There are more such points in a row than rotations.
    """
    shared: list[list[str]] = [[] for _ in range(count)]
    used: list[set[str]] = [set() for _ in range(count)]
    for point, zone in zip(points, (zones or _zones)(points), strict=True):
        free = [index for index in range(count) if not zone or zone not in used[index]]
        if not free:
            raise ValueError(f"{zone} has more than {count} points")
        index = min(free, key=lambda i: len(shared[i]))
        shared[index].append(point)
        used[index].add(zone)
    return shared


def _zones(points: Sequence[str]) -> Iterator[str]:
    """For each point, the stretch of which a rotation may die only at one; empty where there is no such limit."""
    stretch = ""
    for point in points:
        phase = point.partition(" > ")[0]
        if "restart-data-plane/" in point and not point.endswith("begin"):
            stretch = phase
        elif stretch and (phase != stretch or "gate/probe" in point):
            stretch = ""
        yield stretch
