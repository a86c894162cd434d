"""kubectl, unmodified, takes the manifests as they stand, and an API server takes them from it."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from infra.lab.apiserver.builtin_kinds import builtin_kinds
from tests.infra.test_kubernetes_manifests import EVERYTHING, named, rendered
from tests.lab.apiserver.lab_server import LabServer
from tests.support.manifests import KUBERNETES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on PATH"),
    pytest.mark.slow,
    pytest.mark.timeout(180),
]


class Kubectl:
    """Runs it against one API server."""

    def __init__(self, directory: Path, kubeconfig: Path) -> None:
        self.command = ["kubectl", f"--kubeconfig={kubeconfig}", f"--cache-dir={directory}"]

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [*self.command, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    directory = tmp_path_factory.mktemp("manifests")
    with LabServer(directory / "lab") as lab:
        run = Kubectl(directory / "cache", lab.server.kubeconfig)
        run("create", "namespace", "linkerd")
        for namespace in named("Namespace").values():
            run("create", "-f", "-", stdin=json.dumps(namespace))
        yield run


def key(item: dict[str, Any]) -> tuple[str, str, str]:
    return item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]


def test_the_kustomization_renders_every_manifest_unchanged() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES)], capture_output=True, text=True, timeout=60, check=True
    )
    built = [item for item in YAML(typ="safe").load_all(done.stdout) if item]
    assert sorted(built, key=key) == sorted(EVERYTHING, key=key)


@pytest.mark.parametrize("part", ["cluster", "worker"])
def test_a_server_side_dry_run_takes_them_without_a_warning(kubectl: Kubectl, part: str) -> None:
    out = kubectl("apply", "-k", str(KUBERNETES / part), "--server-side", "--dry-run=server", "--validate=strict")
    assert len(out.splitlines()) >= 5
    assert all(line.endswith("serverside-applied (server dry run)") for line in out.splitlines()), out


def test_it_takes_the_job_of_a_flow_run(kubectl: Kubectl) -> None:
    job = rendered()
    out = kubectl("create", "-f", "-", "--dry-run=server", "--validate=strict", "-o", "json", stdin=json.dumps(job))
    created = json.loads(out)
    assert created["metadata"]["name"].startswith("gentle-otter-")
    assert created["spec"]["template"]["spec"]["serviceAccountName"] == "capstan-rotator"


def test_what_the_lab_does_not_serve_is_known() -> None:
    """The two admission policies are validated by schema and evaluated by test_confinement.py, not applied here."""
    served = {kind.kind for kind in builtin_kinds()}
    assert {item["kind"] for item in EVERYTHING} - served == {
        "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
    }  # fmt: skip
