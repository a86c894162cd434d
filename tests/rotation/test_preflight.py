"""What preflight refuses, at the beginning and where a rotation was killed in the middle of its own change."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.record import RecordStore, RotationRecord
from capstan.config import TrustDomain
from capstan.errors import GateRefused
from capstan.evidence import Evidence, signer_from_vault
from capstan.pki.bundle import Bundle
from capstan.pki.mint import RootPolicy, mint_root
from capstan.rotation.preparing import PATIENCE, RESUMED_PATIENCE, preflight
from capstan.rotation.session import OLD_ROOTS, Rotation
from capstan.systems.base import CheckResult, Severity, Status
from capstan.vaults.opening import open_vault
from tests.support.apiserver import Running
from tests.trust.domains import NEW, NOW, only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROOT = mint_root(RootPolicy(common_name="root"), 1, NOW).certificate
OLD = ROOT.fingerprint
FOREIGN = "f" * 64

_names = itertools.count(1)


def failing(lagging: frozenset[str] | None, level: Severity = Severity.ERROR) -> CheckResult:
    return CheckResult("istio", "every istiod hands out the roots", "https://hint", level, Status.ERROR, "no", lagging)


class Mesh:
    """A trust system whose checks say, from each moment on, what they are told to."""

    cluster_name = "east"

    def __init__(self) -> None:
        self.time = NOW
        self.said: list[tuple[datetime, tuple[CheckResult, ...]]] = []

    def now(self) -> datetime:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)

    def checks(self, *, now: datetime) -> tuple[CheckResult, ...]:
        return [found for since, found in self.said if since <= now][-1]


@pytest.fixture(scope="module")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


@pytest.fixture
def opened(apiserver: Running, mesh: Mesh, tmp_path: Path) -> Iterator[Callable[[str], Rotation]]:
    """A rotation that has minted this root; an empty name: none yet."""
    connection = apiserver.connect()

    def made(new: str) -> Rotation:
        domain = TrustDomain(name=f"preflight-{next(_names)}", home=str(tmp_path))
        store = RecordStore(connection, domain.name)
        record = RotationRecord(rotation_id="r", domain=domain.name, system="istio", started=NOW, new=new)
        store.begin(record.model_copy(update={"old": only(OLD), "notes": {OLD_ROOTS: Bundle.of(ROOT).pem()}}))
        vault = open_vault(f"local:{tmp_path / 'vault'}")
        account = Evidence.open(tmp_path / "account.jsonl", signer_from_vault(vault), "r", clock=mesh.now)
        systems: Any = {"east": mesh}
        return Rotation(
            domain, "r", systems, {"east": store}, vault, account,
            resumed=bool(new), requests=lambda: 0, now=mesh.now, sleep=mesh.sleep,
        )  # fmt: skip

    yield made
    connection.close()


def test_a_rotation_killed_between_a_write_and_its_taking_over_is_gone_on_with(
    opened: Callable[[str], Rotation], mesh: Mesh
) -> None:
    mesh.said = [(NOW, (failing(only(OLD)), failing(only(OLD, NEW)), failing(frozenset(), Severity.FATAL)))]
    preflight(opened(NEW))
    assert mesh.now() == NOW  # at once: nothing but its own steps would change it


@pytest.mark.parametrize("lagging", [only(OLD, FOREIGN), only(FOREIGN), None], ids=["one-more", "foreign", "no-lag"])
def test_what_the_rotation_did_not_bring_about_is_refused_however_far_it_is(
    opened: Callable[[str], Rotation], mesh: Mesh, lagging: frozenset[str] | None
) -> None:
    mesh.said = [(NOW, (failing(lagging),))]
    with pytest.raises(GateRefused, match="every istiod hands out the roots"):
        preflight(opened(NEW))
    assert mesh.now() - NOW == timedelta(seconds=RESUMED_PATIENCE)


def test_before_anything_was_minted_a_reader_that_lags_is_refused(
    opened: Callable[[str], Rotation], mesh: Mesh
) -> None:
    mesh.said = [(NOW, (failing(only(OLD)),))]
    with pytest.raises(GateRefused, match="1 preflight checks failed"):
        preflight(opened(""))
    assert mesh.now() - NOW == timedelta(seconds=PATIENCE)


def test_a_rollout_that_the_rotation_began_may_end_before_it_is_refused(
    opened: Callable[[str], Rotation], mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    later = NOW + timedelta(seconds=RESUMED_PATIENCE / 2)
    mesh.said = [(NOW, (failing(None),)), (later, ())]
    with caplog.at_level("INFO"):
        preflight(opened(NEW))
    assert mesh.now() == later
    assert [r.getMessage().strip() for r in caplog.records if "looking again" in r.getMessage()] == [
        "looking again for up to 60 s: east fails: every istiod hands out the roots"
    ]
