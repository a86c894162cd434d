"""`capstan rollback --dry-run`: the way back from each phase, its end, its refusal; on what a control plane reads."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from ruamel.yaml import YAML

import capstan.cli
from capstan.cluster.record import RecordStore, RotationRecord
from capstan.cluster.resources import CONFIG_MAPS, SECRETS
from capstan.config import RotationPolicy
from capstan.pki.bundle import Bundle
from capstan.pki.mint import IssuerPolicy, RootPolicy, mint_issuer, mint_root
from capstan.rotation import material
from capstan.rotation.session import NEW_ROOT, OLD_ROOTS
from capstan.systems.base import IssuerMaterial
from capstan.vaults.base import ROTATION_TAG
from capstan.vaults.local import LocalVault
from tests.support.apiserver import Running
from tests.support.linkerd_objects import install, write_issuer, write_roots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from capstan.cluster.client import Cluster
    from capstan.cluster.record import Kind

NOW = datetime.now(UTC).replace(microsecond=0)
OLD = mint_root(RootPolicy("root.linkerd.cluster.local"), 1, NOW)
ISSUER = mint_issuer(IssuerPolicy("identity.linkerd.cluster.local"), OLD, NOW)
ID, CLUSTER, DOMAIN = "r-1", "cluster", "linkerd"
NAMES = {CLUSTER: "identity.linkerd.cluster.local"}


class Bench(NamedTuple):
    """A rotation whose objects are put where a phase has them."""

    cluster: Cluster
    vault: LocalVault
    target: material.Target
    kind: Kind

    def stand(self, trusted: str, signer: str, **record: Any) -> None:
        """Trust old, new or both; sign with old or new."""
        new = self.target.root
        roots = {"old": (OLD.certificate,), "both": (OLD.certificate, new), "new": (new,)}[trusted]
        write_roots(self.cluster, *roots)
        if signer == "old":
            write_issuer(self.cluster, ISSUER.certificate, ISSUER.key)
        else:
            kept = material.issuer_material(self.vault, self.target.references[f"issuer/{CLUSTER}"])
            write_issuer(self.cluster, kept.certificate, kept.key)
        store = RecordStore(self.cluster, DOMAIN)
        store.begin(
            RotationRecord(
                rotation_id=ID, domain=DOMAIN, system="linkerd", started=NOW, kind=self.kind,
                issuers_before={CLUSTER: ISSUER.certificate.fingerprint},
                issuers={CLUSTER: self.target.issuers[CLUSTER].fingerprint}, new=new.fingerprint,
                old=frozenset({OLD.certificate.fingerprint}),
                notes={OLD_ROOTS: Bundle.of(OLD.certificate).pem(), NEW_ROOT: new.pem()},
            )
        )  # fmt: skip
        store.update(lambda found: found.model_copy(update=record))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    api = Running(tmp_path_factory.mktemp("apiserver"))
    with closing(api.connect()) as cluster:
        install(cluster, OLD, ISSUER)
    yield api
    api.stop()


@pytest.fixture
def bench(running: Running, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    with closing(running.connect()) as cluster:
        vault = LocalVault(tmp_path / "home" / "vault")

        def made(kind: Kind = "anchor", *, backed_up: bool = True) -> Bench:
            common = {"domain": DOMAIN, "rotation": ID, "names": NAMES, "policy": RotationPolicy(), "now": NOW}
            if kind == "anchor":
                issuers = {CLUSTER: ISSUER.certificate}
                target = material.mint_target(vault, old=Bundle.of(OLD.certificate), issuers=issuers, **common)  # type: ignore[arg-type]  # by name
            else:
                target = material.mint_issuers(vault, OLD, **common)  # type: ignore[arg-type]  # by name
            if backed_up:
                present = IssuerMaterial.of(ISSUER)
                material.back_up_issuer(vault, domain=DOMAIN, rotation=ID, cluster=CLUSTER, present=present)
            return Bench(cluster, vault, target, kind)

        yield made
        cluster.delete(CONFIG_MAPS, f"capstan-rotation-{DOMAIN}", "capstan-system")


@pytest.fixture
def dry_run(
    running: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs `capstan rollback --dry-run ARGUMENTS` in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("CAPSTAN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KUBECONFIG", str(running.server.kubeconfig))
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["capstan", "rollback", "--dry-run", *arguments])
        with pytest.raises(SystemExit) as ended:
            capstan.cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


def pending(out: str) -> list[str]:
    """The steps that would change something, or ask somebody for a leaf."""
    waits = ("gate", "await")
    steps = json.loads(out)["plan"]["steps"]
    return [s["name"] for s in steps if not s["done"] and not s["name"].partition("/")[2].startswith(waits)]


PROBE = ["distrust/probe-refusal"]
NARROW = ["distrust/narrow-bundle", *PROBE]
SIGN = ["issue/switch-issuer", "issue/restart-control-plane"]
WAYS = {
    "prepare, nothing was changed": ("old", "old", PROBE),
    "trust, bundles widened": ("both", "old", [SIGN[1], *NARROW]),
    "issue, issuer switched": ("both", "new", [*SIGN, *NARROW]),
    "distrust, bundles narrowed": ("new", "new", ["trust/widen-bundle", *SIGN, *NARROW]),
}


@pytest.mark.parametrize(("trusted", "signer", "expected"), WAYS.values(), ids=WAYS.keys())
@pytest.mark.proves("faults", "roll-back", "a dry run shows the way back from each phase, and changes nothing")
def test_from_each_phase_it_shows_what_there_is_to_take_back_and_nothing_else(
    bench: Callable[..., Bench], dry_run: Callable[..., Any], trusted: str, signer: str, expected: list[str]
) -> None:
    made = bench()
    made.stand(trusted, signer)
    before = _versions(made.cluster)
    code, out, err = dry_run("-o", "json")
    assert code == 2, err
    assert pending(out) == expected
    assert json.loads(out)["plan"]["decidedOn"]["old"] == [made.target.root.fingerprint]
    assert json.loads(out)["plan"]["decidedOn"]["new"] == OLD.certificate.fingerprint
    assert YAML(typ="safe").load(dry_run("-o", "yaml")[1]) == json.loads(out)
    table = dry_run()[1]
    assert max(map(len, table.splitlines())) <= 100
    assert json.loads(out)["plan"]["digest"] in table
    assert _versions(made.cluster) == before


@pytest.mark.parametrize(("signer", "expected"), [("old", SIGN[1:]), ("new", SIGN)], ids=["prepared", "switched"])
def test_an_issuer_alone_is_taken_back_in_one_phase(
    bench: Callable[..., Bench], dry_run: Callable[..., Any], signer: str, expected: list[str]
) -> None:
    bench("issuer").stand("old", signer)
    code, out, err = dry_run("-o", "json")
    assert code == 2, err
    assert pending(out) == expected


@pytest.mark.proves("faults", "roll-back", "refused once the issuer there was before cannot be had any more")
@pytest.mark.parametrize("finished", [{}, {"finished": NOW, "outcome": "completed"}], ids=["under way", "completed"])
def test_once_the_issuer_of_before_is_gone_it_is_refused_with_what_remains(
    bench: Callable[..., Bench], dry_run: Callable[..., Any], finished: dict[str, Any]
) -> None:
    made = bench()
    (kept,) = [each for each in made.vault.find({ROTATION_TAG: ID}) if "previous-issuer" in each.name]
    made.vault.destroy(kept, "the retirement of the old root")
    made.stand("new", "new", **finished)
    code, out, err = dry_run()
    said = " ".join(err.split())
    assert (code, out) == (3, "")
    assert "there is no way back: the issuer before the rotation is not in the vault any more" in said
    assert f"cluster {CLUSTER}" in said
    assert f"rotation {ID}" in said
    assert "go on forward: finish this rotation with `capstan rotate`" in said


def test_a_rotation_that_was_rolled_back_has_nothing_left_to_do(
    bench: Callable[..., Bench], dry_run: Callable[..., Any]
) -> None:
    bench().stand("old", "old", direction="back", turn=2, finished=NOW, outcome="rolled back")
    code, out, _ = dry_run()
    assert (code, out.strip()) == (0, f"rotation {ID} is rolled back; there is nothing left to do")


def test_a_rotation_that_minted_nothing_would_only_be_ended(
    bench: Callable[..., Bench], dry_run: Callable[..., Any]
) -> None:
    bench().stand("old", "old", new="", issuers={})
    code, out, _ = dry_run()
    assert (code, out.strip()) == (2, f"rotation {ID} has changed nothing yet; a roll-back would only end it")


def test_another_id_than_the_one_there_is_is_refused(bench: Callable[..., Bench], dry_run: Callable[..., Any]) -> None:
    bench().stand("old", "old")
    code, _, err = dry_run("--rotation", "r-2")
    assert code == 1
    assert "there is no such rotation to roll back" in err


def _versions(cluster: Cluster) -> list[str]:
    return [each["metadata"]["resourceVersion"] for kind in (CONFIG_MAPS, SECRETS) for each in cluster.list(kind).items]
