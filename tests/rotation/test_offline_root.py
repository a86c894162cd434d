"""A root that is kept offline: requests, what is believed of what comes back, and runs that die in between."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from capstan.cluster.record import Kind, RecordStore, RotationRecord
from capstan.config import RotationPolicy, System, TrustDomain
from capstan.errors import (
    ApprovalRequired,
    GateRefused,
    InvalidCertificate,
    InvalidInput,
    InvalidPem,
    VerificationFailed,
)
from capstan.evidence import Evidence, signer_from_vault
from capstan.pki.bundle import Bundle
from capstan.pki.csr import sign_request
from capstan.pki.inspect import Certificate
from capstan.pki.keys import PrivateKey
from capstan.pki.mint import IssuerPolicy, Minted, RootPolicy, mint_issuer, mint_root
from capstan.rotation import offline
from capstan.rotation.material import Target, issuer_material, secret_name, tags_of
from capstan.rotation.preparing import mint
from capstan.rotation.session import NEW_ROOT, OLD_ROOTS, Rotation
from capstan.trust.observation import Issuer
from capstan.vaults.local import LocalVault
from capstan.vaults.material import Material
from flows.offline import Wanted, chain_of, form, have_signed
from tests.pki.ca import make
from tests.support.apiserver import Running
from tests.trust.domains import NOW, cluster, only

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from capstan.trust.observation import ClusterObservation

OLD = mint_root(RootPolicy("mesh root"), 1, NOW)
PRESENT = mint_issuer(IssuerPolicy("Istio CA"), OLD, NOW)
OFFLINE = mint_root(RootPolicy("offline root"), 1, NOW)


class Mesh:
    """A trust system that only can be looked at."""

    def __init__(self, name: str) -> None:
        self.cluster_name = name

    def observe(self, known: object = ()) -> ClusterObservation:
        del known
        seen = cluster([], name=self.cluster_name, bundle=only(OLD.certificate.fingerprint))
        issuer = Issuer(PRESENT.certificate.fingerprint, only(OLD.certificate.fingerprint), NOW + timedelta(days=300))
        return replace(seen, issuer=issuer, leaf_lifetime=86400.0)

    def certificates(self) -> Mapping[str, Certificate]:
        return {each.certificate.fingerprint: each.certificate for each in (OLD, PRESENT)}


@pytest.fixture(scope="module")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


_names = itertools.count(1)


class Bench:
    """One rotation's record, vault and home; each `opened` is a new process."""

    def __init__(self, apiserver: Running, home: Path) -> None:
        self.domain = TrustDomain(
            name=f"o-{next(_names)}", system=System.ISTIO, home=str(home), policy=RotationPolicy(offline_root=True)
        )
        self.connection = apiserver.connect()
        self.vault = LocalVault(home / "vault")
        self.store = RecordStore(self.connection, self.domain.name)
        self.home = home

    def opened(self, kind: Kind = "anchor", *clusters: str) -> Rotation:
        names = clusters or ("east",)
        before = dict.fromkeys(names, PRESENT.certificate.fingerprint)
        record = RotationRecord(
            rotation_id="r", domain=self.domain.name, system="istio", started=NOW, kind=kind, issuers_before=before,
            old=only(OLD.certificate.fingerprint), notes={OLD_ROOTS: Bundle.of(OLD.certificate).pem()},
        )  # fmt: skip
        self.store.begin(record)
        account = Evidence.open(self.home / "account.jsonl", signer_from_vault(self.vault), "r", clock=lambda: NOW)
        systems: Any = {name: Mesh(name) for name in names}
        return Rotation(
            self.domain, "r", systems, dict.fromkeys(names, self.store), self.vault, account,
            resumed=False, requests=lambda: 0, now=lambda: NOW, sleep=lambda _: None, kind=kind, issuers_before=before,
        )  # fmt: skip


