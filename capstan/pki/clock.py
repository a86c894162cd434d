"""Time as the pure core takes it: an argument, aware, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from capstan.errors import InvalidInput

SKEW: Final = timedelta(minutes=5, seconds=10)
"""How far two clocks may be apart: up to this Linkerd's check `no clock skew detected` calls a node healthy."""


def require_aware(moment: datetime) -> datetime:
    """Return `moment` in UTC.

    Raises:
        InvalidInput: It has no time zone; guessing one would shift every validity period.
    """
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise InvalidInput("a moment without a time zone", observed=moment.isoformat(), expected="an aware datetime")
    return moment.astimezone(UTC)
