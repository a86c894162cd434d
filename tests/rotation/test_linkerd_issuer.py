"""The issuer of a Linkerd, turned alone under its anchor: nobody's trust changes, and no workload is restarted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rotation.rotations import Rotations, wait_for

if TYPE_CHECKING:
    from tests.rotation.runner import Ran
    from tests.support.labs import RunningLab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def live_issuers(lab: RunningLab) -> set[str]:
    """The issuers of all leaves that any proxy presents, by the lab's own word."""
    return {pod["leaf"]["issuer"] for pod in lab.pods() if not pod["stopping"]}


def workload_pods(lab: RunningLab) -> set[str]:
    return {f"{pod['namespace']}/{pod['pod']}" for pod in lab.pods() if pod["namespace"] != "linkerd"}


def further(first: Rotations) -> Rotations:
    """Another rotation of the same mesh, whose anchor's key is in the same vault."""
    case = Rotations(first.lab, first.runner, first.home, f"{first.rotation}-issuer")
    case.forget_earlier()
    return case


def require_no_failure(lab: RunningLab) -> None:
    counts = lab.prober()
    assert counts["attempted"] > 100
    assert counts["failed"] == 0, counts["failures"][:3]


def require_refused(ran: Ran, what: str) -> None:
    assert ran.code != 0
    assert what in ran.stderr, ran.stderr[-2000:]


@pytest.mark.proves("identity", "issuer alone", "killed half-way, gone on with, taken back; no workload restarted")
def test_an_issuer_is_turned_killed_gone_on_with_and_taken_back_under_the_anchor_of_the_vault(
    rotations: Rotations,
) -> None:
    # 1. An anchor whose key no vault has: refused before anything is changed.
    before = live_issuers(rotations.lab)
    require_refused(rotations.run("--what", "issuer"), "the present root's key is not in the vault")
    assert live_issuers(rotations.lab) == before
    # 2. An anchor that Capstan minted.
    rotations.forget_earlier()
    rotations.require_finished(rotations.run())
    case = further(rotations)
    before, pods = live_issuers(case.lab), workload_pods(case.lab)
    # 3. Killed in the middle of the switch, and gone on with.
    killed = case.run(
        "--what", "issuer", die_at="issue > switch-issuer/cluster > account issuer-switched, half-written"
    )
    assert killed.killed, (killed.code, killed.stderr[-2000:])
    ran = case.run("--what", "issuer")
    assert ran.code == 0, ran.stderr[-3000:]
    assert (ran.data["kind"], ran.data["completed"], ran.data["resumed"]) == ("issuer", True, True)
    assert live_issuers(case.lab) == set(ran.data["issuers"])
    assert not live_issuers(case.lab) & before
    assert case.live_roots() == case.old
    assert workload_pods(case.lab) == pods, "a workload was restarted"
    record = case.record()
    assert (record["kind"], record["outcome"]) == ("issuer", "completed")
    verified = case.runner.run(
        "evidence", "verify", ran.data["evidence"], "--head", record["notes"]["evidence-head"], "-o", "json",
        home=case.home,
    )  # fmt: skip
    assert verified.data["finished"] is True
    entries = [json.loads(line) for line in Path(ran.data["evidence"]).read_text().splitlines()]
    assert [entry["body"]["gate"] for entry in entries if entry["kind"] == "approval"] == ["issue"]
    # 4. And back again.
    back = case.roll_back()
    assert back.code == 0, back.stderr[-3000:]
    wait_for(lambda: live_issuers(case.lab) == before, "leaves of the issuer of before", 5.0)
    assert workload_pods(case.lab) == pods
    require_no_failure(case.lab)
