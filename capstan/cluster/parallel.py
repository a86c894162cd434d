"""Bounded concurrency for calls that wait on the network."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")
R = TypeVar("R")


def map_bounded(function: Callable[[T], R], items: Iterable[T], *, limit: int) -> list[R]:
    """`[function(item) for item in items]` with at most `limit` calls under way at a time.

    The first exception (in the order of the items) is raised once all calls under way have ended; calls not yet begun
    are dropped.
    """
    work = list(items)
    if len(work) <= 1 or limit <= 1:
        return [function(item) for item in work]
    with ThreadPoolExecutor(max_workers=min(limit, len(work)), thread_name_prefix="capstan") as pool:
        futures = [pool.submit(function, item) for item in work]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
