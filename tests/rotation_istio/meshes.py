"""Istio labs for whole rotations, and what must be true when one has ended, by the lab's own word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.rotation.points import listed
from tests.rotation.rotations import Rotations, wait_for

if TYPE_CHECKING:
    from tests.rotation.runner import Ran, Runner
    from tests.support.labs import RunningLab

# Leaves live long enough that an istiod that is slow on a busy machine costs nobody its leaf.
LEAF_SECONDS = 30
SMALL = ("--size", "small", "--leaf-seconds", str(LEAF_SECONDS), "--probes-per-second", "30")

# Renewals of the lock and looks come as often as the clock has them come. A look asks for tokens, which nobody stores.
BY_THE_CLOCK = ("lock renewed", "account look", "account handshakes", "/token, ")


def require_listed_points(ran: Ran, name: str) -> None:
    """A clean run passed exactly the points of a list, each once: what the kill chains kill at is all there is.

    Args:
        name: Of the list, in this folder.
    """
    points = listed(Path(__file__).with_name(name))
    passed = [
        point
        for point in ran.passed
        if not any(word in point for word in BY_THE_CLOCK) and not ("PATCH" in point and "#" in point)
    ]
    not_met = [point for point in points if point not in passed]
    not_listed = [point for point in passed if point not in points]
    assert not not_met + not_listed, f"not met: {not_met}; not listed: {not_listed}"
    assert len(passed) == len(points)


class Turned(Rotations):
    """A rotation of an Istio's CA.

    Args:
        system: `istio` or `aks-istio`.
        more: Further options of every command.
    """

    def __init__(
        self, lab: RunningLab, runner: Runner, home: Path, rotation: str, *, system: str, more: tuple[str, ...] = ()
    ) -> None:
        super().__init__(lab, runner, home, rotation, domain=system, options=("--system", system, *more))
        self.issuers: set[str] = set()
        self.minted = 0

    def begin(self) -> None:
        """Forget what Capstan did here before, and count from now on."""
        self.forget_earlier()
        self.issuers = self.live_issuers()
        self.minted = len(self.minted_roots())

    def live_issuers(self) -> set[str]:
        """The CAs that signed the leaves of the live proxies, by the lab's own word."""
        return {pod["leaf"]["issuer"] for pod in self.lab.pods() if not pod["stopping"]}

    def require_same_roots_and_another_issuer(self, ran: Ran) -> None:
        """The intermediate alone was turned, for every proxy, and nothing was dropped."""
        assert ran.code == 0, f"exit code {ran.code}: {ran.stderr[-3000:]}"
        assert ran.data["completed"] is True
        assert self.live_roots() == self.old
        wait_for(lambda: not self.live_issuers() & self.issuers, "leaves of the old intermediate to go", 5.0)
        assert len(self.live_issuers()) == 1
        assert len(self.minted_roots()) == self.minted, "a root was minted for an intermediate"
        record = self.record()
        assert (record["rotation_id"], record["outcome"]) == (self.rotation, "completed")
        account = self.home / "evidence" / f"{self.domain}-{self.rotation}.jsonl"
        entries = [json.loads(line) for line in account.read_text().splitlines()]
        assert [entry["body"]["gate"] for entry in entries if entry["kind"] == "approval"] == ["issue"]
        self.require_no_failure()

    def secret(self, name: str, namespace: str = "istio-system") -> dict[str, Any]:
        """A Secret, as the lab's API server has it."""
        found: dict[str, Any] = self.lab.call("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")
        return found
