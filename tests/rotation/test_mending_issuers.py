"""A wrong issuer in the middle of a rotation: which good one is put back, what is said, and that it then stops."""

from __future__ import annotations

import itertools
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.record import RecordStore, RotationRecord
from capstan.config import RotationPolicy, TrustDomain
from capstan.errors import GateRefused, IssuerNotTaken
from capstan.evidence import Evidence, signer_from_vault
from capstan.pki.bundle import Bundle
from capstan.pki.mint import IssuerPolicy, RootPolicy, mint_issuer, mint_root
from capstan.rotation import material
from capstan.rotation.changing import restart_control_plane
from capstan.rotation.mending import require_signing
from capstan.rotation.session import OLD_ROOTS, Rotation
from capstan.rotation.waiting import watch_gate
from capstan.systems.base import Change, IssuerMaterial
from capstan.trust.observation import Issuer
from capstan.trust.phase import Phase
from capstan.vaults.opening import open_vault
from tests.support.apiserver import Running
from tests.trust.domains import NOW, cluster, only, peer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from capstan.trust.observation import ClusterObservation

OLD = mint_root(RootPolicy(common_name="root"), 1, NOW - timedelta(days=30))
PRESENT = mint_issuer(IssuerPolicy(common_name="identity.linkerd.cluster.local"), OLD, NOW - timedelta(days=30))
NAMES = {"east": "identity.linkerd.cluster.local"}
FAULT = "secret linkerd/linkerd-identity-issuer: the issuer's key is RSA 2048; last written by kubectl"
_names = itertools.count(1)


class Mesh:
    """A trust system whose one Secret anybody may write: who holds what, by fingerprints."""

    cluster_name = "east"

    def __init__(self) -> None:
        self.issuer = PRESENT.certificate.fingerprint
        self.anchors = only(OLD.certificate.fingerprint)
        self.roots: frozenset[str] = only(OLD.certificate.fingerprint)
        self.faults: tuple[str, ...] = ()
        self.written: list[str] = []
        self.not_taken: IssuerNotTaken | None = None
        self.refusal: GateRefused | None = None

    def observe(self, known: object = ()) -> ClusterObservation:
        seen = cluster([peer(trusts=self.roots, anchors=self.roots)], bundle=self.roots)
        issuer = Issuer(self.issuer, self.anchors, NOW + timedelta(days=300))
        return replace(seen, issuer=issuer, signing_faults=self.faults)

    def certificates(self) -> dict[str, Any]:
        return {}

    def ensure_issuer(self, issuer: IssuerMaterial) -> tuple[Change, ...]:
        if self.refusal is not None:
            raise self.refusal
        before, after = self.issuer, issuer.certificate.fingerprint
        self.written.append(after)
        self.issuer, self.faults, self.anchors = after, (), self.roots
        return (Change("secret linkerd/linkerd-identity-issuer", (before,), (after,), True, "1", "2", "other"),)

    def restart_signers(self, stamp: str, **_: object) -> Any:
        assert stamp
        if self.not_taken is not None:
            raise self.not_taken
        raise AssertionError("these tests restart nobody")

    def restart_control_plane(self, roots: frozenset[str], stamp: str, **more: object) -> Any:
        assert roots
        return self.restart_signers(stamp, **more)


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
    """One that has switched its issuer: everybody holds both roots, and the issuer of before is in the vault."""
    domain = TrustDomain(name=f"m-{next(_names)}", home=str(tmp_path))
    vault = open_vault(f"local:{tmp_path / 'vault'}")
    target = material.mint_target(
        vault, domain=domain.name, rotation="r", old=Bundle.of(OLD.certificate), policy=RotationPolicy(),
        issuers={"east": PRESENT.certificate}, names=NAMES, now=NOW,
    )  # fmt: skip
    present = IssuerMaterial.of(PRESENT)
    material.back_up_issuer(vault, domain=domain.name, rotation="r", cluster="east", present=present)
    with closing(apiserver.connect()) as connection:
        store = RecordStore(connection, domain.name)
        notes = {OLD_ROOTS: Bundle.of(OLD.certificate).pem()}
        store.begin(
            RotationRecord(
                rotation_id="r", domain=domain.name, system="linkerd", started=NOW, notes=notes,
                old=only(OLD.certificate.fingerprint), new=target.root.fingerprint,
            )
        )  # fmt: skip
        account = Evidence.open(tmp_path / "account.jsonl", signer_from_vault(vault), "r", clock=lambda: NOW)
        systems: Any = {"east": mesh}
        opened = Rotation(
            domain, "r", systems, {"east": store}, vault, account,
            resumed=False, requests=lambda: 0, now=lambda: NOW, sleep=lambda _seconds: None,
        )  # fmt: skip
        opened.target = target
        mesh.roots = only(OLD.certificate.fingerprint, target.root.fingerprint)
        mesh.issuer, mesh.anchors = target.issuers["east"].fingerprint, only(target.root.fingerprint)
        yield opened


def ours(rotation: Rotation) -> str:
    return rotation.required_target().issuers["east"].fingerprint


def noted(rotation: Rotation) -> list[dict[str, Any]]:
    return [entry.body for entry in rotation.evidence.entries if entry.kind == "issuer-put-back"]


