"""From every phase of a rotation: the way back does what its dry run showed, and forward again it comes to its end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.rotation.rotations import Rotations

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]

CONFIG = "PUT /api/v1/namespaces/linkerd/configmaps/linkerd-config, before its commit"
SECRET = "PUT /api/v1/namespaces/linkerd/secrets/linkerd-identity-issuer, after its commit"
GATEWAY = "PATCH /apis/apps/v1/namespaces/edge/deployments/gateway, after its commit"

# Where it dies on its way forward.
PHASES = {
    "prepare": "prepare > mint > end",
    "trust, begun": f"trust > restart-data-plane/trust/cluster > {GATEWAY}",
    "trust, complete": "issue > gate/issue > begin",
    "issue, begun": f"issue > switch-issuer/cluster > {CONFIG}",
    "issue, complete": "distrust > gate/distrust > begin",
    "distrust, begun": f"distrust > restart-data-plane/distrust/cluster > {GATEWAY}",
    "distrust, complete": "finish > begin",
}
# Where it dies on its way forward, and then on its way back; the next one is come to by going forward again.
TURNS = {
    "prepare": (PHASES["prepare"], "distrust > prove-refusal > begin"),
    "trust, begun": (f"trust > widen-bundle/cluster > {CONFIG}", "distrust > narrow-bundle/cluster > begin"),
    "trust, complete": (PHASES["trust, complete"], f"distrust > narrow-bundle/cluster > {CONFIG}"),
    "issue, begun": (PHASES["issue, begun"], f"issue > switch-issuer/cluster > {SECRET}"),
    "issue, complete": ("issue > gate/distrust > begin", "issue > gate/distrust > begin"),
    "distrust, begun": (f"distrust > narrow-bundle/cluster > {CONFIG}", "trust > widen-bundle/cluster > end"),
    "distrust, complete": (PHASES["distrust, complete"], "issue > switch-issuer/cluster > end"),
}

WRITES = {
    "bundle-widened": "widen-bundle",
    "issuer-switched": "switch-issuer",
    "bundle-narrowed": "narrow-bundle",
}
PARTS = {"control plane": "restart-control-plane", "workloads": "restart-data-plane"}


def taken(entries: list[dict[str, Any]]) -> set[str]:
    """The steps since the last turn that changed something, or asked for a refusal, named as in a plan."""
    last = max(number for number, entry in enumerate(entries) if entry["kind"] == "turned")
    found, phase = set(), ""
    for entry in entries[last:]:
        kind, body = entry["kind"], entry["body"]
        if kind == "phase-entered":
            phase = body["phase"]
        elif kind in WRITES and body["written"]:
            found.add(f"{phase}/{WRITES[kind]}")
        elif kind == "restarted" and body["owners"]:
            found.add(f"{phase}/{PARTS[body['what']]}")
        elif kind == "probe":
            found.add("distrust/probe-refusal")
    return found


def shown(plan: dict[str, Any]) -> set[str]:
    """The steps of a plan that are still to change something, or to ask for a refusal."""
    acting = {*WRITES.values(), *PARTS.values(), "probe-refusal"}
    return {each["name"] for each in plan["steps"] if not each["done"] and each["name"].partition("/")[2] in acting}


def settle(rotations: Rotations) -> None:
    """Wait until the rollout that a dead run had begun has ended: what is seen of it would be out of date at once."""
    seen: Any = None
    while seen is None or seen != (now := _pods(rotations)) or any(stopping for *_, stopping in now):
        seen = _pods(rotations)
        time.sleep(3.0)


def _pods(rotations: Rotations) -> list[Any]:
    return sorted((p["namespace"], p["pod"], tuple(p["roots"]), p["stopping"]) for p in rotations.lab.pods())


def die(rotations: Rotations, point: str, *more: str) -> None:
    ran = rotations.run(*more, die_at=point)
    assert ran.killed, f"not killed at {point}: exit code {ran.code}, {ran.stderr[-2000:]}"


@pytest.mark.proves("faults", "roll-back", "from every phase the way back does exactly what its dry run showed")
@pytest.mark.parametrize("phase", PHASES)
def test_the_way_back_does_what_its_dry_run_showed(rotations: Rotations, phase: str) -> None:
    die(rotations, point := PHASES[phase])
    if GATEWAY in point:
        settle(rotations)
    dry = rotations.roll_back("--dry-run")
    assert dry.code == 2, dry.stderr
    entries = rotations.require_rolled_back(rotations.roll_back())
    assert taken(entries) == shown(dry.data["plan"])
    after = rotations.roll_back("--dry-run")
    assert (after.code, after.data["plan"], after.data["outcome"]) == (0, None, "rolled back")


@pytest.mark.proves("faults", "roll-back", "turned round in every phase, both ways, one rotation comes to its end")
def test_turned_back_and_forward_again_in_every_phase_one_rotation_comes_to_its_end(rotations: Rotations) -> None:
    forward: tuple[str, ...] = ()
    for phase, (point, back) in TURNS.items():
        die(rotations, point, *forward)
        ran = rotations.roll_back(die_at=back)
        assert ran.killed, f"{phase}: not killed at {back}: exit code {ran.code}, {ran.stderr[-2000:]}"
        assert rotations.record()["direction"] == "back"
        rotations.require_one_new_root_at_most()
        forward = ("--forward",)
    ran = rotations.run("--forward")
    assert ran.code == 0, ran.stderr[-3000:]
    assert (ran.data["direction"], ran.data["completed"], ran.data["old_root_refused"]) == ("forward", True, True)
    (root,) = rotations.minted_roots()
    assert rotations.live_roots() == {root.fingerprint}
    assert (rotations.record()["turn"], rotations.record()["outcome"]) == (1 + 2 * len(TURNS), "completed")
    account = [json.loads(line) for line in Path(ran.data["evidence"]).read_text().splitlines()]
    turns = [entry["body"]["direction"] for entry in account if entry["kind"] == "turned"]
    assert turns == ["back", "forward"] * len(TURNS)
    # What was approved before a turn counts for nothing after it.
    last = max(number for number, entry in enumerate(account) if entry["kind"] == "turned")
    gates = [entry["body"]["gate"] for entry in account[last:] if entry["kind"] == "approval"]
    assert gates[-2:] == ["issue", "distrust"]
    rotations.require_no_failure()
