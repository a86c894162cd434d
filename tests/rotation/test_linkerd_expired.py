"""A mesh that is down because a certificate has ended, by the lab's own clock and prober: replaced, and back again."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from capstan.pki.mint import IssuerPolicy, mint_issuer
from capstan.vaults.opening import open_vault
from tests.rotation.points import AFTER
from tests.rotation.rotations import Rotations, wait_for
from tests.support.labs import RunningLab, start_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.rotation.runner import Ran, Runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ISSUER = "/api/v1/namespaces/linkerd/secrets/linkerd-identity-issuer"
ROOTS = "/api/v1/namespaces/linkerd/configmaps/linkerd-identity-trust-roots"
# How long the issuer lives that is written to end: long enough for each leaf to be renewed under it, or to have ended.
SHORT = timedelta(seconds=14)
# How long anchors and issuers live that a lab is installed with: longer than it takes to start on a busy machine.
LIFE = 150


def leaf_ends(lab: RunningLab) -> dict[str, datetime]:
    """When each proxy's identity ends, by the lab's own word; a proxy without one is left out."""
    return {
        f"{pod['namespace']}/{pod['pod']}": datetime.fromisoformat(pod["leaf"]["not_after"])
        for pod in lab.pods()
        if pod["leaf"] and not pod["stopping"]
    }


def everybody_is_down(lab: RunningLab) -> bool:
    now = datetime.now(UTC)
    return all(end <= now for end in leaf_ends(lab).values())


def write_short_lived_issuer(first: Rotations) -> None:
    """Whoever holds the anchor's key gives the mesh an issuer that soon ends, as an operator's script would."""
    vault = open_vault(f"local:{first.home / 'vault'}")
    (reference,) = first.minted_roots()
    root = vault.get(reference).minted(str(reference))
    made = mint_issuer(IssuerPolicy("identity.linkerd.cluster.local", validity=SHORT), root, datetime.now(UTC))
    secret = first.lab.call("GET", ISSUER)
    secret["data"] |= {
        "crt.pem": b64encode(made.certificate.pem().encode() + b"\n").decode(),
        "key.pem": b64encode(made.key.pem()).decode(),
    }
    first.lab.call("PUT", ISSUER, secret)


def require_an_outage(lab: RunningLab) -> None:
    """Handshakes fail, all of them, by the prober's count."""
    wait_for(lambda: everybody_is_down(lab), "every leaf to end", 240.0)
    lab.reset_prober()
    wait_for(lambda: lab.prober()["attempted"] >= 30, "some handshakes", 60.0)
    counts = lab.prober()
    assert counts["failed"] == counts["attempted"], "handshakes succeed in a mesh whose leaves have ended"


def require_everybody_back(lab: RunningLab, *, pairs: bool = False) -> None:
    """No handshake fails over a while, and every proxy holds one set of roots and a living leaf of one issuer."""
    lab.reset_prober()
    pods = [pod for pod in lab.pods() if not pod["stopping"]]
    wanted = len(pods) * (len(pods) - 1) if pairs else 0
    wait_for(lambda: lab.prober()["attempted"] >= 150, "handshakes", 120.0)
    if pairs:
        wait_for(lambda: lab.prober()["pairs"] >= wanted, "each pair of proxies to meet", 240.0)
    counts = lab.prober()
    assert counts["failed"] == 0, counts["failures"][:3]
    pods = [pod for pod in lab.pods() if not pod["stopping"]]
    assert all(pod["leaf"] for pod in pods)
    assert len({pod["leaf"]["issuer"] for pod in pods}) == 1
    assert len({tuple(pod["roots"]) for pod in pods}) == 1
    now = datetime.now(UTC)
    assert all(end > now for end in leaf_ends(lab).values())


def replace(case: Rotations, *more: str, die_at: str = "") -> Ran:
    return case.run("--what", "expired", *more, die_at=die_at)


