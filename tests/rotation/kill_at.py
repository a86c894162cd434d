"""Runs the command line and kills this process (SIGKILL) at one point of it.

    python -m tests.rotation.kill_at step:mint:end -- rotate ...      at a step's audit event
    python -m tests.rotation.kill_at file:os.rename:3 -- rotate ...   at the third such write under $CAPSTAN_HOME

Listens to Python's audit events (PEP 578) from outside; the product has no hook for it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def listen(point: str) -> None:
    kind, name, which = point.split(":")
    home = os.environ["CAPSTAN_HOME"]
    seen = 0

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if kind == "step":
            if event == "capstan.step" and arguments == (name, which):
                os.kill(os.getpid(), signal.SIGKILL)
        elif event == name and arguments and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.fsdecode(arguments[0])
            writes = name != "open" or (len(arguments) > 2 and int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
            if writes and path.startswith(home) and "/prefect/" not in path:
                seen += 1
                if seen == int(which):
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(on_event)


if __name__ == "__main__":
    listen(sys.argv[1])
    assert sys.argv[2] == "--"
    sys.argv = ["capstan", *sys.argv[3:]]
    from capstan.cli import main

    main()
