"""What an add-on is enabled with: minted once, or signed by a root that is kept offline; and what needs to be known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from capstan.config import ClusterRef, PluginCa, System, TrustDomain
from capstan.errors import InvalidInput
from capstan.pki.csr import sign_request
from capstan.pki.mint import IssuerPolicy, RootPolicy, mint_root
from capstan.rotation import enabling
from capstan.rotation.material import issuer_material
from capstan.vaults.local import LocalVault

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
OFFLINE = mint_root(RootPolicy("offline root"), 1, NOW)


@pytest.fixture
def domain(tmp_path: Path) -> TrustDomain:
    clusters = tuple(ClusterRef(name=name, plugin_ca=PluginCa(key_vault="https://v.example")) for name in ("a", "b"))
    return TrustDomain(name="mesh", system=System.AKS_ISTIO, home=str(tmp_path), clusters=clusters)


@pytest.fixture
def vault(tmp_path: Path) -> LocalVault:
    return LocalVault(tmp_path / "vault")


def test_root_and_intermediates_are_minted_once_however_often_it_is_run(domain: TrustDomain, vault: LocalVault) -> None:
    first = enabling.mint(domain, vault, NOW)
    again = enabling.mint(domain, vault, NOW + timedelta(days=1))
    assert (first.root, first.issuers) == (again.root, again.issuers)
    assert set(first.issuers) == {"a", "b"}
    assert all(issuer.signed_by(first.root) for issuer in first.issuers.values())


def test_signed_offline_they_are_asked_for_once_and_recalled_by_every_later_run(
    domain: TrustDomain, vault: LocalVault
) -> None:
    assert enabling.recall_signed(domain, vault) is None
    asked = enabling.request_signing(domain, vault)
    again = enabling.request_signing(domain, vault)
    assert [each.request.pem() for each in asked] == [each.request.pem() for each in again]
    policy = IssuerPolicy("x", validity=timedelta(days=90))
    issuers = {each.cluster: sign_request(OFFLINE, each.request, policy, NOW) for each in asked}
    text = "\n".join(each.pem() for each in (*issuers.values(), OFFLINE.certificate)) + "\n"
    enabling.accept_signed(domain, vault, asked, text, "chain.pem", NOW)
    found = enabling.recall_signed(domain, vault)
    assert found is not None
    assert (found.root, dict(found.issuers)) == (OFFLINE.certificate, issuers)
    for name, issuer in issuers.items():
        assert issuer.key_matches(issuer_material(vault, found.references[f"issuer/{name}"]).key)


def test_a_chain_that_answers_one_cluster_of_two_is_refused_and_nothing_is_kept(
    domain: TrustDomain, vault: LocalVault
) -> None:
    asked = enabling.request_signing(domain, vault)
    issuer = sign_request(OFFLINE, asked[0].request, IssuerPolicy("x", validity=timedelta(days=90)), NOW)
    text = f"{issuer.pem()}\n{OFFLINE.certificate.pem()}\n"
    with pytest.raises(InvalidInput, match="request of cluster b is not answered"):
        enabling.accept_signed(domain, vault, asked, text, "chain.pem", NOW)
    assert enabling.recall_signed(domain, vault) is None


def test_a_cluster_without_its_arm_id_cannot_be_enabled(domain: TrustDomain) -> None:
    with pytest.raises(InvalidInput, match="ARM id is known"):
        enabling.guard(domain, "")
