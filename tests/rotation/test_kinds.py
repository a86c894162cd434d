"""What is rotated: a rotation of one kind is never gone on with as another, and is judged as what it is."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from capstan.cluster.record import RecordStore, RotationRecord
from capstan.config import RotationPolicy, System, TrustDomain
from capstan.errors import InvalidInput
from capstan.pki.inspect import Certificate
from capstan.pki.keys import PrivateKey
from capstan.pki.mint import IssuerPolicy, RootPolicy, mint_issuer, mint_root
from capstan.rotation.claims import Unclaimed
from capstan.rotation.naming import issuer_name, root_name
from capstan.rotation.opening import begin_record
from capstan.rotation.session import plan_policy
from capstan.rotation.turning import aim_of
from capstan.trust.aim import IssuerAim, RootAim
from capstan.trust.redating import RedateAim
from capstan.trust.steps import LeafRenewal
from tests.support.apiserver import Running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
ROOT = mint_root(RootPolicy("mesh root"), 2, NOW)
ISSUER = mint_issuer(IssuerPolicy("Istio CA east"), ROOT, NOW)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    api = Running(tmp_path_factory.mktemp("apiserver"))
    with closing(api.connect()) as connected:
        yield connected
    api.stop()


def record(kind: Any = "anchor", **more: Any) -> RotationRecord:
    return RotationRecord(rotation_id="r-1", domain="d", system="istio", started=NOW, kind=kind, **more)


@pytest.mark.parametrize(("present", "wanted"), [("anchor", "issuer"), ("issuer", "anchor"), ("re-date", "anchor")])
def test_an_unfinished_rotation_of_another_kind_is_named_and_refused(
    cluster: Cluster, present: Any, wanted: Any
) -> None:
    domain = TrustDomain(name=f"k-{present}", system=System.ISTIO)
    store = RecordStore(cluster, domain.name)
    store.begin(record(present))
    with pytest.raises(InvalidInput, match="of another kind") as refused:
        begin_record(domain, None, {}, {"east": store}, lambda: NOW, Unclaimed(), take_over=False, kind=wanted)
    assert "r-1" in refused.value.observed
    assert "unfinished" in refused.value.observed
    found, resumed = begin_record(
        domain, None, {}, {"east": store}, lambda: NOW, Unclaimed(), take_over=False, kind=None
    )
    assert (found.kind, resumed) == (present, True)  # a roll-back takes whatever there is


def test_a_record_alone_says_what_its_rotation_is_after_in_both_directions() -> None:
    old, new = frozenset({"a"}), "b"
    assert aim_of(record(old=old, new=new)) == RootAim(old, new)
    assert aim_of(record(old=old, new=new), back=True) == RootAim(frozenset({new}), old)
    issuers = record("issuer", issuers_before={"east": "1"}, issuers={"east": "2"})
    assert aim_of(issuers) == IssuerAim({"east": "1"}, {"east": "2"})
    assert aim_of(issuers, back=True) == IssuerAim({"east": "2"}, {"east": "1"})
    redated = record("re-date", issuers_before={"east": "1"}, issuers={"east": "2"}, direction="back")
    assert aim_of(redated) == RedateAim({"east": "2"}, {"east": "1"})


def test_the_policys_way_of_renewing_leaves_is_the_plans() -> None:
    by_restart = TrustDomain(policy=RotationPolicy(leaf_renewal="restart"))
    assert plan_policy(by_restart).renewal is LeafRenewal.RESTART
    assert plan_policy(TrustDomain()).renewal is LeafRenewal.AWAIT


def self_signed(attribute: x509.ObjectIdentifier, value: str) -> Certificate:
    name = x509.Name([x509.NameAttribute(attribute, value)])
    key = PrivateKey.generate()
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key)
        .serial_number(1).not_valid_before(NOW).not_valid_after(ROOT.certificate.not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )  # fmt: skip
    return Certificate(key.sign(builder))


def self_signed_by_istio() -> Certificate:
    """A root as istiod makes it: an organization, no common name."""
    return self_signed(NameOID.ORGANIZATION_NAME, "cluster.local")


def test_the_next_root_is_named_after_the_present_one_and_never_as_it() -> None:
    assert root_name(ROOT.certificate) == "mesh root"
    istios = self_signed_by_istio()
    assert root_name(istios) == "cluster.local"
    made = mint_root(RootPolicy(root_name(istios)), RootPolicy(root_name(istios)).next_generation([istios]), NOW)
    assert made.certificate.common_name == "cluster.local G2"
    assert made.certificate.raw.subject != istios.raw.subject


def test_the_certificate_that_linkerds_cli_makes_for_both_is_followed_by_a_root_and_an_issuer_of_their_own() -> None:
    both = self_signed(NameOID.COMMON_NAME, "identity.linkerd.cluster.local")
    assert root_name(both) == "root.linkerd.cluster.local"
    assert issuer_name(System.LINKERD, "east", both) == "identity.linkerd.cluster.local"


def test_the_next_issuer_keeps_its_name_unless_the_root_itself_signs() -> None:
    assert issuer_name(System.ISTIO, "east", ISSUER.certificate) == "Istio CA east"
    assert issuer_name(System.ISTIO, "west", self_signed_by_istio()) == "Istio CA west"
    assert issuer_name(System.ISTIO, "west", ROOT.certificate) == "Istio CA west"
    linkerds = mint_issuer(IssuerPolicy("identity.linkerd.cluster.local"), ROOT, NOW).certificate
    assert issuer_name(System.LINKERD, "east", linkerds) == "identity.linkerd.cluster.local"
