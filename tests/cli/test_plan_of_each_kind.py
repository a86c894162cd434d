"""`capstan plan --what KIND`: the steps of a rotation of that kind, and the refusals that it would meet, read-only."""

from __future__ import annotations

import base64
import json
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

import capstan.cli
from capstan.cli.entry_points import _ROTATE, What, kind_of
from capstan.cluster.record import RecordStore, RotationRecord
from capstan.cluster.resources import CONFIG_MAPS, DEPLOYMENTS, NAMESPACES, SECRETS
from capstan.pki.bundle import Bundle
from capstan.pki.mint import IssuerPolicy, RootPolicy, mint_issuer, mint_root
from capstan.rotation.material import tags_of
from capstan.rotation.session import OLD_ROOTS
from capstan.vaults.local import LocalVault
from capstan.vaults.material import Material
from tests.support.apiserver import Running
from tests.support.istio_mesh import IstioMesh
from tests.support.linkerd_objects import install, write_issuer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


NOW = datetime.now(UTC).replace(microsecond=0)
ROOT = mint_root(RootPolicy("root.linkerd.cluster.local"), 1, NOW - timedelta(days=30))
ISSUER = mint_issuer(IssuerPolicy("identity.linkerd.cluster.local"), ROOT, NOW)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture(scope="module")
def linkerds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("linkerd"))
    with closing(running.connect()) as cluster:
        install(cluster, ROOT, ISSUER)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def istios(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("istio"))
    with closing(running.connect()) as cluster:
        mesh = IstioMesh(running, cluster).standard()
        yield running
        mesh.close()
    running.stop()


