"""A gate is watched by glances, and opened, refused or given up by nothing but a look in which everybody was read."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.record import RecordStore, RotationRecord
from capstan.config import TrustDomain
from capstan.errors import GateTimedOut
from capstan.evidence import Evidence, signer_from_vault
from capstan.pki.bundle import Bundle
from capstan.pki.mint import RootPolicy, mint_root
from capstan.rotation.session import OLD_ROOTS, Rotation
from capstan.rotation.waiting import watch_gate
from capstan.systems.glancing import glance
from capstan.trust.phase import Phase
from capstan.vaults.opening import open_vault
from tests.support.apiserver import Running
from tests.trust.domains import NEW, NOW, cluster, only, peer, settled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime
    from pathlib import Path

    from capstan.pki.inspect import Certificate
    from capstan.trust.observation import ClusterObservation

ROOT = mint_root(RootPolicy(common_name="root"), 1, NOW).certificate
OLD = ROOT.fingerprint
BOTH = only(OLD, NEW)
MINUTE = timedelta(minutes=1)


class Remembering:
    """A trust system whose glances tell what a test says, and whose looks tell what is true.

    Attributes:
        looks: Of each observation, whether it was a glance.
    """

    cluster_name = "east"

    def __init__(self, truth: list[tuple[datetime, ClusterObservation]], glances: ClusterObservation) -> None:
        self.time = NOW
        self.truth = truth
        self.told = glances
        self.looks: list[bool] = []
        self.from_memory = 0
        self.known: dict[str, Certificate] = {}
        self._glancing = False

    def now(self) -> datetime:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)

    @contextmanager
    def glancing(self) -> Iterator[None]:
        self._glancing = True
        yield
        self._glancing = False

    def observe(self, known: Iterable[Certificate] = ()) -> ClusterObservation:
        self.known = {each.fingerprint: each for each in known}
        self.looks.append(self._glancing)
        self.from_memory = 3 if self._glancing else 0
        return self.told if self._glancing else [found for since, found in self.truth if since <= self.time][-1]

    def certificates(self) -> dict[str, Certificate]:
        return self.known


@pytest.fixture(scope="module")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


def opened(apiserver: Running, system: Remembering, home: Path) -> Rotation:
    domain = TrustDomain(name=home.name.replace("_", "-")[:40].strip("-"), home=str(home))
    store = RecordStore(apiserver.connect(), domain.name)
    record = RotationRecord(rotation_id="r", domain=domain.name, system="linkerd", started=NOW, new=NEW)
    store.begin(record.model_copy(update={"old": only(OLD), "notes": {OLD_ROOTS: Bundle.of(ROOT).pem()}}))
    vault = open_vault(f"local:{home / 'vault'}")
    account = Evidence.open(home / "account.jsonl", signer_from_vault(vault), "r", clock=system.now)
    systems: Any = {"east": system}
    return Rotation(
        domain, "r", systems, {"east": store}, vault, account,
        resumed=False, requests=lambda: 0, now=system.now, sleep=system.sleep,
    )  # fmt: skip


def half_trusting() -> ClusterObservation:
    late = peer("late-1", trusts=only(OLD), anchors=only(OLD), owner="late")
    return cluster([peer(trusts=BOTH, anchors=only(OLD)), late], bundle=BOTH, issuer=only(OLD))


def test_a_glance_that_sees_everybody_arrived_opens_nothing_before_a_look_has_seen_it(apiserver, tmp_path):
    ready = NOW + 10 * MINUTE
    system = Remembering([(NOW, half_trusting()), (ready, settled(BOTH, OLD))], glances=settled(BOTH, OLD))
    look = watch_gate(opened(apiserver, system, tmp_path), Phase.ISSUE)
    assert look.open
    assert system.time >= ready
    assert system.looks[-1] is False, "a glance opened the gate"
    # Each glance said that all were there, and each was followed by a look that said they were not.
    assert system.looks[:3] == [False, True, False]


def test_while_glances_see_somebody_missing_nobody_else_is_asked(apiserver, tmp_path):
    system = Remembering([(NOW, half_trusting())], glances=half_trusting())
    look = watch_gate(opened(apiserver, system, tmp_path), Phase.ISSUE, 5 * MINUTE)
    assert not look.open
    assert any("late-1" in name for name in look.waiting_for)
    assert system.looks[0] is False
    assert all(system.looks[1:])


def test_a_wait_that_ends_in_vain_names_who_was_missing_when_everybody_was_read(apiserver, tmp_path):
    missing = peer("other-1", trusts=only(OLD), anchors=only(OLD), owner="other")
    truth = cluster([peer(trusts=BOTH, anchors=only(OLD)), missing], bundle=BOTH, issuer=only(OLD))
    system = Remembering([(NOW, half_trusting()), (NOW + MINUTE, truth)], glances=half_trusting())
    with pytest.raises(GateTimedOut) as caught:
        watch_gate(opened(apiserver, system, tmp_path), Phase.ISSUE)
    assert system.looks[-1] is False
    assert "other-1" in str(caught.value.stragglers)
    assert "late-1" not in str(caught.value.stragglers)


def test_a_glance_that_another_watch_has_left_behind_opens_nothing_either(apiserver, tmp_path):
    system = Remembering([(NOW, half_trusting())], glances=half_trusting())
    rotation = opened(apiserver, system, tmp_path)
    assert not watch_gate(rotation, Phase.ISSUE, MINUTE).open
    assert system.looks[-1] is True
    system.told = settled(BOTH, OLD)
    glance([system], rotation.observe)  # seconds old when the next watch begins
    look = watch_gate(rotation, Phase.ISSUE, MINUTE)
    assert not look.open
    assert any("late-1" in name for name in look.waiting_for)