def crashes(lab: RunningLab) -> bool:
    """Whether a process of identity has ended at its start."""
    pods = lab.call("GET", "/api/v1/namespaces/linkerd/pods?labelSelector=linkerd.io/control-plane-component=identity")
    states = [s for pod in pods["items"] for s in (pod.get("status") or {}).get("containerStatuses") or []]
    return any(state["name"] == "identity" and state["restartCount"] > 0 for state in states)


def flat(text: str) -> str:
    return " ".join(text.split())


def require_told(case: Rotations, ran: Ran, *, down: bool = True) -> list[dict[str, Any]]:
    """The run says that it ended, how long each workload was down, and the account proves it; the account's entries."""
    assert ran.code == 0, ran.stderr[-3000:]
    assert (ran.data["kind"], ran.data["completed"]) == ("expired", True)
    told = {each["workload"]: each for each in ran.data["outages"]}
    if down:
        workloads = [name for name in told if "-n linkerd" not in name]
        assert len(workloads) == 4, told
        assert all(each["seconds"] > 0 for each in told.values())
    record = case.record()
    assert (record["kind"], record["outcome"]) == ("expired", "completed")
    verified = case.runner.run(
        "evidence", "verify", ran.data["evidence"], "--head", record["notes"]["evidence-head"], "-o", "json",
        home=case.home,
    )  # fmt: skip
    assert verified.data["finished"] is True
    entries = [json.loads(line) for line in Path(ran.data["evidence"]).read_text().splitlines()]
    assert [entry["body"]["gate"] for entry in entries if entry["kind"] == "approval"] == ["replace-expired"]
    (outage,) = [entry["body"]["workloads"] for entry in entries if entry["kind"] == "outage"]
    assert outage == ran.data["outages"]
    return entries


@pytest.mark.proves("faults", "expired issuer", "a mesh without an identity is brought back under the anchor there is")
def test_an_issuer_that_has_ended_is_replaced_under_its_anchor_and_every_workload_is_back(rotations: Rotations) -> None:
    rotations.require_finished(rotations.run())
    lab = rotations.lab
    case = Rotations(lab, rotations.runner, rotations.home, f"{rotations.rotation}-expired")
    case.forget_earlier()
    # 1. Nothing has ended yet: an ordinary rotation drops nothing, so this one is refused.
    early = replace(case)
    assert early.code != 0
    assert "nothing has expired" in early.stderr, early.stderr[-2000:]
    assert "--what issuer" in flat(early.stderr)
    write_short_lived_issuer(rotations)
    require_an_outage(lab)
    # 2. An ordinary rotation refuses, names the command, and begins nothing.
    refused = case.run("--what", "issuer", rotation="ordinary")
    assert refused.code != 0
    assert "capstan rotate --system linkerd --what expired" in flat(refused.stderr), refused.stderr[-2000:]
    # 3. The command replaces it: asked once, with the downtime in the words that are approved.
    asked = case.run("--what", "expired", approve="ask")
    assert asked.code == 4, asked.stderr[-2000:]
    ran = replace(case)
    entries = require_told(case, ran)
    assert ran.data["resumed"] is True
    (found,) = [entry["body"] for entry in entries if entry["kind"] == "expired-found"]
    assert found["scope"] == "issuer"
    assert found["without_identity"] == found["proxies"]
    # 4. The anchor is the one there was, nobody fails any more.
    assert case.live_roots() == case.old
    require_everybody_back(lab)
    # 5. There is nothing to go back to, and it says so.
    back = case.roll_back("--dry-run")
    assert back.code != 0
    assert "what there was before has expired" in back.stderr


# --- by make test-long ------------------------------------------------------------------------------------------------


