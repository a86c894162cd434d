"""A trust domain on a lab, judged by the lab's own word: who holds what, what was dropped, what is on record."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, cast

from kubernetes.client import ApiException

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.labs import RunningLab

RECORDS = "/api/v1/namespaces/capstan-system"


class Judged:
    """What every test of a whole rotation asks of its lab.

    Attributes:
        domain: Name of the trust domain.
        old: The roots that were trusted before.
    """

    lab: RunningLab
    domain: str
    old: set[str]

    def forget_earlier(self) -> None:
        """Make the cluster one that Capstan never touched, and begin to count handshakes."""
        self.lab.clear_faults()
        if not self._absent(RECORDS):
            self.lab.call("DELETE", RECORDS)
        wait_for(lambda: self._absent(RECORDS), "the earlier records to go")
        assert self._absent(self._record), "a record outlived its namespace"
        self.old = self.live_roots()
        assert len(self.old) == 1, "the lab does not begin with one root"
        self.lab.reset_prober()

    def record(self) -> dict[str, Any]:
        """The rotation record, as the cluster has it."""
        return cast("dict[str, Any]", json.loads(self.lab.call("GET", self._record)["data"]["record.json"]))

    def live_roots(self) -> set[str]:
        """All roots in the memory of any proxy."""
        return {root for pod in self.lab.pods() for root in pod["roots"]}

    def require_every_proxy_holds(self, roots: set[str]) -> None:
        """Each proxy that is not about to go holds exactly these."""
        held = {f"{pod['namespace']}/{pod['pod']}": pod["roots"] for pod in self.lab.pods() if not pod["stopping"]}
        assert {frozenset(each) for each in held.values()} == {frozenset(roots)}, held

    def require_no_failure(self) -> None:
        """Nobody lost a connection; a rotation of the small lab makes hundreds."""
        counts = self.lab.prober()
        assert counts["attempted"] > 100
        assert counts["failed"] == 0, (counts["max_lag_seconds"], counts["failures"][:3])

    @property
    def _record(self) -> str:
        return f"{RECORDS}/configmaps/capstan-rotation-{self.domain}"

    def _absent(self, path: str) -> bool:
        try:
            self.lab.call("GET", path)
        except ApiException as error:
            if error.status != 404:
                raise
            return True
        return False


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Return when the condition holds.

    Raises:
        AssertionError: It does not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)
