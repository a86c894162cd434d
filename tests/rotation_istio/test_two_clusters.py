"""One mesh over two clusters that share a root: each phase is a barrier over both, whichever is slower."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from infra.lab.istio import hierarchy
from tests.rotation.rotations import wait_for
from tests.rotation.runner import Runner
from tests.rotation_istio.meshes import SMALL
from tests.support.labs import RunningLab, start_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]

LAB = ("--system", "istio", "--ca", "plugin", "--istio-version", "1.30.1", "--multiroot")
RECORDS = "/api/v1/namespaces/capstan-system"
CACERTS = "/api/v1/namespaces/istio-system/secrets/cacerts"
ISTIOD = "/apis/apps/v1/namespaces/istio-system/deployments/istiod"


def share_root(east: RunningLab, west: RunningLab) -> str:
    """Put the western CA below the eastern root, as whoever builds such a mesh does; the root's fingerprint."""
    offline = Path(east.facts["offline_ca"])
    root = hierarchy.load(offline / "root-cert.pem", offline / "root-key.pem")
    own = hierarchy.mint_intermediate(root, now=datetime.now(UTC), common_name="Intermediate CA west")
    texts = {
        "ca-cert.pem": own.certificate_pem,
        "ca-key.pem": own.key_pem,
        "cert-chain.pem": own.certificate_pem + root.certificate_pem,
        "root-cert.pem": root.certificate_pem,
    }
    secret = west.call("GET", CACERTS)
    data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
    west.call("PUT", CACERTS, {**secret, "data": {**secret["data"], **data}})
    deployment = west.call("GET", ISTIOD)
    deployment["spec"]["template"]["metadata"].setdefault("annotations", {})["example.com/restarted"] = "now"
    west.call("PUT", ISTIOD, deployment)
    (shared,) = roots(east)
    wait_for(lambda: roots(west) == {shared}, "the western proxies to take the eastern root", 120.0)
    return shared


def roots(lab: RunningLab) -> set[str]:
    """All roots in the memory of any proxy, by the lab's own word."""
    return {root for pod in lab.pods() if not pod["stopping"] for root in pod["roots"]}


def held(lab: RunningLab) -> set[tuple[str, ...]]:
    """What each proxy trusts."""
    return {tuple(sorted(pod["roots"])) for pod in lab.pods() if not pod["stopping"]}


def issuers(lab: RunningLab) -> set[str]:
    """Who signed the leaves of the live proxies."""
    return {pod["leaf"]["issuer"] for pod in lab.pods() if not pod["stopping"]}


def kubeconfig_of(file: Path, **labs: RunningLab) -> Path:
    """One kubeconfig with a context for each cluster."""
    merged: dict[str, Any] = {"apiVersion": "v1", "kind": "Config", "clusters": [], "users": [], "contexts": []}
    for name, lab in labs.items():
        found = YAML(typ="safe").load(lab.kubeconfig.read_text())
        merged["clusters"].append({"name": name, "cluster": found["clusters"][0]["cluster"]})
        merged["users"].append({"name": name, "user": found["users"][0]["user"]})
        merged["contexts"].append({"name": name, "context": {"cluster": name, "user": name}})
    merged["current-context"] = next(iter(labs))
    file.write_text(json.dumps(merged))
    return file


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[tuple[RunningLab, RunningLab]]:
    started: list[RunningLab] = []
    try:
        for name in ("east", "west"):
            started.append(start_lab(tmp_path / name, *SMALL, *LAB, program=("infra.lab",)))
        yield started[0], started[1]
    finally:
        for lab in started:
            lab.stop()


def test_a_root_shared_by_two_clusters_is_turned_in_both_and_neither_runs_ahead(
    mesh: tuple[RunningLab, RunningLab], tmp_path: Path, prefect: dict[str, str]
) -> None:
    east, west = mesh
    old = share_root(east, west)
    before = issuers(east) | issuers(west)
    for lab in mesh:
        lab.reset_prober()
    home = tmp_path / "home"
    kubeconfig = kubeconfig_of(tmp_path / "kubeconfig", east=east, west=west)
    with Runner(tmp_path, {**prefect, "CAPSTAN_HOME": str(home)}) as runner:

        def rotate(die_at: str = "") -> Any:
            return runner.run(
                "rotate", "--system", "istio", "--context", "east", "--context", "west", "--rotation", "both",
                "--approve", "auto", "-o", "json", home=home, kubeconfig=kubeconfig, die_at=die_at,
            )  # fmt: skip

        # 1. Killed when the first of the two signs by its new issuer: by then every proxy of both trusts both roots.
        ran = rotate(die_at="issue > switch-issuer/east > end")
        assert ran.killed, ran.stderr[-3000:]
        assert held(east) == held(west)
        ((first, second),) = held(east)
        assert old in (first, second)
        # 2. Run again, it ends: one new root in both clusters, and an intermediate for each.
        ran = rotate()
        assert ran.code == 0, ran.stderr[-3000:]
        assert ran.data["completed"] is True
        new = {root for root in (first, second) if root != old}
        assert roots(east) == roots(west) == new
        assert issuers(east).isdisjoint(issuers(west))
        assert (issuers(east) | issuers(west)).isdisjoint(before)
    # 3. Each cluster has its record of it, and nobody lost a connection in either.
    for lab in mesh:
        record = json.loads(lab.call("GET", f"{RECORDS}/configmaps/capstan-rotation-istio")["data"]["record.json"])
        assert (record["rotation_id"], record["outcome"], {record["new"]}) == ("both", "completed", new)
        counts = lab.prober()
        assert counts["attempted"] > 100
        assert counts["failed"] == 0, counts["failures"][:3]
