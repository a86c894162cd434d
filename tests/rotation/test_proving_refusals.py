"""The proof at the end: what is presented to whom, what counts, and what an issuer that has ended leaves to prove."""

from __future__ import annotations

import itertools
from contextlib import closing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.record import RecordStore, RotationRecord
from capstan.config import RotationPolicy, TrustDomain
from capstan.errors import GateRefused, NotYet, VerificationFailed
from capstan.evidence import Evidence, signer_from_vault
from capstan.pki.bundle import Bundle
from capstan.pki.mint import IssuerPolicy, RootPolicy, mint_issuer, mint_root
from capstan.pki.verify import verify_leaf
from capstan.rotation import material
from capstan.rotation.proving import prove_refusal
from capstan.rotation.session import OLD_ROOTS, Rotation
from capstan.systems.base import IssuerMaterial, Probe, ProbeReport, Verdict
from capstan.vaults.opening import open_vault
from tests.support.apiserver import Running
from tests.trust.domains import NOW

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from capstan.pki.keys import PrivateKey

DAY = timedelta(days=1)
OLD = mint_root(RootPolicy(common_name="root"), 1, NOW - 30 * DAY)
BEFORE = mint_issuer(IssuerPolicy("identity.linkerd.cluster.local", 32 * DAY), OLD, NOW - 30 * DAY)
_names = itertools.count(1)


class Mesh:
    """Live proxies that judge what is presented to them by the roots they hold."""

    cluster_name = "east"

    def __init__(self) -> None:
        self.time = NOW
        self.trusts = Bundle.of(OLD.certificate)
        self.answering = [2, 2]  # proxies that are found by the first look for them, and by the second
        self.asked: list[str] = []

    def now(self) -> datetime:
        return self.time

    def probe_identity(self, domain: str) -> str:
        return f"capstan-probe.{domain}.example"

    def probe(self, chain_pem: bytes, key: PrivateKey) -> ProbeReport:
        leaf, *others = Bundle.parse(chain_pem.strip(), "what was presented").certificates
        assert leaf.key_matches(key)
        self.asked.append(others[0].fingerprint)
        try:
            verify_leaf(leaf, others, self.trusts, self.time)
        except VerificationFailed:
            verdict = Verdict.REFUSED
        else:
            verdict = Verdict.ACCEPTED
        found = self.answering[min(len(self.asked), len(self.answering)) - 1]
        return ProbeReport(tuple(Probe(f"east/app/web-{n}", verdict) for n in range(found)))


@pytest.fixture(scope="module")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


@pytest.fixture
def rotation(apiserver: Running, mesh: Mesh, tmp_path: Path) -> Iterator[Rotation]:
    """A rotation whose issuer was switched and whose bundles were narrowed: only the proof is left."""
    domain = TrustDomain(name=f"p-{next(_names)}", home=str(tmp_path))
    vault = open_vault(f"local:{tmp_path / 'vault'}")
    with closing(apiserver.connect()) as connection:
        store = RecordStore(connection, domain.name)
        old = frozenset({OLD.certificate.fingerprint})
        notes = {OLD_ROOTS: Bundle.of(OLD.certificate).pem()}
        store.begin(
            RotationRecord(rotation_id="r", domain=domain.name, system="linkerd", started=NOW, old=old, notes=notes)
        )
        account = Evidence.open(tmp_path / "account.jsonl", signer_from_vault(vault), "r", clock=mesh.now)
        systems: Any = {"east": mesh}
        opened = Rotation(
            domain, "r", systems, {"east": store}, vault, account,
            resumed=False, requests=lambda: 0, now=mesh.now, sleep=lambda _: None,
        )  # fmt: skip
        opened.target = material.mint_target(
            vault, domain=domain.name, rotation="r", old=Bundle.of(OLD.certificate),
            issuers={"east": BEFORE.certificate}, names={"east": "identity.linkerd.cluster.local"},
            policy=RotationPolicy(), now=NOW,
        )  # fmt: skip
        material.back_up_issuer(
            vault, domain=domain.name, rotation="r", cluster="east", present=IssuerMaterial.of(BEFORE)
        )
        mesh.trusts = Bundle.of(opened.target.root)
        yield opened


def told(rotation: Rotation) -> dict[str, Any]:
    return dict(next(entry.body for entry in reversed(rotation.evidence.entries) if entry.kind == "probe"))


def test_the_old_issuers_leaf_is_refused_and_the_new_ones_taken_by_every_live_proxy(
    rotation: Rotation, mesh: Mesh
) -> None:
    prove_refusal(rotation)
    assert rotation.old_root_refused
    assert mesh.asked == [BEFORE.certificate.fingerprint, rotation.required_target().issuers["east"].fingerprint]
    assert (told(rotation)["asked"], told(rotation)["wrong"]) == (2, [])


def test_a_proxy_that_takes_the_old_issuers_leaf_is_named(rotation: Rotation, mesh: Mesh) -> None:
    mesh.trusts = mesh.trusts.union(Bundle.of(OLD.certificate))
    with pytest.raises(GateRefused, match="judge the roots wrongly") as refused:
        prove_refusal(rotation)
    assert "web-0 accepted a leaf of the old root" in refused.value.observed
    assert rotation.old_root_refused is False


@pytest.mark.parametrize("answering", [[0, 2], [2, 0], [0, 0]])
def test_nobody_who_answers_is_no_proof_whichever_leaf_it_was(
    rotation: Rotation, mesh: Mesh, answering: list[int]
) -> None:
    mesh.answering = answering
    with pytest.raises(NotYet):
        prove_refusal(rotation)
    assert rotation.old_root_refused is None


def test_an_old_issuer_that_ended_before_the_proof_keeps_no_rotation_from_its_end(
    rotation: Rotation, mesh: Mesh
) -> None:
    """The approval of the last phase may take longer than what was rotated because its end came near."""
    mesh.time = BEFORE.certificate.not_after + DAY
    prove_refusal(rotation)
    assert rotation.old_root_refused
    assert mesh.asked == [rotation.required_target().issuers["east"].fingerprint]
    assert "ended" in told(rotation)["not_presented"]


def test_an_issuer_that_is_to_stay_and_has_ended_is_called_that(rotation: Rotation, mesh: Mesh) -> None:
    mesh.time = rotation.required_target().issuers["east"].not_after + DAY
    with pytest.raises(GateRefused, match="the issuer that is to stay has ended"):
        prove_refusal(rotation)
