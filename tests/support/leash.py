"""No process of a test outlives it: whatever carries its mark is killed when the process of the test is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from typing import Self

MARK = "CAPSTAN_TEST_MARK"


class Leash:
    """Context manager: every process started with `environment` (and its children) dies at its end, or with us."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {MARK: self.mark}

    def holds(self, environment: list[bytes]) -> bool:
        """Whether a process with this environment is ours."""
        return f"{MARK}={self.mark}".encode() in environment

    def __enter__(self) -> Self:
        # It reads the end of our pipe, which comes with our death too.
        without = {name: value for name, value in os.environ.items() if name != MARK}
        self._watcher = subprocess.Popen(
            [sys.executable, "-S", "-c", _WATCH, MARK, self.mark],
            stdin=subprocess.PIPE, env=without, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.communicate()
            self._watcher = None


# Runs on its own, so that it outlives whoever it watches.
_WATCH = """
import glob, os, signal, sys
sys.stdin.buffer.read()
mark = (sys.argv[1] + "=" + sys.argv[2]).encode()
for _ in range(20):
    found = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                if mark in file.read().split(b"\\0"):
                    found.append(int(path.split("/")[2]))
        except OSError:
            pass
    if not found:
        break
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
"""
