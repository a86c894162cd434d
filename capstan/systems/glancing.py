"""Looks between two looks that count.

A gate is watched for hours while thousands of proxies renew one after the other. An adapter may then read again only
what can have changed since it was read, and take the rest as it was: such a look tells how far things are, and nothing
is decided by it. What opens a gate, or shuts it for good, is a look in which everybody was read.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

Seen = TypeVar("Seen")


@runtime_checkable
class Glances(Protocol):
    """An adapter that can do with less than a whole look."""

    @property
    def from_memory(self) -> int:
        """How many peers of the last `observe` were taken from memory."""

    def glancing(self) -> AbstractContextManager[None]:
        """Within it, `observe` may take from memory what cannot have changed since it was read."""


def glance(systems: Iterable[object], observe: Callable[[], Seen]) -> Seen:
    """Observe once, glancing at those systems that can."""
    with ExitStack() as stack:
        for system in systems:
            if isinstance(system, Glances):
                stack.enter_context(system.glancing())
        return observe()


def everybody_read(systems: Iterable[object]) -> bool:
    """Whether the last observation of these was a look that counts."""
    return not any(isinstance(system, Glances) and system.from_memory for system in systems)
