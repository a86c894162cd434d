"""The commands that only read, on a lab: what they answer before, and after a rotation was begun."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from tests.rotation.runner import ROOT

if TYPE_CHECKING:
    from tests.rotation.rotations import Rotations
    from tests.rotation.runner import Ran

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def read(case: Rotations, *arguments: str) -> Ran:
    return case.runner.run(*arguments, home=case.home, kubeconfig=case.lab.kubeconfig)


def written(ran: Ran) -> list[str]:
    return [point for point in ran.passed if any(word in point for word in ("POST", "PUT", "PATCH", "DELETE", "open"))]


def test_check_and_plan_answer_in_every_format_and_write_nothing(rotations: Rotations) -> None:
    # 1. A healthy mesh.
    checked = read(rotations, "check", "-o", "json")
    assert checked.code == 0
    assert checked.data["success"] is True
    assert as_yaml(read(rotations, "check", "-o", "yaml"))["clusters"][0]["name"] == "cluster"
    table, short = read(rotations, "check"), read(rotations, "check", "-o", "short")
    assert "√ every proxy trusts every other proxy's leaf" in table.stdout
    assert "√" in short.stdout
    assert "every proxy trusts" not in short.stdout
    # 2. A rotation would change something, and says so by its exit code; the same plan has the same digest.
    planned, again = read(rotations, "plan", "-o", "json"), read(rotations, "plan", "-o", "yaml")
    assert (planned.code, again.code) == (2, 2)
    assert planned.data["digest"] == as_yaml(again)["digest"]
    assert planned.data["safe"] is True
    assert planned.data["steps"][0]["name"] == "prepare/mint"
    shown = read(rotations, "plan")
    assert planned.data["digest"] in shown.stdout
    # 3. No rotation was ever begun, and none was by this.
    status = read(rotations, "status", "-o", "json")
    assert status.code == 0
    assert status.data["rotation"] is None
    for ran in (checked, table, short, planned, again, shown, status):
        assert ran.stderr == ""
        assert written(ran) == []


def test_status_tells_what_a_dead_rotation_waits_for_and_then_that_it_ended(rotations: Rotations) -> None:
    point = "trust > widen-bundle/cluster > PUT /api/v1/namespaces/linkerd/secrets/linkerd-config-overrides"
    assert rotations.run(die_at=f"{point}, after its commit").killed
    status = read(rotations, "status", "-o", "json")
    assert status.code == 2
    assert (status.data["rotation"], status.data["phase"]) == (rotations.rotation, "trust")
    assert status.data["safe"] is True
    trust = status.data["progress"][0]
    assert (trust["phase"], trust["done"], trust["total"]) == ("trust", 0, 12)
    assert len(trust["waitingFor"]) == 12
    assert status.data["gate"]["before"] == "issue"
    assert [entry["gate"] for entry in status.data["approvals"]] == ["trust"]
    assert written(status) == []
    rotations.require_finished(rotations.run())
    ended = read(rotations, "status", "-o", "json")
    assert (ended.code, ended.data["outcome"], ended.data["phase"]) == (0, "completed", None)


def test_check_reads_a_whole_mesh_without_importing_prefect(rotations: Rotations) -> None:
    program = """
import sys
import capstan.cli
sys.argv = ["capstan", "check", "-o", "json"]
try:
    capstan.cli.main()
except SystemExit as end:
    assert end.code == 0, end.code
sys.exit([name for name in sys.modules if name.split(".")[0] in ("prefect", "flows", "tasks", "infra")] or 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env={"KUBECONFIG": str(rotations.lab.kubeconfig), "HOME": str(rotations.home), "PATH": "/usr/bin"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def as_yaml(ran: Ran) -> Any:
    return YAML(typ="safe").load(ran.stdout)
