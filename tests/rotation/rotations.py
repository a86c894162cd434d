"""A rotation on a lab, and what must be true when it has ended, by the lab's own word."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from kubernetes.client import ApiException

from capstan.vaults.base import ROTATION_TAG
from capstan.vaults.opening import open_vault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capstan.vaults.base import Reference
    from tests.rotation.runner import Ran, Runner
    from tests.support.labs import RunningLab

RECORDS = "/api/v1/namespaces/capstan-system"
ROOT = "capstan-linkerd-root"


class Rotations:
    """One rotation: run, run again, judged."""

    def __init__(self, lab: RunningLab, runner: Runner, home: Path, rotation: str) -> None:
        self.lab = lab
        self.runner = runner
        self.home = home
        self.rotation = rotation
        self.old: set[str] = set()

    def forget_earlier(self) -> None:
        """Make the cluster one that Capstan never touched, and begin to count handshakes."""
        self.lab.clear_faults()
        if not self._absent(RECORDS):
            self.lab.call("DELETE", RECORDS)
        wait_for(lambda: self._absent(RECORDS), "the earlier records to go")
        self.old = {root for pod in self.lab.pods() for root in pod["roots"]}
        assert len(self.old) == 1, "the lab does not begin with one root"
        self.lab.reset_prober()

    def run(self, *, die_at: str = "", approve: str = "auto", rotation: str = "") -> Ran:
        """`capstan rotate`, of this rotation unless another one is named."""
        return self.runner.run(
            *("rotate", "--rotation", rotation or self.rotation, "--approve", approve, "-o", "json"),
            home=self.home, kubeconfig=self.lab.kubeconfig, die_at=die_at,
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """The rotation record, as the cluster has it."""
        item = self.lab.call("GET", f"{RECORDS}/configmaps/capstan-rotation-linkerd")
        return json.loads(item["data"]["record.json"])

    def minted_roots(self) -> list[Reference]:
        """Every version of the root in the vault, whatever it is tagged with."""
        if not (self.home / "vault" / "vault.json").exists():
            return []
        return list(open_vault(f"local:{self.home / 'vault'}").find({}, ROOT))

    def live_roots(self) -> set[str]:
        """All roots in the memory of any proxy, by the lab's own word."""
        return {root for pod in self.lab.pods() for root in pod["roots"]}

    def require_one_new_root_at_most(self) -> None:
        minted = {root.fingerprint for root in self.minted_roots()}
        assert len(minted) <= 1, "a second root was minted"
        assert self.live_roots() <= self.old | minted, "a proxy trusts a root that nobody knows"

    def require_finished(self, ran: Ran) -> None:
        """The run ended a whole rotation that dropped nothing."""
        # 1. The run says so.
        assert ran.code == 0, f"exit code {ran.code}: {ran.stderr[-3000:]}"
        assert ran.data["completed"] is True
        # 2. Exactly one root was minted, for this rotation, and every proxy holds exactly it.
        (root,) = self.minted_roots()
        assert root.tag[ROTATION_TAG] == self.rotation
        new = root.fingerprint
        assert new not in self.old
        held = {f"{pod['namespace']}/{pod['pod']}": pod["roots"] for pod in self.lab.pods() if not pod["stopping"]}
        assert set(map(tuple, held.values())) == {(new,)}, held
        # 3. The record is closed, and names it.
        record = self.record()
        assert (record["rotation_id"], record["outcome"], record["new"]) == (self.rotation, "completed", new)
        assert record["finished"]
        assert set(record["old"]) == self.old
        # 4. The account verifies, is complete, and holds each approval.
        account = self.home / "evidence" / f"linkerd-{self.rotation}.jsonl"
        head = record["notes"]["evidence-head"]
        verified = self.runner.run("evidence", "verify", account, "--head", head, "-o", "json", home=self.home)
        assert verified.code == 0, verified.stderr
        assert verified.data["finished"] is True
        entries = [json.loads(line) for line in account.read_text().splitlines()]
        approved = [entry["body"]["gate"] for entry in entries if entry["kind"] == "approval"]
        assert approved == ["trust", "issue", "distrust"]
        # 5. Nobody lost a connection.
        counts = self.lab.prober()
        assert counts["attempted"] > 100
        assert counts["failed"] == 0, counts["failures"][:3]

    def _absent(self, path: str) -> bool:
        try:
            self.lab.call("GET", path)
        except ApiException as error:
            if error.status != 404:
                raise
            return True
        return False


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Return when the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)
