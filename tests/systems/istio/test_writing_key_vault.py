"""The add-on's four Key Vault secrets: in order, once each, checked before the first, continued after the last."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from capstan.config import PluginCa
from capstan.errors import (
    Denied,
    GateRefused,
    InvalidInput,
    NotFound,
    ServerFault,
    Throttled,
    Unreachable,
    VerificationFailed,
)
from capstan.pki.inspect import Certificate
from capstan.pki.verify import verify_leaf
from capstan.systems.base import KeepsTags
from capstan.systems.istio.adapter import Istio
from capstan.systems.istio.key_vault import KeyVaultSource, ObjectNames
from capstan.systems.istio.source import CaFiles
from capstan.systems.istio.texts import certificates_of
from capstan.vaults.secret_texts import SecretTexts
from infra.lab.istio.istiod import bundle, leaves
from infra.lab.istio.istiod.versions import Rules
from infra.lab.keyvault import Fault, KeyVault
from tests.pki.ca import NOW, make
from tests.systems.istio.writing import Ca, clock, pem
from tests.vaults.harness import StaticCredential

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster

OLD, NEW = Ca.of("A"), Ca.of("B")
BOTH = pem(OLD.root.certificate, NEW.root.certificate)
NAMES = ObjectNames()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyVault]:
    vault = KeyVault(tmp_path_factory.mktemp("keyvault"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(vault.start(), loop).result(10)
    vault.accept_token("lab-token")
    yield vault
    asyncio.run_coroutine_threadsafe(vault.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


@pytest.fixture
def vault(endpoint: KeyVault) -> KeyVault:
    endpoint.store.secrets.clear()
    endpoint.faults.clear()
    return endpoint


def texts(vault: KeyVault) -> SecretTexts:
    return SecretTexts(vault.url, StaticCredential(), connection_verify=str(vault.ca_file))


def source(vault: KeyVault) -> KeyVaultSource:
    return KeyVaultSource(texts(vault), NAMES, cluster_name="east", now=clock, tags={"capstan-rotation": "r-1"})


@pytest.fixture
def filled(vault: KeyVault) -> KeyVaultSource:
    client = texts(vault)
    for name, text in by_name(OLD).items():
        client.put(name, text, {})
    vault.faults.requests.clear()
    return source(vault)


def by_name(ca: Ca, roots: str | None = None) -> dict[str, str]:
    entries = ca.entries(roots)
    return {name: entries[f"{name}.pem"] for name in NAMES.all}


def held(vault: KeyVault) -> dict[str, str]:
    client = texts(vault)
    return {name: client.latest(name).text for name in NAMES.all}


def counts(vault: KeyVault) -> dict[str, int]:
    return {name: len(secret.versions) for name, secret in sorted(vault.store.secrets.items())}


def writes(changes) -> list[str]:
    return [change.place.split()[1] for change in changes if change.written]


def test_adding_a_root_makes_one_version_of_one_secret(vault: KeyVault, filled: KeyVaultSource) -> None:
    changes = filled.ensure(root_cert=BOTH)
    assert writes(changes) == ["root-cert"]
    assert held(vault) == by_name(OLD, BOTH)
    assert counts(vault) == {"ca-cert": 1, "ca-key": 1, "cert-chain": 1, "root-cert": 2}
    assert writes(filled.ensure(root_cert=BOTH)) == []


BRIDGE = pem(NEW.issuer.certificate, NEW.root.certificate, OLD.issuer.certificate)
"""A chain that serves leaves of the new issuer and of the old one."""


def served(state: dict[str, str]) -> tuple[Certificate, tuple[Certificate, ...]]:
    """A leaf as an istiod hands it out that has read these four files, and the chain that goes with it.

    Raises:
        BundleError: It does not take them, and goes on with what it had.
    """
    cert, key, chain, root = (state[name].encode() for name in ("ca-cert", "ca-key", "cert-chain", "root-cert"))
    taken = bundle.verified(cert, key, chain, root, b"", rules=Rules.of("1.30.2", {}), now=NOW)
    identity = x509.UniformResourceIdentifier("spiffe://cluster.local/ns/shop/sa/web")
    key_of_workload = ec.generate_private_key(ec.SECP256R1()).public_key()
    leaf = leaves.leaf(taken, key_of_workload, [identity], timedelta(hours=24), now=NOW)
    return Certificate(leaf), certificates_of(taken.chain_pem.decode(), "chain")


def test_istiod_takes_a_chain_that_lacks_its_signer_and_nobody_can_verify_its_leaves() -> None:
    """istiod verifies its certificate through the chain; what a root has signed itself needs nothing of the chain."""
    leaf, chain = served(by_name(OLD, BOTH) | {"cert-chain": by_name(NEW)["cert-chain"]})
    with pytest.raises(VerificationFailed):
        verify_leaf(leaf, chain, certificates_of(BOTH, "roots"), NOW)
    leaf, chain = served(by_name(OLD, BOTH) | {"cert-chain": BRIDGE})
    verify_leaf(leaf, chain, certificates_of(BOTH, "roots"), NOW)


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
def test_at_no_moment_of_a_switch_does_istiod_hand_out_a_leaf_that_cannot_be_verified(
    vault: KeyVault, filled: KeyVaultSource, back: bool
) -> None:
    filled.ensure(root_cert=BOTH)
    if back:
        filled.ensure(issuer=NEW.material)
    state, signers = held(vault), []
    written = writes(filled.ensure(issuer=OLD.material if back else NEW.material))
    for name in written:
        state = state | {name: held(vault)[name]}
        try:
            leaf, chain = served(state)
        except bundle.BundleError as error:
            signers.append(str(error).partition(":")[0])
            continue
        verify_leaf(leaf, chain, certificates_of(BOTH, "roots"), NOW)
        signers.append("old" if leaf.signed_by(OLD.issuer.certificate) else "new")
    first, last = ("new", "old") if back else ("old", "new")
    assert list(zip(written, signers, strict=True)) == [
        ("cert-chain", first), ("ca-cert", "the cert does not match the key"), ("ca-key", last)
    ]  # fmt: skip


def test_an_adapter_keeps_a_rotations_tags_with_every_version_it_writes(
    vault: KeyVault, filled: KeyVaultSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capstan.systems.istio.adapter.open_source", lambda *_, **__: filled)
    istio = Istio(cast("Cluster", None), plugin_ca=PluginCa(key_vault=vault.url), now=clock)
    assert isinstance(istio, KeepsTags)
    for rotation, roots in (("first", BOTH), ("second", pem(OLD.root.certificate))):
        istio.tag({"capstan-rotation": rotation})
        istio.source().ensure(root_cert=roots)
        assert dict(texts(vault).latest("root-cert").tags)["capstan-rotation"] == rotation
    assert "capstan-rotation" not in dict(texts(vault).latest("ca-key").tags)


def switched(roots: str) -> dict[str, str]:
    return by_name(NEW, roots) | {"cert-chain": BRIDGE}


def test_a_switch_writes_a_chain_for_both_signers_before_certificate_and_key(
    vault: KeyVault, filled: KeyVaultSource
) -> None:
    """A chain without what istiod signs with is taken by it, and no leaf of that time can be verified by anybody."""
    filled.ensure(root_cert=BOTH)
    states: list[dict[str, str]] = []
    filled.before_switch = lambda: states.append(held(vault))
    assert writes(filled.ensure(issuer=NEW.material)) == ["cert-chain", "ca-cert", "ca-key"]
    assert states == [by_name(OLD, BOTH) | {"cert-chain": BRIDGE}]
    assert held(vault) == switched(BOTH)
    assert filled.read_issuer().chain == (NEW.issuer.certificate,)
    assert writes(filled.ensure(issuer=NEW.material)) == []


def test_the_next_switch_keeps_the_chain_of_the_present_signer_and_of_none_before(
    vault: KeyVault, filled: KeyVaultSource
) -> None:
    filled.ensure(root_cert=BOTH)
    filled.ensure(issuer=NEW.material)
    third = Ca(NEW.root, make("Intermediate B2", NEW.root, path_length=0))
    filled.ensure(issuer=third.material)
    assert held(vault)["cert-chain"] == pem(third.issuer.certificate, NEW.root.certificate, NEW.issuer.certificate)


def test_an_old_certificate_with_intermediates_above_it_keeps_all_of_them(vault: KeyVault) -> None:
    middle = make("Middle", OLD.root)
    deep = Ca(OLD.root, make("Deep", middle, path_length=0))
    chain = pem(deep.issuer.certificate, middle.certificate, OLD.root.certificate)
    client = texts(vault)
    for name, text in (by_name(deep, BOTH) | {"cert-chain": chain}).items():
        client.put(name, text, {})
    source(vault).ensure(issuer=NEW.material)
    found = certificates_of(held(vault)["cert-chain"], "x")
    assert found == (NEW.issuer.certificate, NEW.root.certificate, deep.issuer.certificate, middle.certificate)


def test_roots_go_first_when_one_is_added_and_last_when_one_is_removed(vault: KeyVault, filled: KeyVaultSource) -> None:
    assert writes(filled.ensure(root_cert=BOTH, issuer=NEW.material))[0] == "root-cert"
    assert writes(filled.ensure(root_cert=pem(OLD.root.certificate), issuer=OLD.material))[-1] == "root-cert"
    assert held(vault)["root-cert"] == pem(OLD.root.certificate)


def test_every_version_says_whose_it_is_what_it_holds_and_what_it_replaces(
    vault: KeyVault, filled: KeyVaultSource
) -> None:
    before = filled.kept().versions
    (change,) = [each for each in filled.ensure(root_cert=BOTH) if each.written]
    tags = dict(texts(vault).latest("root-cert").tags)
    assert tags["capstan-rotation"] == "r-1"
    assert tags["capstan-fingerprint"] == OLD.root.certificate.fingerprint
    assert tags["capstan-replaces"] == before["root-cert"] == change.version_before
    assert len(tags["capstan-content"]) == 64


@pytest.mark.parametrize("effect", ["answer", "disconnect"])
def test_a_lost_answer_makes_no_second_version(vault: KeyVault, filled: KeyVaultSource, effect: str) -> None:
    vault.faults.add(Fault("set", effect=effect, after_commit=True))
    filled.ensure(root_cert=BOTH)
    assert counts(vault)["root-cert"] == 2


def test_a_store_that_failed_is_told_and_the_next_call_goes_on_from_there(
    vault: KeyVault, filled: KeyVaultSource
) -> None:
    filled.ensure(root_cert=BOTH)
    vault.faults.add(Fault("set", skip=1))
    with pytest.raises(ServerFault):
        filled.ensure(issuer=NEW.material)
    assert held(vault)["cert-chain"] == BRIDGE
    assert writes(filled.ensure(issuer=NEW.material)) == ["ca-cert", "ca-key"]
    assert held(vault) == switched(BOTH)


def test_a_switch_that_died_between_certificate_and_key_is_finished(vault: KeyVault, filled: KeyVaultSource) -> None:
    filled.ensure(root_cert=BOTH)
    vault.faults.add(Fault("set", skip=2, effect="disconnect"))
    with pytest.raises(Unreachable):
        filled.ensure(issuer=NEW.material)
    assert filled.half_switched()
    filled.ensure(issuer=NEW.material)
    assert not filled.half_switched()
    assert held(vault) == switched(BOTH)
    assert counts(vault) == {"ca-cert": 2, "ca-key": 2, "cert-chain": 2, "root-cert": 2}


def test_going_back_writes_the_old_values_again_as_new_versions(vault: KeyVault, filled: KeyVaultSource) -> None:
    old = held(vault)
    filled.ensure(root_cert=BOTH)
    filled.ensure(issuer=NEW.material)
    filled.ensure(issuer=OLD.material)
    filled.ensure(root_cert=pem(OLD.root.certificate))
    chain = pem(OLD.issuer.certificate, OLD.root.certificate, NEW.issuer.certificate)
    assert held(vault) == old | {"cert-chain": chain}


def test_throttling_is_told_with_its_delay(vault: KeyVault, filled: KeyVaultSource) -> None:
    vault.faults.add(Fault.throttled("set", retry_after=7))
    with pytest.raises(Throttled) as caught:
        filled.ensure(root_cert=BOTH)
    assert caught.value.delay == 7
    assert held(vault) == by_name(OLD)


@pytest.mark.parametrize(
    ("inner", "remedy"), [("ForbiddenByRbac", "Key Vault Secrets Officer"), ("ForbiddenByPolicy", "get, list and set")]
)
def test_a_missing_permission_is_named(vault: KeyVault, filled: KeyVaultSource, inner: str, remedy: str) -> None:
    vault.faults.add(Fault.forbidden("set", inner))
    with pytest.raises(Denied) as caught:
        filled.ensure(root_cert=BOTH)
    assert remedy in caught.value.next_command
    assert "PRIVATE KEY" not in str(caught.value)


def test_a_missing_secret_is_told_with_the_way_to_recover_it(vault: KeyVault, filled: KeyVaultSource) -> None:
    del vault.store.secrets["cert-chain"]
    with pytest.raises(NotFound) as caught:
        filled.read()
    assert "cert-chain" in caught.value.where
    assert "recover" in caught.value.next_command


def test_a_disabled_version_is_not_written_over(vault: KeyVault, filled: KeyVaultSource) -> None:
    client = texts(vault)
    client._client.update_secret_properties("ca-cert", enabled=False)
    with pytest.raises(InvalidInput, match="ca-cert") as caught:
        filled.ensure(root_cert=BOTH)
    assert "enabled" in caught.value.next_command
    assert counts(vault)["root-cert"] == 1


def test_a_deleted_secret_in_the_way_of_a_new_one_is_told(vault: KeyVault) -> None:
    client = texts(vault)
    client.put("root-cert", BOTH, {})
    client._client.begin_delete_secret("root-cert", _polling_interval=0.05).wait()
    with pytest.raises(InvalidInput) as caught:
        client.put("root-cert", BOTH, {})
    assert "recover" in caught.value.next_command


def test_what_is_too_large_is_refused_before_anything_is_written(vault: KeyVault, filled: KeyVaultSource) -> None:
    many = "".join(pem(make(f"Root {n}").certificate) for n in range(50))
    with pytest.raises(InvalidInput, match="25600"):
        filled.ensure(root_cert=pem(OLD.root.certificate) + many)
    assert counts(vault)["root-cert"] == 1


def test_what_istiod_would_not_take_is_refused_before_anything_is_written(
    vault: KeyVault, filled: KeyVaultSource
) -> None:
    with pytest.raises(GateRefused, match="does not verify"):
        filled.ensure(issuer=NEW.material)
    assert held(vault) == by_name(OLD)


def test_a_text_with_peoples_words_in_it_is_kept_byte_for_byte(vault: KeyVault, filled: KeyVaultSource) -> None:
    odd = f"subject=O=Istio, CN=Root A\n{pem(OLD.root.certificate)}\n\n{pem(NEW.root.certificate)}"
    filled.ensure(root_cert=odd)
    assert filled.read().root_cert == odd


def test_the_first_secrets_of_an_add_on_are_made_once(vault: KeyVault) -> None:
    files = CaFiles(pem(NEW.root.certificate), NEW.files().ca_cert, NEW.files().cert_chain, "")
    assert writes(source(vault).create(files, NEW.key)) == ["root-cert", "cert-chain", "ca-cert", "ca-key"]
    assert writes(source(vault).create(files, NEW.key)) == []
    assert held(vault) == by_name(NEW)


def test_another_writers_version_after_ours_is_no_success(vault: KeyVault, monkeypatch: pytest.MonkeyPatch) -> None:
    client, other = texts(vault), texts(vault)
    store = client._client.set_secret

    def overtaken(name, value, **options):
        answer = store(name, value, **options)
        other._client.set_secret(name, "somebody else's")
        return answer

    monkeypatch.setattr(client._client, "set_secret", overtaken)
    with pytest.raises(Unreachable, match="is not the latest"):
        client.put("root-cert", BOTH, {})


def test_no_text_appears_in_a_repr(vault: KeyVault) -> None:
    client = texts(vault)
    secret, _ = client.put("ca-key", OLD.key.pem().decode(), {})
    assert "PRIVATE" not in repr(secret)


def test_another_ca_under_the_same_names_is_named_and_a_part_of_ones_own_is_not(vault: KeyVault) -> None:
    files = NEW.files()
    assert source(vault).others(files, NEW.key) == ()  # an empty vault
    source(vault).create(files, NEW.key)
    # Another text about the same certificates, as a portal makes it, is no other CA.
    texts(vault).put("root-cert", files.root_cert.replace("\n", "\r\n"), {})
    assert source(vault).others(files, NEW.key) == ()
    texts(vault).put("ca-key", OLD.key.pem().decode("ascii"), {})
    texts(vault).put("cert-chain", "no certificate", {})
    found = source(vault).others(files, NEW.key)
    assert [each.partition(":")[0] for each in found] == ["cert-chain", "ca-key"]
    assert "nothing that can be read" in found[0]
    assert "PRIVATE" not in "".join(found)
