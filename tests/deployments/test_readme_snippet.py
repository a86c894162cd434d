"""The commands the README gives to launch a rotation do what it says, on a real server with a real worker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deployments.inventories import HEAD
from tests.support.prefect_deployment import Deployed

README = Path(__file__).parents[2] / "README.md"


def snippet() -> str:
    """The one block of the README that launches a run."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if "create_flow_run" in block]
    return str(found)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="the snippet needs curl and jq")
def test_launching_twice_with_one_key_is_one_run_and_a_worker_anywhere_runs_it_from_installed_code(
    tmp_path: Path,
) -> None:
    inventory = tmp_path / "fleet.yaml"
    nowhere = tmp_path / "no-kubeconfig"  # a run that gets as far as its first cluster has proven what is claimed here
    inventory.write_text(
        f"{HEAD}sweep: {{enabled: false}}\ndomains:\n"
        f"  - {{name: prod-eu, clusters: [{{kubeconfig: {nowhere}}}], tags: [production]}}\n"
    )
    home = tmp_path / "prefect"  # where the worker runs: no source of ours is in it
    with Deployed(home, environment={"CAPSTAN_HOME": str(tmp_path / "capstan")}, worker=False) as prefect:
        prefect.deploy_inventory(inventory)
        prefect.start_worker()
        environment = {**os.environ, "PREFECT_API_URL": prefect.api_url}
        first, second = (
            subprocess.run(
                ["bash", "-euo", "pipefail", "-c", snippet()],
                capture_output=True, text=True, check=True, env=environment, cwd=tmp_path, timeout=60,
            ).stdout.strip()
            for _ in range(2)
        )  # fmt: skip
        assert re.fullmatch(r"[0-9a-f-]{36}", first)
        assert second == first
        prefect.wait_for_state(first, "Failed", seconds=180, fatal=("Completed", "Crashed"))
        run = prefect.run(first)
        assert run["parameters"]["rotation"] == "prod-eu-2027"
        assert run["parameters"]["domain"]["clusters"][0]["kubeconfig"] == str(nowhere)
        assert sorted(run["tags"]) == ["capstan", "domain:prod-eu", "inventory:fleet", "production", "system:linkerd"]
        assert f"cannot use this kubeconfig ({nowhere}" in run["state"]["message"]