@pytest.mark.proves("identity", "IssuerUpdateSkipped", "the rotation stops, and the issuer of before is put back")
def test_an_issuer_that_a_replica_skips_gives_way_to_the_one_of_before(rotation: Rotation, mesh: Mesh) -> None:
    mesh.not_taken = IssuerNotTaken(
        "1 identity replica(s) do not take the issuer", observed="replica identity-1: Skipping issuer update",
        next_command="kubectl rollout restart deployment/linkerd-identity -n linkerd",
    )  # fmt: skip
    with pytest.raises(IssuerNotTaken) as stopped:
        restart_control_plane(rotation, "east", Phase.ISSUE)
    before = PRESENT.certificate.fingerprint
    assert mesh.written == [before]
    assert "replica identity-1: Skipping issuer update" in stopped.value.observed
    assert f"the issuer of before ({before[:16]}) was put back" in stopped.value.observed
    assert stopped.value.next_command.startswith("kubectl rollout restart")
    assert [(entry["before"], entry["after"]) for entry in noted(rotation)] == [([ours(rotation)], [before])]


@pytest.mark.proves("identity", "foreign writer", "found before a restart: the rotation's own issuer is put back")
@pytest.mark.parametrize("phase", [Phase.ISSUE, Phase.DISTRUST], ids=lambda phase: phase.value)
@pytest.mark.parametrize("how", ["another certificate", "another key"])
def test_where_somebody_else_wrote_the_rotations_own_issuer_is_put_back(
    rotation: Rotation, mesh: Mesh, how: str, phase: Phase
) -> None:
    wanted = ours(rotation)
    if how == "another certificate":
        mesh.issuer = "f" * 64
    mesh.faults = (FAULT,)
    mesh.not_taken = IssuerNotTaken("identity would not sign with the issuer it was given", observed=FAULT)
    with pytest.raises(IssuerNotTaken) as stopped:
        restart_control_plane(rotation, "east", phase)
    assert mesh.written == [wanted]
    assert f"the rotation's own issuer ({wanted[:16]}) was put back" in stopped.value.observed
    assert "kubectl" in stopped.value.observed


@pytest.mark.proves("identity", "foreign writer", "found while leaves renew: put back at once, and the wait ends")
def test_a_wait_for_leaves_ends_when_somebody_replaces_the_issuer_by_one_that_cannot_sign(
    rotation: Rotation, mesh: Mesh
) -> None:
    wanted = ours(rotation)
    mesh.issuer, mesh.faults = "f" * 64, (FAULT,)
    with pytest.raises(GateRefused) as stopped:
        watch_gate(rotation, Phase.DISTRUST)
    assert stopped.value.what == "the issuer of 1 cluster(s) was replaced by one that cannot sign"
    assert FAULT in stopped.value.observed
    assert mesh.written == [wanted]
    assert mesh.issuer == wanted
    assert "then go on from here: capstan rotate" in stopped.value.next_command


@pytest.mark.proves("identity", "foreign writer", "one that chains to nothing is put right as well")
def test_an_issuer_that_chains_to_nothing_is_put_right_while_leaves_renew(rotation: Rotation, mesh: Mesh) -> None:
    mesh.issuer, mesh.anchors = "f" * 64, frozenset()
    with pytest.raises(GateRefused, match="replaced by one that cannot sign"):
        require_signing(rotation, Phase.DISTRUST, rotation.observe())
    assert mesh.written == [ours(rotation)]


def test_before_the_switch_is_approved_again_the_issuer_of_before_is_put_back(rotation: Rotation, mesh: Mesh) -> None:
    mesh.faults = (FAULT,)
    with pytest.raises(GateRefused, match="replaced by one that cannot sign"):
        require_signing(rotation, Phase.ISSUE, rotation.observe())
    assert mesh.written == [PRESENT.certificate.fingerprint]


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.TRUST], ids=lambda phase: phase.value)
def test_before_the_switch_nothing_is_vouched_for_and_the_gate_alone_refuses(
    rotation: Rotation, mesh: Mesh, phase: Phase
) -> None:
    mesh.issuer, mesh.anchors, mesh.faults = PRESENT.certificate.fingerprint, mesh.roots, (FAULT,)
    require_signing(rotation, phase, rotation.observe())
    with pytest.raises(GateRefused) as stopped:
        watch_gate(rotation, phase)
    assert f"east: {FAULT}" in stopped.value.observed
    assert mesh.written == []


def test_before_the_switch_a_restart_that_is_refused_puts_nothing_back(rotation: Rotation, mesh: Mesh) -> None:
    mesh.faults = (FAULT,)
    mesh.not_taken = IssuerNotTaken("identity would not sign with the issuer it was given", observed=FAULT)
    with pytest.raises(IssuerNotTaken) as stopped:
        restart_control_plane(rotation, "east", Phase.TRUST)
    assert stopped.value.observed == FAULT
    assert mesh.written == []


def test_a_foreign_issuer_that_works_is_not_fought_over(rotation: Rotation, mesh: Mesh) -> None:
    mesh.issuer, mesh.anchors = "f" * 64, only(OLD.certificate.fingerprint)
    require_signing(rotation, Phase.DISTRUST, rotation.observe())
    assert mesh.written == []


def test_what_cannot_be_put_back_is_said_and_the_first_error_stays(rotation: Rotation, mesh: Mesh) -> None:
    mesh.not_taken = IssuerNotTaken("1 identity replica(s) do not take the issuer", observed="replica identity-1")
    mesh.refusal = GateRefused("2 live peers would not trust this issuer", observed="east/shop/web-1")
    with pytest.raises(IssuerNotTaken) as stopped:
        restart_control_plane(rotation, "east", Phase.ISSUE)
    assert stopped.value.what == "1 identity replica(s) do not take the issuer"
    assert "could not be put back: 2 live peers would not trust this issuer" in stopped.value.observed
    assert noted(rotation) == []
