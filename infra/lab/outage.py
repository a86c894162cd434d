"""The API server of the lab dies on demand, as kube-apiserver dies of SIGKILL, and comes back over the same state."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

from infra.lab.linkerd import httpd

if TYPE_CHECKING:
    from infra.lab.apiserver import ApiServer

LONGEST = 3600.0
# The answer to whoever asked goes out before; in case they asked through a connection that dies.
_FIRST_SECONDS = 0.05


class Outages:
    """`POST CONTROL/outage` with `{"seconds": 8}`: down for so long, beginning at once; 0 only resets what is open.

    The answer is 202 with the number of outages so far; 409 while one is under way, or when the API server is not the
    lab's own; 400 for a body that says no number of seconds.
    """

    def __init__(self, api: ApiServer | None) -> None:
        self._api = api
        self._task: asyncio.Task[None] | None = None
        self.count = 0

    def begin(self, body: bytes) -> httpd.Response:
        """Answer the request, and begin."""
        try:
            seconds = float(json.loads(body)["seconds"])
        except (ValueError, KeyError, TypeError):
            return httpd.Response.text('expected {"seconds": NUMBER}\n', 400)
        if not 0 <= seconds <= LONGEST:
            return httpd.Response.text(f"expected 0 to {LONGEST:g} seconds\n", 400)
        if self._api is None:
            return httpd.Response.text("this lab runs on an API server of somebody else\n", 409)
        if self._task is not None and not self._task.done():
            return httpd.Response.text("an outage is under way\n", 409)
        self.count += 1
        self._task = asyncio.create_task(self._run(self._api, seconds), name="outage")
        return httpd.Response.json({"outages": self.count, "seconds": seconds}, 202)

    async def stop(self) -> None:
        """Give up what is under way; the API server may then be down."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @staticmethod
    async def _run(api: ApiServer, seconds: float) -> None:
        await asyncio.sleep(_FIRST_SECONDS)
        await api.kill()
        await asyncio.sleep(seconds)
        try:
            await api.start()
        except (OSError, TimeoutError) as error:
            sys.stderr.write(f"lab: the API server did not come back: {type(error).__name__}: {error}\n")
            raise
