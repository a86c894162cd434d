"""Handshakes, as somebody outside counts them: sampled into the account while a rotation runs.

Capstan opens no connections of its own to judge itself by. Where something counts them (the lab's prober, a synthetic
probe, a proxy of a metrics system), `CAPSTAN_HANDSHAKES_URL` names an HTTP endpoint that answers with JSON holding
`attempted` and `failed`; the numbers go into the account and the timeline. They decide nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import httpx
from prefect.logging import get_logger
from pydantic import BaseModel, NonNegativeInt, ValidationError

from capstan.errors import CapstanError
from capstan.evidence.story import HANDSHAKES
from capstan.rotation import Rotation

VARIABLE = "CAPSTAN_HANDSHAKES_URL"
# Seconds between two samples at first; later they are this part of the time since the account began.
AT_LEAST = 2.0
_PARTS = 100
_TIMEOUT = 5.0

_log = get_logger("capstan")


class Handshakes(BaseModel):
    """What the endpoint answers; further fields are ignored."""

    attempted: NonNegativeInt
    failed: NonNegativeInt


def read(url: str) -> Handshakes | None:
    """Ask once; None where there is no answer that can be read."""
    try:
        return Handshakes.model_validate_json(httpx.get(url, timeout=_TIMEOUT).raise_for_status().content)
    except (httpx.HTTPError, httpx.InvalidURL, ValidationError) as error:
        _log.debug("no count of handshakes: %s", type(error).__name__)  # the address may carry credentials
        return None


@contextmanager
def counted(rotation: Rotation, source: Callable[[], Handshakes | None] | None = None) -> Iterator[None]:
    """Sample the counter into the account of the rotation while the enclosed block runs.

    Args:
        source: Where to ask; default: the endpoint that the environment names, or nobody.
    """
    if source is None:
        url = os.environ.get(VARIABLE, "")
        if not url:
            yield
            return
        source = partial(read, url)
    over = threading.Event()
    sampler = threading.Thread(target=_sample, args=(rotation, source, over), name="capstan-handshakes", daemon=True)
    sampler.start()
    try:
        yield
    finally:
        over.set()
        sampler.join(2 * _TIMEOUT)


def _sample(rotation: Rotation, source: Callable[[], Handshakes | None], over: threading.Event) -> None:
    while True:
        last = over.is_set()
        found = source()
        if found is not None:
            try:
                rotation.note(HANDSHAKES, found.model_dump())
            except CapstanError as error:
                _log.warning("handshakes were not noted: %s", error)
        if last:
            return
        began = rotation.evidence.entries[0].time
        over.wait(max(AT_LEAST, (rotation.now() - began).total_seconds() / _PARTS))