@pytest.fixture(scope="module")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An istiod that made its own root, at whose Secret we look; nothing asks for a leaf."""
    running = Running(tmp_path_factory.mktemp("self-signed"))
    with closing(running.connect()) as cluster:
        cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}})
        old = mint_root(RootPolicy("cluster.local", validity=timedelta(days=300)), 1, NOW)
        data = {"ca-cert.pem": encoded(old.certificate.pem()), "ca-key.pem": encoded(old.key.pem().decode())}
        cluster.create(SECRETS, {
            "apiVersion": "v1", "kind": "Secret", "type": "istio.io/ca-root", "data": data,
            "metadata": {"name": "istio-ca-secret", "namespace": "istio-system"},
        })  # fmt: skip
        labels = {"app": "istiod", "istio.io/rev": "default"}
        cluster.create(DEPLOYMENTS, {
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "istiod", "namespace": "istio-system", "labels": labels},
            "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "discovery", "image": "docker.io/istio/pilot:1.30.1"}]},
            }},
        })  # fmt: skip
    yield running
    running.stop()


@pytest.fixture
def plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs `capstan plan ARGUMENTS` in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("CAPSTAN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")

    def run(running: Running, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("KUBECONFIG", str(running.server.kubeconfig))
        monkeypatch.setattr(sys, "argv", ["capstan", "plan", *arguments])
        with pytest.raises(SystemExit) as ended:
            capstan.cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


def steps(out: str) -> list[str]:
    return [step["name"] for step in json.loads(out)["steps"]]


OFFLINE = ("--system", "istio", "--offline-root")
ISSUE = ["issue/switch-issuer", "issue/restart-control-plane", "issue/await-leaves"]


def test_every_kind_that_can_be_rotated_can_be_planned() -> None:
    assert {kind_of(what) for _, what in _ROTATE} == {"anchor", "issuer", "re-date", "webhooks", "expired"}
    assert {what for _, what in _ROTATE} == set(What)


def test_without_a_kind_it_is_the_roots(plan: Callable[..., Any], linkerds: Running) -> None:
    code, out, _ = plan(linkerds, "-o", "json")
    assert code == 2
    assert steps(out)[:3] == ["prepare/mint", "trust/approve", "trust/widen-bundle"]
    for name in ("root", "anchor"):
        assert plan(linkerds, "--what", name, "-o", "json")[1] == out


def test_an_issuer_is_refused_as_its_rotation_would_be_where_nobody_can_sign_it(
    plan: Callable[..., Any], linkerds: Running, tmp_path: Path
) -> None:
    code, out, err = plan(linkerds, "--what", "issuer")
    assert (code, out) == (3, "")
    assert "the present root's key is not in the vault" in " ".join(err.split())
    assert not (tmp_path / "home").exists(), "the question has made a vault"


def test_an_issuer_alone_is_planned_with_its_one_phase_in_every_format(
    plan: Callable[..., Any], linkerds: Running, tmp_path: Path
) -> None:
    LocalVault(tmp_path / "home" / "vault").put("an-earlier-root", Material.of(ROOT), tags_of("linkerd", "earlier"))
    code, out, _ = plan(linkerds, "--what", "issuer", "-o", "json")
    told = json.loads(out)
    assert code == 2
    assert steps(out) == ["prepare/mint", "issue/approve", *ISSUE]
    assert told["decidedOn"]["kind"] == "issuer"
    assert told["decidedOn"]["old"] == [ISSUER.certificate.fingerprint]
    assert YAML(typ="safe").load(plan(linkerds, "--what", "issuer", "-o", "yaml")[1]) == told
    _, table, _ = plan(linkerds, "--what", "issuer")
    assert max(map(len, table.splitlines())) <= 100
    assert "a new rotation of the issuers" in table
    assert ISSUER.certificate.fingerprint[:16] in table
    assert "restart-data-plane" not in table
    assert told["digest"] in table


def test_an_issuer_under_an_offline_root_says_who_signs(plan: Callable[..., Any], linkerds: Running) -> None:
    code, out, _ = plan(linkerds, "--what", "issuer", "--offline-root")
    assert code == 2
    assert "signed by the offline root root.linkerd.cluster.local G1 (capstan sign)" in " ".join(out.split())


def test_an_issuer_that_is_the_root_itself_is_refused(plan: Callable[..., Any], linkerds: Running) -> None:
    with closing(linkerds.connect()) as cluster:
        write_issuer(cluster, ROOT.certificate, ROOT.key)
        try:
            code, _, err = plan(linkerds, "--what", "issuer")
        finally:
            write_issuer(cluster, ISSUER.certificate, ISSUER.key)
    assert code == 3
    assert "leaves are signed by the root itself" in " ".join(err.split())


def test_what_a_system_has_not_is_refused_with_what_it_has(plan: Callable[..., Any], linkerds: Running) -> None:
    code, _, err = plan(linkerds, "--what", "re-date")
    assert code == 1
    assert "no such rotation" in err


def test_a_rotation_under_way_is_shown_by_itself_and_refuses_another_kind_as_rotate_does(
    plan: Callable[..., Any], linkerds: Running
) -> None:
    old = ISSUER.certificate.fingerprint
    with closing(linkerds.connect()) as cluster:
        store = RecordStore(cluster, "busy")
        store.begin(
            RotationRecord(
                rotation_id="r-1", domain="busy", system="linkerd", started=NOW, kind="issuer",
                issuers_before={"cluster": old}, issuers={"cluster": "e" * 64}, new=ROOT.certificate.fingerprint,
                old=frozenset({ROOT.certificate.fingerprint}), notes={OLD_ROOTS: Bundle.of(ROOT.certificate).pem()},
            )
        )  # fmt: skip
    code, out, _ = plan(linkerds, "--domain", "busy")
    assert code == 2
    assert "rotation r-1 of the issuers" in out
    code, out, err = plan(linkerds, "--domain", "busy", "--what", "root")
    assert (code, out) == (1, "")
    assert "this rotation is of another kind" in err
    assert "rotation r-1 of the issuers alone, which is unfinished" in " ".join(err.split())


def test_istios_intermediate_is_planned_from_the_live_mesh(plan: Callable[..., Any], istios: Running) -> None:
    code, out, _ = plan(istios, *OFFLINE, "--what", "intermediate", "-o", "json")
    assert (code, steps(out)) == (2, ["prepare/mint", "issue/approve", *ISSUE])


def test_the_end_of_a_root_that_does_not_sign_is_refused(plan: Callable[..., Any], istios: Running) -> None:
    code, _, err = plan(istios, *OFFLINE, "--what", "re-date")
    assert code == 3
    assert "the self-signed root is not what signs here" in " ".join(err.split())


def test_the_end_of_a_self_signed_root_is_planned_in_two_steps_and_a_wait(
    plan: Callable[..., Any], self_signed: Running
) -> None:
    code, out, err = plan(self_signed, "--system", "istio", "--what", "re-date", "-o", "json")
    assert code == 2, err
    assert steps(out) == [
        "prepare/mint", "trust/approve", "trust/re-date-root", "trust/restart-control-plane", "trust/gate-trust",
    ]  # fmt: skip
    assert json.loads(out)["decidedOn"]["kind"] == "re-date"
    _, table, _ = plan(self_signed, "--system", "istio", "--what", "re-date")
    assert "a new rotation of the root's end" in table
    assert max(map(len, table.splitlines())) <= 100


def test_leaves_that_are_renewed_by_restarts_are_a_step_more(plan: Callable[..., Any], istios: Running) -> None:
    given = ("--what", "intermediate", "--leaf-renewal", "restart", "-o", "json")
    assert "issue/restart-data-plane" in steps(plan(istios, *OFFLINE, *given)[1])


def test_an_expired_issuer_is_planned_to_be_replaced_and_refuses_every_ordinary_rotation(
    plan: Callable[..., Any], linkerds: Running, tmp_path: Path
) -> None:
    LocalVault(tmp_path / "home" / "vault").put("an-earlier-root", Material.of(ROOT), tags_of("linkerd", "earlier"))
    ended = mint_issuer(
        IssuerPolicy("identity.linkerd.cluster.local", timedelta(days=1)), ROOT, NOW - timedelta(days=9)
    )
    with closing(linkerds.connect()) as cluster:
        write_issuer(cluster, ended.certificate, ended.key)
        try:
            code, out, err = plan(linkerds, "--what", "expired", "-o", "json")
            ordinary = [plan(linkerds, *what) for what in ((), ("--what", "root"), ("--what", "issuer"))]
        finally:
            write_issuer(cluster, ISSUER.certificate, ISSUER.key)
    assert code == 2, err
    assert json.loads(out)["decidedOn"]["kind"] == "expired"
    assert "issue/switch-issuer" in steps(out)
    for refused, _, why in ordinary:
        assert refused == 3
        assert "something has expired" in why
        assert "capstan rotate --system linkerd --what expired" in " ".join(why.split())
    code, _, err = plan(linkerds, "--what", "expired")
    assert code == 3
    assert "nothing has expired" in err


def test_nothing_is_written_by_any_plan(plan: Callable[..., Any], linkerds: Running) -> None:
    with closing(linkerds.connect()) as cluster:
        before = [cluster.list(each).resource_version for each in (CONFIG_MAPS, SECRETS, DEPLOYMENTS, NAMESPACES)]
        for what in ("root", "issuer", "webhooks", "expired"):
            plan(linkerds, "--what", what, "--offline-root")
        assert [
            cluster.list(each).resource_version for each in (CONFIG_MAPS, SECRETS, DEPLOYMENTS, NAMESPACES)
        ] == before
