"""A mesh on the lab that is rotated through a Prefect deployment, and what must be true at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from capstan.vaults.base import ROTATION_TAG
from capstan.vaults.opening import open_vault
from tests.support.judging import RECORDS, Judged, wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from capstan.vaults.base import Reference
    from tests.support.labs import RunningLab

__all__ = ["DOMAIN", "RECORD", "RECORDS", "Mesh", "wait_for"]

DOMAIN = "mesh"
RECORD = f"{RECORDS}/configmaps/capstan-rotation-{DOMAIN}"
ROOT = f"capstan-{DOMAIN}-root"

# A process that is left soon, so that even a rotation of a minute has its state `Waiting`.
LEAVE_AFTER = "PT4S"


@dataclass
class Mesh(Judged):
    """One trust domain on a lab.

    Attributes:
        home: Its evidence, and its vault unless `vault` names another one.
        vault: URL.
        vault_environment: What opening the vault needs in the environment.
        machines: Homes of the machines it is rotated from, where each has its own; their accounts belong side by side.
    """

    lab: RunningLab
    home: Path
    vault: str = ""
    vault_environment: Mapping[str, str] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    old: set[str] = field(default_factory=set)
    machines: list[Path] = field(default_factory=list)
    domain: str = DOMAIN

    def parameter(self) -> dict[str, Any]:
        """The flow parameter `domain`."""
        return {
            "name": DOMAIN,
            "clusters": [{"name": "cluster", "kubeconfig": str(self.lab.kubeconfig)}],
            "home": "" if self.machines else str(self.home),
            "vault": self.vault,
            "policy": {"leave_process_after": LEAVE_AFTER, "issuer_validity": "P425D", **self.policy},
        }

    def inventory(self, file: Path, **more: Any) -> Path:
        """An inventory file with this domain alone (JSON is YAML)."""
        content = {
            "schemaVersion": 1,
            "name": "lab",
            "work_pools": [{"name": "capstan"}],
            "sweep": {"enabled": False},
            "radar": {"enabled": False},
            "domains": [{**self.parameter(), "enabled": False}],
            **more,
        }
        file.write_text(json.dumps(content, indent=1))
        return file

    def minted_roots(self) -> list[Reference]:
        """Every version of the root in the vault, whatever it is tagged with."""
        with mock.patch.dict(os.environ, self.vault_environment):
            return list(open_vault(self.vault or f"local:{self.home / 'vault'}").find({}, ROOT))

    def require_finished(self, approvals: list[tuple[str, str]]) -> None:
        """A whole rotation that dropped nothing, with exactly these approvals (gate, who)."""
        # 1. The record is closed; every approval that was given is in it, once, and no other.
        record = self.record()
        assert record["outcome"] == "completed", record
        assert record["finished"]
        assert [(entry["gate"], entry["by"]) for entry in record["approvals"]] == approvals
        assert {entry["decision"] for entry in record["approvals"]} == {"approved"}
        # 2. Exactly one root was minted, for this rotation, and every proxy holds exactly it.
        (root,) = self.minted_roots()
        assert root.tag[ROTATION_TAG] == record["rotation_id"]
        assert root.fingerprint == record["new"]
        assert root.fingerprint not in self.old
        self.require_every_proxy_holds({root.fingerprint})
        # 3. The account verifies against the record, is complete, and holds each approval once.
        for file in [file for machine in self.machines for file in (machine / "evidence").iterdir()]:
            (self.home / "evidence").mkdir(parents=True, exist_ok=True)
            (self.home / "evidence" / file.name).write_bytes(file.read_bytes())
        accounts = sorted((self.home / "evidence").glob(f"{DOMAIN}-{record['rotation_id']}*.jsonl"), key=_part)
        assert len(accounts) == max(1, len(self.machines)), accounts
        account = accounts[-1]
        head = record["notes"]["evidence-head"]
        verified = subprocess.run(
            [sys.executable, "-m", "capstan.cli", "evidence", "verify", account, "--head", head, "-o", "json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert verified.returncode == 0, verified.stderr
        assert json.loads(verified.stdout)["finished"] is True
        entries = [json.loads(line) for each in accounts for line in each.read_text().splitlines()]
        noted = [(entry["body"]["gate"], entry["body"]["by"]) for entry in entries if entry["kind"] == "approval"]
        # A further account begins with the approvals that were given before it.
        assert (list(dict.fromkeys(noted)) if self.machines else noted) == approvals, noted
        # 4. Nobody lost a connection.
        self.require_no_failure()

    def require_rolled_back(self) -> None:
        """Exactly the roots there were, everywhere, and nobody lost a connection."""
        record = self.record()
        assert (record["direction"], record["outcome"]) == ("back", "rolled back"), record
        self.require_every_proxy_holds(self.old)
        self.require_no_failure()


def _part(account: Path) -> int:
    return int(account.name.removesuffix(".jsonl").rpartition(".")[2]) if account.name.count(".") > 1 else 1
