"""A whole rotation, by the command line alone: what it reports, that it repeats nothing, and that its order matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rotation.rotations import Rotations
    from tests.support.labs import RunningLab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAMESPACES = ("linkerd", "shop", "edge")
KINDS = (
    "/api/v1/{}/configmaps", "/api/v1/{}/secrets", "/api/v1/{}/services", "/api/v1/{}/pods",
    "/apis/apps/v1/{}/deployments", "/apis/apps/v1/{}/statefulsets", "/apis/apps/v1/{}/daemonsets",
    "/apis/apps/v1/{}/replicasets",
)  # fmt: skip
# What each step of the plan is called in the audit events of the run.
AUDITED = {
    "trust/gate-trust": "trust/gate/issue",
    "issue/await-leaves": "issue/gate/distrust",
    "distrust/gate-distrust": "distrust/gate/probe",
    "distrust/probe-refusal": "distrust/prove-refusal",
}


def demo(directory: Path, *arguments: str) -> dict[str, Any]:
    """`capstan demo linkerd` as a user runs it, who has configured nothing."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "CAPSTAN_"))}
    report = directory / "report.json"
    command = [sys.executable, "-m", "capstan.cli", "demo", "linkerd", "--size", "small", "--report", str(report)]
    done = subprocess.run(
        [*command, "--dir", str(directory / "lab"), *arguments],
        env={**environment, "CAPSTAN_HOME": str(directory / "home"), "HOME": str(directory)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(report.read_text())


def test_the_demo_reports_a_whole_rotation_without_a_failed_handshake(tmp_path: Path) -> None:
    report = demo(tmp_path)
    assert set(report) >= {
        "system", "completed", "phases", "handshakes", "pods", "roots", "old_root_refused", "api_requests", "resumed",
        "evidence",
    }  # fmt: skip
    assert (report["system"], report["completed"], report["resumed"]) == ("linkerd", True, False)
    assert [phase["name"] for phase in report["phases"]] == ["prepare", "trust", "issue", "distrust"]
    assert all(phase["seconds"] > 0 for phase in report["phases"])
    assert report["handshakes"]["attempted"] > 500
    assert report["handshakes"]["failed"] == 0
    assert report["pods"] == 12  # 9 workload pods and 3 of the control plane
    (before,), (after,) = report["roots"]["before"], report["roots"]["after"]
    assert before != after
    assert all(len(bytes.fromhex(root)) == 32 for root in (before, after))
    assert report["old_root_refused"] is True
    assert report["api_requests"] > 100
    verify = [sys.executable, "-m", "capstan.cli", "evidence", "verify", report["evidence"], "-o", "json"]
    verified = json.loads(subprocess.run(verify, capture_output=True, check=True).stdout)
    assert (verified["verified"], verified["finished"], verified["outcome"]) == (True, True, "completed")


def test_the_documented_order_drops_handshakes_on_the_same_lab(tmp_path: Path) -> None:
    report = demo(tmp_path, "--procedure", "documented-blog")
    assert report["procedure"] == "documented-blog"
    assert report["handshakes"]["attempted"] > 100
    assert report["handshakes"]["failed"] > 0
    errors = {failure["error"] for failure in report["failures"]}
    assert any("CERTIFICATE_VERIFY_FAILED" in error or "UNKNOWN_CA" in error.upper() for error in errors), errors


def test_its_steps_are_the_plans_in_the_plans_order_and_a_second_run_changes_nothing(rotations: Rotations) -> None:
    planned = rotations.runner.run("plan", "-o", "json", home=rotations.home, kubeconfig=rotations.lab.kubeconfig)
    assert planned.code == 2, planned.stderr
    plan = [step["name"] for step in planned.data["steps"]]

    ran = rotations.run()
    rotations.require_finished(ran)
    assert ran.data["resumed"] is False
    expected = [AUDITED.get(name, name) for name in plan]
    executed = [name for name in map(step_begun, ran.passed) if name in expected]
    assert executed == expected

    before = versions(rotations.lab), stored(rotations.home)
    again = rotations.run()
    rotations.require_finished(again)
    assert again.data["resumed"] is True
    assert again.data["roots"] == ran.data["roots"]
    assert (versions(rotations.lab), stored(rotations.home)) == before
    written = [point for point in again.passed if point.split(" > ")[-1].startswith(("POST", "PUT", "PATCH", "DELETE"))]
    assert written == []


def step_begun(point: str) -> str:
    """`phase/step` of a point at which a step begins, without the cluster or phase that it names once more."""
    phase, _, rest = point.partition(" > ")
    step, _, which = rest.rpartition(" > ")
    if which != "begin":
        return ""
    step = step.removesuffix("/cluster")
    return f"{phase}/{step.removesuffix('/' + phase)}"


def versions(lab: RunningLab) -> dict[str, str]:
    """The resourceVersion of every object that a rotation could touch."""
    found = {}
    for namespace in NAMESPACES:
        for kind in KINDS:
            path = kind.format(f"namespaces/{namespace}")
            for item in lab.call("GET", path)["items"]:
                found[f"{path}/{item['metadata']['name']}"] = item["metadata"]["resourceVersion"]
    record = lab.call("GET", "/api/v1/namespaces/capstan-system/configmaps/capstan-rotation-linkerd")
    return {**found, "record": record["metadata"]["resourceVersion"]}


def stored(home: Path) -> dict[str, bytes]:
    """Vault and account, byte for byte."""
    files = [*(home / "vault").rglob("*.json"), *(home / "evidence").iterdir()]
    return {str(file.relative_to(home)): file.read_bytes() for file in files}
