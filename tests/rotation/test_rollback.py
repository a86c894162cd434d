"""The way back, taken from wherever a rotation died: nobody notices, and everything is as it was."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from capstan.vaults.opening import open_vault
from tests.rotation.runner import Ran
from tests.rotation.test_rotation import stored, versions

if TYPE_CHECKING:
    from tests.rotation.rotations import Rotations

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECORD = "PUT /api/v1/namespaces/capstan-system/configmaps/capstan-rotation-linkerd, after its commit"
GATEWAY = "PATCH /apis/apps/v1/namespaces/edge/deployments/gateway, after its commit"
CONFIG = "PUT /api/v1/namespaces/linkerd/configmaps/linkerd-config, before its commit"
SECRET = "PUT /api/v1/namespaces/linkerd/secrets/linkerd-identity-issuer, after its commit"

HALF_TRUST = f"trust > restart-data-plane/trust/cluster > {GATEWAY}"
HALF_ISSUE = f"issue > switch-issuer/cluster > {CONFIG}"
HALF_DISTRUST = f"distrust > restart-data-plane/distrust/cluster > {GATEWAY}"


def gates(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["body"]["gate"] for entry in entries if entry["kind"] == "approval"]


def phases(entries: list[dict[str, Any]]) -> list[str]:
    return [e["body"]["phase"] for e in entries if e["kind"] == "phase-entered" and e["body"]["direction"] == "back"]


def ours(rotations: Rotations) -> dict[str, str]:
    """Versions of what only we write; a rollout that is under way goes on writing the rest."""
    return {path: v for path, v in versions(rotations.lab).items() if "configmaps" in path or "record" in path}


def die(rotations: Rotations, point: str) -> None:
    ran = rotations.run(die_at=point)
    assert ran.killed, f"not killed at {point}: exit code {ran.code}, {ran.stderr[-2000:]}"


@pytest.mark.proves("faults", "roll-back", "before anything was changed: shown that the new root is nowhere")
def test_before_anything_was_changed_it_only_shows_that_the_new_root_is_nowhere(rotations: Rotations) -> None:
    waiting = rotations.run(approve="ask")
    assert waiting.code == 4, waiting.stderr
    before = versions(rotations.lab)
    entries = rotations.require_rolled_back(rotations.roll_back())
    after = versions(rotations.lab)
    assert {path for path in after if after[path] != before[path]} == {"record"}
    assert phases(entries) == ["distrust"]
    assert gates(entries) == ["roll-back"]


@pytest.mark.proves("faults", "roll-back", "from half-way through trust, asked once; then forward is another rotation")
def test_from_half_way_through_trust_it_narrows_again_once_approved(rotations: Rotations) -> None:
    die(rotations, HALF_TRUST)
    # 1. A dry run shows the way and changes nothing.
    before = ours(rotations), stored(rotations.home)
    shown = rotations.roll_back("--dry-run")
    assert shown.code == 2, shown.stderr
    assert (ours(rotations), stored(rotations.home)) == before
    steps = {step["name"]: step["done"] for step in shown.data["plan"]["steps"]}
    assert steps["trust/widen-bundle"]
    assert steps["issue/switch-issuer"]
    assert not steps["distrust/narrow-bundle"]
    # 2. Nobody can be asked: nothing is turned.
    unasked = rotations.roll_back(approve="ask")
    assert unasked.code == 4, unasked.stderr
    assert "roll-back waits for approval" in unasked.stderr
    assert (rotations.record()["direction"], rotations.record()["turn"]) == ("forward", 1)
    # 3. Approved, it goes back without asking for any phase.
    entries = rotations.require_rolled_back(rotations.roll_back())
    assert gates(entries) == ["trust", "roll-back"]
    assert phases(entries) == ["issue", "distrust"]
    # 4. It is over: again is nothing to do, and forward is another rotation's business.
    before = ours(rotations), stored(rotations.home)
    rotations.require_rolled_back(rotations.roll_back(), refused=False)
    refused = rotations.run()
    assert refused.code == 1
    assert "was rolled back and is over" in refused.stderr
    assert (ours(rotations), stored(rotations.home)) == before


@pytest.mark.proves("faults", "roll-back", "from a half-switched issuer, killed at nine points on the way")
@pytest.mark.long
def test_from_a_half_switched_issuer_killed_and_run_again_it_switches_back_and_starts_the_signer_anew(
    rotations: Rotations,
) -> None:
    die(rotations, HALF_ISSUE)
    for point in (
        "recall > end",
        f"turn-back > {RECORD}",
        f"issue > switch-issuer/cluster > {SECRET}",
        "issue > restart-control-plane/issue/cluster > PATCH /apis/apps/v1/namespaces/linkerd/deployments/"
        "linkerd-identity, after its commit",
        "issue > gate/distrust > begin",
        "distrust > narrow-bundle/cluster > " + CONFIG,
        HALF_DISTRUST,
        "finish > account finished, half-written",
        f"finish > {RECORD}",
    ):
        ran = rotations.roll_back(die_at=point)
        assert ran.killed, f"not killed at {point}: exit code {ran.code}, {ran.stderr[-2000:]}"
    ran = rotations.roll_back()
    entries = rotations.require_rolled_back(ran, refused=False)  # proven by a run before this one
    probes = [entry["body"] for entry in entries if entry["kind"] == "probe"]
    assert probes
    assert not probes[-1]["wrong"]
    assert gates(entries) == ["trust", "issue", "roll-back"]
    assert [entry["body"]["turn"] for entry in entries if entry["kind"] == "turned"] == [2]


@pytest.mark.proves("faults", "roll-back", "from half-way through distrust, turned forward again with new approvals")
@pytest.mark.long
def test_from_half_way_through_distrust_turned_forward_again_it_finishes_with_new_approvals(
    rotations: Rotations,
) -> None:
    die(rotations, HALF_DISTRUST)
    ran = rotations.roll_back(die_at=f"issue > switch-issuer/cluster > {SECRET}")
    assert ran.killed, ran.stderr[-2000:]
    assert rotations.record()["direction"] == "back"
    # 1. Without the word it is not turned again, and both commands are named.
    refused = rotations.run()
    assert refused.code == 1
    said = " ".join(refused.stderr.split())
    assert f"capstan rollback --rotation {rotations.rotation}" in said
    assert f"capstan rotate --rotation {rotations.rotation} --forward" in said
    # 2. The approvals of the first turn count for nothing now.
    unasked = rotations.run("--forward", approve="ask")
    assert unasked.code == 4, unasked.stderr
    assert (rotations.record()["direction"], rotations.record()["turn"]) == ("forward", 3)
    # 3. And then back once more: the whole way, from a rotation that is complete.
    ran = rotations.run("--forward")
    assert ran.code == 0, ran.stderr[-3000:]
    assert ran.data["completed"] is True
    assert rotations.lab.prober()["failed"] == 0
    rotations.require_rolled_back(rotations.roll_back())


@pytest.mark.proves("faults", "roll-back", "a complete one: taken back, or refused once the previous issuer is gone")
@pytest.mark.long
def test_a_complete_rotation_is_taken_back_in_a_further_account_unless_its_previous_issuer_is_gone(
    rotations: Rotations,
) -> None:
    rotations.require_finished(rotations.run())
    complete = stored(rotations.home)
    # 1. Without the previous issuer there is no way back, and nothing is touched.
    kept = rotations.home
    rotations.home = kept.with_name("destroyed")
    shutil.copytree(kept, rotations.home)
    vault = open_vault(f"local:{rotations.home / 'vault'}")
    (backup,) = vault.find({}, "capstan-linkerd-previous-issuer-cluster")
    vault.destroy(backup, "a test of what is impossible without it")
    before = versions(rotations.lab)
    for more in ((), ("--dry-run",)):
        closed = rotations.roll_back(*more)
        assert closed.code == 3, closed.stderr
        assert "there is no way back" in closed.stderr
        assert closed.stdout == ""
    assert versions(rotations.lab) == before
    rotations.home = kept
    # 2. With it the whole way is taken, and told in an account that names the first one.
    died = rotations.roll_back(die_at=f"turn-back > {RECORD}")
    assert died.killed, died.stderr[-2000:]
    ran = rotations.roll_back()
    entries = rotations.require_rolled_back(ran)
    assert phases(entries) == ["trust", "issue", "distrust"]
    assert entries[0]["body"]["continues"]["account"] == f"linkerd-{rotations.rotation}.jsonl"
    now = stored(rotations.home)
    assert {name: now[name] for name in complete if name.startswith("evidence")} == {
        name: value for name, value in complete.items() if name.startswith("evidence")
    }


@pytest.mark.proves("faults", "roll-back", "a rejected phase takes it back without asking again")
def test_a_rejected_phase_takes_the_rotation_back_without_asking_again(rotations: Rotations) -> None:
    code, said, printed = answered(rotations, "approve", "CHG-1", "go", "reject", "CHG-2", "not today")
    assert code == 1, said
    ran = Ran(0, printed, said, [])  # to be judged as any other way back
    entries = rotations.require_rolled_back(ran)
    decided = [(e["body"]["gate"], e["body"]["decision"]) for e in entries if e["kind"] == "approval"]
    assert decided == [("trust", "approved"), ("issue", "rejected")]
    (turned,) = [entry["body"] for entry in entries if entry["kind"] == "turned"]
    assert turned["why"] == "an approval was rejected"
    assert phases(entries) == ["issue", "distrust"]


def answered(rotations: Rotations, *answers: str) -> tuple[int, str, str]:
    """`capstan rotate` on a terminal, with these lines typed in; its exit code, what it said, what it printed."""
    ours, theirs = pty.openpty()
    said: list[bytes] = []

    def listen() -> None:
        with contextlib.suppress(OSError):  # how a terminal ends
            while heard := os.read(ours, 4096):
                said.append(heard)

    command = ("rotate", "--rotation", rotations.rotation, "-o", "json")
    environment = {**os.environ, **rotations.runner.environment, "CAPSTAN_HOME": str(rotations.home)}
    process = subprocess.Popen(
        [sys.executable, "-m", "capstan.cli", *command, "--kubeconfig", str(rotations.lab.kubeconfig)],
        stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, env=environment,
    )  # fmt: skip
    os.close(theirs)
    listening = threading.Thread(target=listen, daemon=True)
    listening.start()
    os.write(ours, "".join(f"{answer}\n" for answer in answers).encode())
    printed, _ = process.communicate(timeout=600)
    listening.join(5)
    os.close(ours)
    return process.returncode, b"".join(said).decode(), printed.decode()
