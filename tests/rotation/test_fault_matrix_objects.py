"""What others do to a cluster in the middle of a rotation: pods that never become ready, damaged and foreign PEM, keys
that do not belong, a lock taken away, a second operator, watches that end or fall silent. One clear error, nothing
lost, and the same command goes on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from kubernetes.client import ApiException

from tests.rotation import tampering
from tests.rotation.faulty import IMPATIENT, LEASE, Faulty, lab_whose_leaves_outlive_a_fault, until
from tests.rotation.runner import as_administrator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.rotation.rotations import Rotations
    from tests.rotation.runner import Ran
    from tests.rotation.tampering import Tampering
    from tests.support.labs import RunningLab

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    running = lab_whose_leaves_outlive_a_fault(tmp_path_factory.mktemp("lab"))
    yield running
    running.stop()


POINTS = {
    "prepare": "face-forward > begin",
    "trust": "trust > widen-bundle/cluster > begin",
    "trust, control plane": "trust > restart-control-plane/trust/cluster > begin",
    "trust, restarts": "trust > restart-data-plane/trust/cluster > begin",
    "issue": "issue > switch-issuer/cluster > begin",
    "wait": "issue > gate/distrust > begin",
    "distrust": "distrust > narrow-bundle/cluster > begin",
    "distrust, restarts": "distrust > restart-data-plane/distrust/cluster > begin",
}
NEVER_READY = "pods never ready"
BROKEN = "broken PEM in the trust roots"
MISMATCH = "key mismatch in the issuer's Secret"
FOREIGN = "foreign issuer in the Secret"
DAMAGED = "broken PEM in the issuer's Secret"
STOLEN = "Lease taken by somebody else"
THIEF = "ci-runner-7/4711/c0ffee"
LOST = ("this rotation no longer holds its lock", f"held by {THIEF}", "run the same command again")
NOT_ITS_KEY = ("key.pem is not the key of the certificate in crt.pem",)
OTHER_KEY = tampering.issuer(lambda _: tampering.other_key(), tampering.apart)
DID_NOT_END = ("restarts did not end", "deployment/storefront -n shop", "kubectl get pods -n shop")
PUT_BACK = "put back the roots that the proxies hold"


@dataclass(frozen=True)
class Met:
    """A thing that is done in a phase, and what the run says of it.

    Attributes:
        code: Its exit code.
        said: Texts of its one error, the next command among them.
    """

    fault: str
    phase: str
    done: Tampering
    code: int
    said: tuple[str, ...]

    @property
    def mark(self) -> pytest.MarkDecorator:
        return pytest.mark.proves(
            "faults", self.fault, f"{self.phase}: one error with the next command, nothing lost, going on works"
        )


def meet(case: Rotations, met: Met) -> Ran:
    """Run until it is met, undo it, and judge the error."""
    calls, lift = met.done.calls(case.lab), met.done.lift(case.lab)
    point = POINTS[met.phase]
    ran = case.run("--restart-deadline", "45s", call_at={point: calls}, environment=IMPATIENT)
    assert point in ran.passed, f"{met.phase} was not come to: {ran.stderr[-2000:]}"
    for call in lift if met.done.stands(case.lab) else ():
        as_administrator(str(case.lab.kubeconfig), *call)
    words = " ".join(ran.stderr.split())
    assert ran.code == met.code, f"{met.fault}, {met.phase}: exit code {ran.code}: {ran.stderr[-3000:]}"
    assert words.count("error: ") == 1, ran.stderr[-3000:]
    assert "Traceback" not in ran.stderr
    error = words.partition("error: ")[2]
    for text in (*met.said, " next "):
        assert text in error, f"{met.fault}, {met.phase}: {error}"
    assert "PRIVATE KEY" not in ran.stderr + ran.stdout
    return ran


# One rotation for each chain.
CHAINS = [
    (
        Met(MISMATCH, "prepare", OTHER_KEY, 3, ("phase prepare may not be entered", *NOT_ITS_KEY)),
        Met(FOREIGN, "prepare", tampering.issuer(lambda _: tampering.foreign_issuer()), 3,
            ("phase prepare may not be entered", "would refuse", "a leaf renewed now")),
        Met(DAMAGED, "prepare", tampering.issuer(lambda held: {"crt.pem": held["crt.pem"][:-60]}), 3,
            ("phase prepare may not be entered", "identity cannot read it", "certificate 1 is cut off or damaged")),
        Met(BROKEN, "prepare", tampering.roots(lambda text: text[:-60]), 1,
            ("certificate section does not decode", "configmap linkerd/linkerd-identity-trust-roots", PUT_BACK)),
    ),
    (
        Met(MISMATCH, "trust, control plane", OTHER_KEY, 3, NOT_ITS_KEY),
        Met(NEVER_READY, "trust, restarts", tampering.image("registry.invalid/shop/storefront:2"), 3,
            (*DID_NOT_END, "ImagePull")),
        Met(STOLEN, "issue", tampering.held_by(THIEF), 1, LOST),
        Met(MISMATCH, "wait", OTHER_KEY, 3, NOT_ITS_KEY),
        Met(NEVER_READY, "distrust, restarts", tampering.workload("lab.capstan.dev/crash", "true"), 3, DID_NOT_END),
    ),
    (
        Met(STOLEN, "trust", tampering.held_by(THIEF), 1, LOST),
        Met(NEVER_READY, "trust, restarts", tampering.workload("lab.capstan.dev/never-ready", "true"), 3, DID_NOT_END),
        Met(STOLEN, "distrust", tampering.held_by(THIEF), 1, LOST),
        Met(MISMATCH, "distrust", OTHER_KEY, 3, NOT_ITS_KEY),
    ),
]  # fmt: skip


def chain(*cells: Met) -> object:
    return pytest.param(cells, marks=[met.mark for met in cells], id=cells[0].fault.replace(" ", "-").replace("'", ""))


@pytest.mark.parametrize("cells", [chain(*cells) for cells in CHAINS])
def test_stopped_by_what_others_do_and_run_again_it_finishes_and_drops_nothing(
    rotations: Rotations, cells: tuple[Met, ...]
) -> None:
    faulty = Faulty(rotations)
    for met in cells:
        meet(rotations, met)
        faulty.require_nothing_lost()
    rotations.require_finished(rotations.run())


@pytest.mark.proves(
    "faults", "two operators at once", "the second is refused with the holder's name; the first finishes"
)
def test_a_second_operator_is_refused_while_the_first_finishes(rotations: Rotations) -> None:
    lab, first = rotations.lab, []
    thread = threading.Thread(target=lambda: first.append(rotations.run()))
    thread.start()
    try:
        until(lambda: bool(holder(rotations)), "the first operator to hold the lock")
        who = holder(rotations)
        second = operator(rotations, rotations.home.with_name("second-home"), "rotate", "--approve", "auto")
        back = operator(rotations, rotations.home, "rollback", "--approve", "auto")
        assert holder(rotations) == who
    finally:
        thread.join()
    for refused in (second, back):
        said = " ".join(refused.stderr.split())
        assert refused.returncode == 1, refused.stderr
        assert "another rotation is under way" in said
        assert who in said
        assert "kubectl get lease capstan-rotation-linkerd -n capstan-system -o yaml" in said
    assert len(first) == 1
    rotations.require_finished(first[0])
    lab.clear_faults()


def holder(case: Rotations) -> str:
    try:
        return str(case.lab.call("GET", LEASE)["spec"].get("holderIdentity") or "")
    except ApiException as error:
        if error.status != 404:
            raise
        return ""


def operator(case: Rotations, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Somebody else, on the same machine; the way back needs the vault that the rotation was begun with."""
    own = {"KUBECONFIG": str(case.lab.kubeconfig), "CAPSTAN_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-m", "capstan.cli", *arguments],
        env={**os.environ, **case.runner.environment, **own},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.proves(
    "faults", "watch 410, silent and dropped watches", "all phases: a rotation goes on as if nothing were"
)
def test_watches_that_expire_fall_silent_and_break_cost_a_rotation_nothing_but_time(rotations: Rotations) -> None:
    watches = {"method": "GET", "path": r"watch=", "userAgent": "capstan"}
    for nth, action in (
        (1, {"status": 410}), (2, {"drop": "before"}), (4, {"expire": True}), (5, {"stall": True}),
        (7, {"status": 429}), (8, {"status": 503}), (9, {"status": 410}), (11, {"drop": "after"}),
        (12, {"expire": True}),
    ):  # fmt: skip
        rotations.lab.add_fault({**watches, "nth": nth, "action": action})
    ran = rotations.run()
    rules = rotations.lab.call("GET", "/lab/faults")["rules"]
    assert all(rule["seen"] >= rule["nth"] for rule in rules), rules
    rotations.require_finished(ran)