@contextmanager
def own_lab(directory: Path, *options: str) -> Iterator[RunningLab]:
    running = start_lab(directory, "--size", "small", "--probes-per-second", "30", *options, program=("infra.lab",))
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.long
@pytest.mark.proves("faults", "expired anchor", "leaves live on under it; anchor and issuer are replaced in one step")
def test_an_anchor_that_has_ended_is_replaced_with_its_issuer_and_trusted_by_nobody_afterwards(
    runner: Runner, tmp_path: Path
) -> None:
    with own_lab(tmp_path / "lab", "--leaf-seconds", "60", "--anchor-seconds", str(LIFE)) as lab:
        case = Rotations(lab, runner, tmp_path / "home", "anchor")
        case.forget_earlier()
        began = datetime.fromisoformat(lab.call("GET", ROOTS)["metadata"]["creationTimestamp"])
        time.sleep(max(0.0, (began + timedelta(seconds=LIFE + 3) - datetime.now(UTC)).total_seconds()))
        # 1. The anchor has ended. Leaves that live are accepted on: proxies do not look at an anchor's end.
        lab.reset_prober()
        wait_for(lambda: lab.prober()["attempted"] >= 60, "handshakes", 30.0)
        assert lab.prober()["failed"] == 0, lab.prober()["failures"][:3]
        # 2. But none of them is ever renewed.
        require_an_outage(lab)
        entries = require_told(case, replace(case))
        (found,) = [entry["body"] for entry in entries if entry["kind"] == "expired-found"]
        assert found["scope"] == "anchor"
        (root,) = case.minted_roots()
        assert case.live_roots() == {root.fingerprint}
        require_everybody_back(lab, pairs=True)
        # 3. From here on it is a mesh like any other.
        back = case.roll_back("--dry-run")
        assert "what there was before has expired" in back.stderr
        next_one = Rotations(lab, runner, case.home, "next")
        next_one.forget_earlier()
        ordinary = next_one.run("--what", "issuer")
        assert ordinary.code == 0, ordinary.stderr[-2000:]
        assert lab.prober()["failed"] == 0


@pytest.mark.long
@pytest.mark.proves("faults", "expired anchor", "replaced while leaves still live: nobody waits for them to end")
def test_an_anchor_that_has_ended_is_replaced_while_leaves_still_live(runner: Runner, tmp_path: Path) -> None:
    with own_lab(tmp_path / "lab", "--leaf-seconds", "400", "--anchor-seconds", str(LIFE)) as lab:
        case = Rotations(lab, runner, tmp_path / "home", "anchor")
        case.forget_earlier()
        began = datetime.fromisoformat(lab.call("GET", ROOTS)["metadata"]["creationTimestamp"])
        time.sleep(max(0.0, (began + timedelta(seconds=LIFE + 2) - datetime.now(UTC)).total_seconds()))
        ran = replace(case)
        require_told(case, ran, down=False)
        assert ran.data["outages"] == []  # each workload was started anew before its leaf had ended
        require_everybody_back(lab, pairs=True)


@pytest.mark.long
@pytest.mark.proves("faults", "expired anchor", "an install of the CLI whose issuer is the anchor gets both anew")
def test_the_certificate_of_a_default_install_that_has_ended_is_replaced_by_an_anchor_and_an_issuer(
    runner: Runner, tmp_path: Path
) -> None:
    with own_lab(
        tmp_path / "lab", "--leaf-seconds", "40", "--default-certificates", "--anchor-seconds", str(LIFE)
    ) as lab:
        case = Rotations(lab, runner, tmp_path / "home", "default")
        case.forget_earlier()
        require_an_outage(lab)
        # Somebody has tried the obvious: an identity that is started anew now crashes over its issuer.
        identity = next(pod["pod"] for pod in lab.pods() if pod["pod"].startswith("linkerd-identity"))
        lab.call("DELETE", f"/api/v1/namespaces/linkerd/pods/{identity}")
        wait_for(lambda: crashes(lab), "identity to crash", 60.0)
        require_told(case, replace(case))
        (root,) = case.minted_roots()
        assert case.live_roots() == {root.fingerprint}
        assert {pod["leaf"]["issuer"] for pod in lab.pods()}.isdisjoint(case.live_roots())
        require_everybody_back(lab, pairs=True)


