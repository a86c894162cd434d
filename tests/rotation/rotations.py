"""A rotation on a lab, and what must be true when it has ended, by the lab's own word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capstan.vaults.base import ROTATION_TAG
from capstan.vaults.opening import open_vault
from tests.support.judging import Judged, wait_for

if TYPE_CHECKING:
    from capstan.vaults.base import Reference
    from tests.rotation.runner import Ran, Runner
    from tests.support.labs import RunningLab

__all__ = ["Rotations", "wait_for"]


class Rotations(Judged):
    """One rotation: run, run again, judged.

    Args:
        domain: Name of the trust domain.
        options: Given to every command.
    """

    def __init__(
        self,
        lab: RunningLab,
        runner: Runner,
        home: Path,
        rotation: str,
        *,
        domain: str = "linkerd",
        options: tuple[str, ...] = (),
    ) -> None:
        self.domain = domain
        self.options = options
        self.lab = lab
        self.runner = runner
        self.home = home
        self.rotation = rotation
        self.old: set[str] = set()

    def run(self, *more: str, die_at: str = "", approve: str = "auto", rotation: str = "", **how: Any) -> Ran:
        """`capstan rotate`, of this rotation unless another one is named.

        Args:
            how: As `Runner.run`.
        """
        return self._run("rotate", *more, die_at=die_at, approve=approve, rotation=rotation, **how)

    def roll_back(self, *more: str, die_at: str = "", approve: str = "auto", **how: Any) -> Ran:
        """`capstan rollback`."""
        return self._run("rollback", *more, die_at=die_at, approve=approve, **how)

    def _run(self, command: str, *more: str, die_at: str, approve: str, rotation: str = "", **how: Any) -> Ran:
        named = ("--rotation", rotation or self.rotation)
        return self.runner.run(
            *(command, *self.options, *named, "--approve", approve, "-o", "json", *more),
            home=self.home, kubeconfig=self.lab.kubeconfig, die_at=die_at, **how,
        )  # fmt: skip

    def minted_roots(self) -> list[Reference]:
        """Every version of the root in the vault, whatever it is tagged with."""
        if not (self.home / "vault" / "vault.json").exists():
            return []
        return list(open_vault(f"local:{self.home / 'vault'}").find({}, f"capstan-{self.domain}-root"))

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
        self.require_every_proxy_holds({new})
        # 3. The record is closed, and names it.
        record = self.record()
        assert (record["rotation_id"], record["outcome"], record["new"]) == (self.rotation, "completed", new)
        assert record["finished"]
        assert set(record["old"]) == self.old
        # 4. The account verifies, is complete, and holds each approval.
        account = self.home / "evidence" / f"{self.domain}-{self.rotation}.jsonl"
        head = record["notes"]["evidence-head"]
        verified = self.runner.run("evidence", "verify", account, "--head", head, "-o", "json", home=self.home)
        assert verified.code == 0, verified.stderr
        assert verified.data["finished"] is True
        entries = [json.loads(line) for line in account.read_text().splitlines()]
        approved = [entry["body"]["gate"] for entry in entries if entry["kind"] == "approval"]
        assert approved == ["trust", "issue", "distrust"], entries
        # 5. Nobody lost a connection.
        self.require_no_failure()

    def require_rolled_back(self, ran: Ran, *, refused: bool = True) -> list[dict[str, Any]]:
        """The run took the whole rotation back, and dropped nothing; the entries of its last account.

        Args:
            refused: Whether something had been minted, whose refusal is to be proven.
        """
        # 1. The run says so.
        assert ran.code == 0, f"exit code {ran.code}: {ran.stderr[-3000:]}"
        assert (ran.data["direction"], ran.data["completed"]) == ("back", True)
        assert ran.data["old_root_refused"] is (True if refused else None)
        # 2. Every proxy holds exactly the roots there were, and so does every place that declares them.
        self.require_every_proxy_holds(self.old)
        assert set(ran.data["roots"]["after"]) == self.old
        # 3. At most one root was minted, and nobody knows it.
        self.require_one_new_root_at_most()
        # 4. The record is closed.
        record = self.record()
        assert (record["rotation_id"], record["outcome"]) == (self.rotation, "rolled back")
        assert (record["direction"], bool(record["finished"])) == ("back", True)
        # 5. The account verifies, with any before it, and is complete.
        account = Path(ran.data["evidence"])
        head = record["notes"]["evidence-head"]
        verified = self.runner.run("evidence", "verify", account, "--head", head, "-o", "json", home=self.home)
        assert verified.code == 0, verified.stderr
        assert (verified.data["finished"], verified.data["outcome"]) == (True, "rolled back")
        # 6. Nobody lost a connection.
        self.require_no_failure()
        return [json.loads(line) for line in account.read_text().splitlines()]
