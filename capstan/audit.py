"""Audit events of our phases and steps, through Python's own audit hooks (PEP 578).

Every step of a rotation raises `capstan.step` with (name, "begin" | "end"), every phase `capstan.phase`. Security
tooling may listen with `sys.addaudithook`; so do the tests that kill the process at each step boundary. Nothing in
Capstan listens.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def audited_step(name: str) -> Iterator[None]:
    """Raise the audit events around the enclosed step; `end` only if it succeeded."""
    sys.audit("capstan.step", name, "begin")
    yield
    sys.audit("capstan.step", name, "end")


@contextmanager
def audited_phase(name: str) -> Iterator[None]:
    """The same around a phase, as `capstan.phase`."""
    sys.audit("capstan.phase", name, "begin")
    yield
    sys.audit("capstan.phase", name, "end")