# Each boundary of a step, and each write: killed there, one after the other, and run again.
DEATHS = (
    "prepare > diagnose > end",
    "prepare > mint-replacement > end",
    "prepare > settle-roots > end",
    "issue > replace-roots/cluster > begin",
    f"issue > replace-roots/cluster > PUT {ROOTS}, {AFTER}",
    "issue > replace-roots/cluster > account roots-replaced, half-written",
    "issue > replace-issuer/cluster > begin",
    f"issue > replace-issuer/cluster > PUT {ISSUER}, {AFTER}",
    "issue > replace-issuer/cluster > account issuer-replaced, half-written",
    "issue > restart-dead-control-plane/cluster > begin",
    "issue > restart-dead-control-plane/cluster > end",
    "issue > restart-dead-data-plane/cluster > begin",
    "issue > restart-dead-data-plane/cluster > end",
)


@pytest.mark.long
@pytest.mark.proves("faults", "expired anchor", "killed at each boundary and run again, it makes one root and ends")
def test_killed_at_each_boundary_and_run_again_a_replacement_ends_with_one_new_root(
    runner: Runner, tmp_path: Path
) -> None:
    with own_lab(tmp_path / "lab", "--leaf-seconds", "40", "--issuer-seconds", str(LIFE)) as lab:
        case = Rotations(lab, runner, tmp_path / "home", "killed")
        case.forget_earlier()
        require_an_outage(lab)
        # The anchor lives, and nobody has its key: a new one is made.
        for point in DEATHS:
            ran = replace(case, die_at=point)
            assert ran.killed, f"not killed at {point}: exit code {ran.code}, {ran.stderr[-2000:]}"
            case.require_one_new_root_at_most()
        ran = replace(case)
        require_told(case, ran)
        assert ran.data["resumed"] is True
        (root,) = case.minted_roots()
        assert case.live_roots() == {root.fingerprint}
        require_everybody_back(lab, pairs=True)


@pytest.mark.long
@pytest.mark.proves(
    "faults", "expired issuer", "a rotation it stopped half-way is superseded; a rejection changes nothing"
)
def test_a_rejection_changes_nothing_and_a_rotation_that_was_under_way_makes_room(
    runner: Runner, tmp_path: Path
) -> None:
    with own_lab(tmp_path / "lab", "--leaf-seconds", "40", "--issuer-seconds", str(LIFE)) as lab:
        ordinary = Rotations(lab, runner, tmp_path / "home", "ordinary")
        ordinary.forget_earlier()
        stopped = ordinary.run(approve="ask")
        assert stopped.code == 4, stopped.stderr[-2000:]
        require_an_outage(lab)
        # 1. It can go neither on nor back, and names the way out.
        stuck = ordinary.run()
        assert stuck.code != 0
        assert "capstan rotate --system linkerd --what expired" in flat(stuck.stderr), stuck.stderr[-2000:]
        # 2. Nobody approves: rolled back, with nothing changed.
        case = Rotations(lab, runner, ordinary.home, "asked")
        roots, issuer = (lab.call("GET", path)["metadata"]["resourceVersion"] for path in (ROOTS, ISSUER))
        waiting = case.run("--what", "expired", approve="ask")
        assert waiting.code == 4, waiting.stderr[-2000:]
        back = case.roll_back()
        assert back.code == 0, back.stderr[-2000:]
        assert (lab.call("GET", ROOTS)["metadata"]["resourceVersion"], back.data["completed"]) == (roots, True)
        assert lab.call("GET", ISSUER)["metadata"]["resourceVersion"] == issuer
        # 3. Asked again, by another id, it is done.
        again = Rotations(lab, runner, ordinary.home, "again")
        again.old = ordinary.old
        require_told(again, replace(again))
        require_everybody_back(lab, pairs=True)