@pytest.fixture
def bench(apiserver: Running, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(apiserver, tmp_path)
    yield made
    made.connection.close()


def signed(asked: offline.Asked, root: Minted = OFFLINE, days: int = 90) -> Certificate:
    return sign_request(root, asked.request, IssuerPolicy("x", validity=timedelta(days=days)), NOW)


def pem(*certificates: Certificate) -> str:
    return "\n".join(each.pem() for each in certificates) + "\n"


def test_a_request_is_made_once_and_is_the_same_for_every_run_that_asks(bench: Bench) -> None:
    (first,) = offline.request_signing(bench.opened())
    (again,) = offline.request_signing(bench.opened())
    assert first.request.pem() == again.request.pem() == first.path.read_text()
    assert first.request.common_name == "Istio CA"
    (kept,) = bench.vault.find({}, secret_name(bench.domain.name, "request-east"))
    assert kept.fingerprint == first.request.spki_sha256


def test_what_the_offline_root_signed_becomes_the_rotations_goal_and_its_key_is_nowhere(bench: Bench) -> None:
    rotation = bench.opened()
    asked = offline.request_signing(rotation)
    issuer = signed(asked[0])
    offline.accept_signed(rotation, asked, pem(issuer, OFFLINE.certificate), "chain.pem")
    target = rotation.required_target()
    assert (target.root, target.issuers) == (OFFLINE.certificate, {"east": issuer})
    material = issuer_material(bench.vault, target.references["issuer/east"])
    assert material.certificate == issuer
    assert issuer.key_matches(material.key)
    record = rotation.record()
    assert (record.new, record.issuers) == (OFFLINE.certificate.fingerprint, {"east": issuer.fingerprint})
    held = [bench.vault.get(reference) for reference in bench.vault.list()]
    root_key = OFFLINE.key.pem().decode()
    assert not [each for each in held if root_key in each.unsafe_text()]


def test_a_run_that_died_after_it_was_signed_asks_nobody_again(bench: Bench) -> None:
    rotation = bench.opened()
    asked = offline.request_signing(rotation)
    offline.accept_signed(rotation, asked, pem(signed(asked[0]), OFFLINE.certificate), "chain.pem")
    later = bench.opened()
    assert offline.recall_signed(later)
    assert later.required_target().root == OFFLINE.certificate


def test_a_run_that_died_between_the_root_and_the_last_issuer_asks_again_and_takes_the_same_chain(bench: Bench) -> None:
    rotation = bench.opened("anchor", "east", "west")
    asked = offline.request_signing(rotation)
    issuers = [signed(each) for each in asked]
    root = OFFLINE.certificate
    rotation.remember(lambda record: record.model_copy(update={"notes": {**record.notes, NEW_ROOT: root.pem()}}))
    assert not offline.recall_signed(bench.opened("anchor", "east", "west"))
    offline.accept_signed(rotation, asked, pem(*issuers, root), "chain.pem")
    assert dict(rotation.required_target().issuers) == {"east": issuers[0], "west": issuers[1]}


def stranger() -> Certificate:
    return mint_issuer(IssuerPolicy("somebody else"), OFFLINE, NOW).certificate


SAME_NAME = mint_root(RootPolicy("mesh root"), 1, NOW)


@pytest.mark.parametrize(
    ("brought", "error", "said"),
    [
        (lambda _: "no pem at all", InvalidPem, "PEM"),
        (lambda _: "x" * 300_000, InvalidInput, "no signed chain"),
        (lambda _: pem(stranger(), OFFLINE.certificate), InvalidInput, "is not answered"),
        (lambda a: pem(signed(a)), InvalidInput, "lacks its root"),
        (lambda a: pem(signed(a), SAME_NAME.certificate), VerificationFailed, ""),
        (lambda a: pem(signed(a, OLD), OLD.certificate), InvalidCertificate, "not a new one"),
        (lambda a: pem(signed(a, SAME_NAME), SAME_NAME.certificate), InvalidCertificate, "not a new one"),
        (lambda a: pem(signed(a, days=1), OFFLINE.certificate), InvalidCertificate, "ends too soon"),
    ],
    ids=["text", "size", "stranger", "no root", "other root", "old root", "same name", "short"],
)
def test_what_cannot_be_rotated_to_is_refused_and_leaves_nothing(
    bench: Bench, brought: Any, error: type[Exception], said: str
) -> None:
    rotation = bench.opened()
    asked = offline.request_signing(rotation)
    with pytest.raises(error) as refused:
        offline.accept_signed(rotation, asked, brought(asked[0]), "chain.pem")
    assert said in str(refused.value)
    assert rotation.target is None
    assert not offline.recall_signed(bench.opened())
    assert not bench.vault.find({}, secret_name(bench.domain.name, "issuer-east"))


def test_a_root_without_a_key_usage_signs_as_well_for_openssl_makes_none_unless_it_is_told_to(bench: Bench) -> None:
    """`openssl req -x509` by its own configuration: every proxy takes such a root, and nobody can make it anew."""
    made = make("corporate root", key_usage=False, end=NOW + timedelta(days=3650))
    corporate = Minted(made.certificate, PrivateKey(made.key))
    rotation = bench.opened()
    asked = offline.request_signing(rotation)
    offline.accept_signed(rotation, asked, pem(signed(asked[0], corporate), corporate.certificate), "chain.pem")
    assert rotation.required_target().root == corporate.certificate


def test_an_issuer_that_cannot_be_told_to_be_of_its_root_is_signed_anew(bench: Bench) -> None:
    made = make("corporate root", end=NOW + timedelta(days=3650))
    rotation = bench.opened()
    asked = offline.request_signing(rotation)
    request = asked[0].request.raw
    builder = (
        x509.CertificateBuilder()
        .subject_name(request.subject)
        .issuer_name(made.certificate.raw.subject)
        .public_key(request.public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=90))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    without_aki = Certificate(PrivateKey(made.key).sign(builder))
    with pytest.raises(VerificationFailed, match="authority key identifier"):
        offline.accept_signed(rotation, asked, pem(without_aki, made.certificate), "chain.pem")


def test_requests_signed_under_two_roots_are_refused(bench: Bench) -> None:
    rotation = bench.opened("anchor", "east", "west")
    asked = offline.request_signing(rotation)
    other = mint_root(RootPolicy("another root"), 1, NOW)
    chain = pem(signed(asked[0]), OFFLINE.certificate, signed(asked[1], other), other.certificate)
    with pytest.raises(InvalidInput, match="under different roots"):
        offline.accept_signed(rotation, asked, chain, "chain.pem")


def test_an_intermediate_alone_is_signed_under_the_present_root_and_under_no_other(bench: Bench) -> None:
    rotation = bench.opened("issuer")
    asked = offline.request_signing(rotation)
    with pytest.raises(VerificationFailed):
        offline.accept_signed(rotation, asked, pem(signed(asked[0]), OFFLINE.certificate), "chain.pem")
    issuer = signed(asked[0], OLD)
    offline.accept_signed(rotation, asked, pem(issuer), "chain.pem")
    assert rotation.required_target() == Target(
        OLD.certificate, {"east": issuer}, rotation.required_target().references
    )
    assert rotation.old.fingerprints == frozenset()
    assert rotation.stays.fingerprints == only(OLD.certificate.fingerprint)


def test_an_intermediate_is_minted_under_a_root_whose_key_the_vault_has_and_under_no_other(bench: Bench) -> None:
    rotation = bench.opened("issuer")
    with pytest.raises(GateRefused, match="root's key is not in the vault"):
        mint(rotation)
    bench.vault.put("an-earlier-root", Material.of(OLD), tags_of(bench.domain.name, "earlier"))
    mint(rotation)
    target = rotation.required_target()
    assert target.root == OLD.certificate
    assert target.issuers["east"].signed_by(OLD.certificate)
    assert target.issuers["east"] != PRESENT.certificate
    mint(again := bench.opened("issuer"))
    assert again.required_target().issuers == target.issuers
    assert rotation.record().notes[NEW_ROOT] == OLD.certificate.pem()


def wanted(bench: Bench, rotation: Rotation, asked: tuple[offline.Asked, ...], taken: list[str]) -> Wanted:
    ticks = itertools.count()
    return Wanted(
        bench.domain, "r", 1, rotation.command, asked, NOW + timedelta(seconds=5),
        lambda text, _: taken.append(text), lambda: NOW + timedelta(seconds=next(ticks)), lambda _: None,
    )  # fmt: skip


def test_without_a_deployment_the_chain_is_taken_from_its_file_once_that_has_stopped_growing(bench: Bench) -> None:
    rotation = bench.opened()
    asked = offline.request_signing(rotation)
    taken: list[str] = []
    path = offline.chain_path(bench.domain, "r")
    path.write_text(pem(OFFLINE.certificate))
    have_signed(wanted(bench, rotation, asked, taken))
    assert taken == [pem(OFFLINE.certificate)]


def test_a_named_file_wins_and_one_that_nobody_brings_ends_the_wait_with_what_to_do(
    bench: Bench, tmp_path: Path
) -> None:
    rotation = bench.opened()
    asked = offline.request_signing(rotation)
    with offline.signed_chain_at(tmp_path / "brought.pem"), pytest.raises(ApprovalRequired) as nobody:
        have_signed(wanted(bench, rotation, asked, []))
    assert nobody.value.where == str(tmp_path / "brought.pem")
    assert "capstan sign" in nobody.value.next_command
    assert str(asked[0].path) in nobody.value.next_command


def test_a_form_shows_the_requests_and_takes_a_chain_and_nothing_else(bench: Bench) -> None:
    asked = offline.request_signing(bench.opened())
    schema = form(asked[0].request.pem()).model_json_schema()
    assert "BEGIN CERTIFICATE REQUEST" in schema["properties"]["chain"]["description"]
    assert chain_of({"chain": "text"}) == "text"
    with pytest.raises(InvalidInput, match="does not fit its form"):
        chain_of({"chain": "text", "key": "another"})
