"""Ctrl-C while a rotation runs here: let go of the locks, say how to go on, leave at once.

A rotation may be killed at any instruction, so leaving is always right; what must not happen is to hang. Unwinding
through Prefect would: its temporary server got the same Ctrl-C (one process group), and the engine waits for it.

SIGTERM is Prefect's: its engine takes that signal over while a flow runs, and ends the run as crashed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from capstan.cli import live
from capstan.cli.output import Exit, stderr
from capstan.rotation.opening import release_held_locks

# A Lease that cannot be given back in this time runs out by itself, or is taken over from the dead process.
_RELEASE_SECONDS = 3.0


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Handle SIGINT in the enclosed block. Only the main thread may enter it."""
    before = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(_number: int, _frame: FrameType | None) -> None:
    # In a thread of its own: the main thread may have been interrupted inside the connection pool's lock.
    letting_go = threading.Thread(target=release_held_locks, daemon=True)
    letting_go.start()
    letting_go.join(_RELEASE_SECONDS)
    live.stop_drawing()
    stderr().show_cursor(show=True)
    sys.stderr.write("\ninterrupted; nothing is lost: run the same command again and it goes on from here\n")
    sys.stderr.flush()
    os._exit(Exit.INTERRUPTED)
