"""What every vault promises (`capstan.vaults.base.Vault`), claim by claim, on every implementation."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from capstan.errors import CapstanError, InvalidInput, NotFound
from capstan.vaults import ROTATION_TAG, Fate, Material, Reference, State, put_group

if TYPE_CHECKING:
    from tests.vaults.harness import Harness, Minting

R1, R2 = {ROTATION_TAG: "r-1"}, {ROTATION_TAG: "r-2"}


def test_a_key_is_minted_once_however_often_it_is_asked_for(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    references = [vault.ensure("root", mint, R1) for _ in range(3)]
    assert len(mint.made) == 1
    assert references[0] == references[1] == references[2]


def test_another_process_gets_the_same_key(harness: Harness, mint: Minting) -> None:
    first = harness.open().ensure("root", mint, R1)
    second = harness.open().ensure("root", mint, R1)
    assert (first, len(mint.made)) == (second, 1)


def test_what_was_minted_is_what_is_read(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    reference = vault.ensure("root", mint, R1)
    assert vault.get(reference).unsafe_text() == mint.made[0].unsafe_text()
    assert harness.open().get(reference) == mint.made[0]
    assert reference.fingerprint == mint.made[0].fingerprint
    assert reference.content_sha256 == mint.made[0].content_sha256


def test_another_rotation_gets_another_key_and_the_first_keeps_its_own(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    first, second = vault.ensure("root", mint, R1), vault.ensure("root", mint, R2)
    assert first.fingerprint != second.fingerprint
    assert vault.ensure("root", mint, R1) == first
    assert vault.get(first).fingerprint == first.fingerprint
    assert len(mint.made) == 2


def test_without_a_rotation_the_name_alone_counts(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    assert vault.ensure("signing", mint, {}) == vault.ensure("signing", mint, {"note": "other"})
    assert vault.ensure("signing-2", mint, {}) != vault.ensure("signing", mint, {})


def test_other_tags_do_not_make_another_key(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    first = vault.ensure("root", mint, R1 | {"plan": "aaa"})
    assert vault.ensure("root", mint, R1 | {"plan": "bbb"}) == first
    assert first.tag == R1 | {"plan": "aaa"}


def test_a_crash_between_storing_and_answering_does_not_make_a_second_key(harness: Harness, mint: Minting) -> None:
    harness.crash_after_store(lambda: harness.open().ensure("root", mint, R1))
    vault = harness.open()
    reference = vault.ensure("root", mint, R1)
    assert len(mint.made) == 1
    assert vault.get(reference) == mint.made[0]
    assert len(vault.list()) == 1


def test_a_mint_that_fails_stores_nothing(harness: Harness, mint: Minting) -> None:
    def failing() -> Material:
        raise InvalidInput("no randomness today")

    vault = harness.open()
    with pytest.raises(InvalidInput, match="randomness"):
        vault.ensure("root", failing, R1)
    assert vault.list() == []
    assert vault.ensure("root", mint, R1).fingerprint == mint.made[0].fingerprint


def test_many_at_once_get_one_key(harness: Harness, mint: Minting) -> None:
    vaults = [harness.open() for _ in range(5)]
    barrier = threading.Barrier(len(vaults))
    got: list[Reference] = []

    def work(index: int) -> None:
        barrier.wait()
        got.append(vaults[index].ensure("root", mint, R1))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(vaults))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(vaults)
    assert len({(reference.version, reference.fingerprint) for reference in got}) == 1
    # Whoever was too late is out of use; nobody can take that key for the rotation's.
    enabled = [reference for reference in vaults[0].list() if reference.state is State.ENABLED]
    assert [reference.version for reference in enabled] == [got[0].version]


def test_put_writes_once_what_is_there_already(harness: Harness, mint: Minting) -> None:
    vault, material = harness.open(), mint()
    first = vault.put("ca-key", material, R1)
    assert vault.put("ca-key", material, R1) == first
    assert len(vault.list()) == 1


def test_put_writes_a_new_version_for_another_value_or_other_tags(harness: Harness, mint: Minting) -> None:
    vault, one, two = harness.open(), mint(), mint()
    versions = [vault.put("ca-key", one, R1), vault.put("ca-key", two, R1), vault.put("ca-key", two, R2)]
    assert len({reference.version for reference in versions}) == 3
    assert [vault.get(reference) for reference in versions] == [one, two, two]


def test_put_back_of_an_older_value_makes_it_the_latest_again(harness: Harness, mint: Minting) -> None:
    vault, old, new = harness.open(), mint(), mint()
    first = vault.put("ca-key", old, {})
    vault.put("ca-key", new, {})
    again = vault.put("ca-key", old, {})
    assert again.version != first.version
    assert vault.put("ca-key", old, {}) == again


def test_a_put_repeated_after_a_crash_makes_no_second_version(harness: Harness, mint: Minting) -> None:
    material = mint()
    harness.crash_after_store(lambda: harness.open().put("ca-key", material, R1))
    harness.open().put("ca-key", material, R1)
    assert len(harness.open().list()) == 1


def test_a_group_goes_on_where_it_broke_off(harness: Harness, mint: Minting) -> None:
    items = [(name, mint()) for name in ("root-cert", "cert-chain", "ca-cert", "ca-key")]
    harness.crash_after_store(lambda: put_group(harness.open(), items, R1))
    vault = harness.open()
    assert [reference.name for reference in vault.list()] == ["root-cert"]
    references = put_group(vault, items, R1)
    assert [reference.name for reference in references] == [name for name, _ in items]
    assert len(vault.find(R1)) == 4


def test_a_certificate_and_its_key_come_back_as_they_went_in(harness: Harness) -> None:
    material = root_material()
    vault = harness.open()
    back = vault.get(vault.put("root", material, {}))
    assert back.certificate_pem == material.certificate_pem
    assert back.unsafe_private_key_pem() == material.unsafe_private_key_pem()


def test_certificates_alone_come_back_byte_for_byte(harness: Harness) -> None:
    text = root_material().certificate_pem
    for variant in (text, text.rstrip("\n"), text + root_material().certificate_pem):
        vault = harness.open()
        assert vault.get(vault.put("bundle", Material(variant), {})).unsafe_text() == variant


def test_find_gives_every_version_that_carries_all_tags_oldest_first(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    one = vault.ensure("root", mint, R1 | {"role": "root"})
    two = vault.ensure("issuer", mint, R1 | {"role": "issuer"})
    three = vault.ensure("root", mint, R2 | {"role": "root"})
    assert {reference.version for reference in vault.find(R1)} == {one.version, two.version}
    assert {reference.version for reference in vault.find({"role": "root"})} == {one.version, three.version}
    assert [reference.version for reference in vault.find(R1, name="issuer")] == [two.version]
    assert list(vault.find({ROTATION_TAG: "r-3"})) == []
    assert list(vault.find({}, name="nothing")) == []


def test_lists_never_hold_a_value(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    vault.ensure("root", mint, R1)
    secret = mint.made[0].unsafe_private_key_pem().splitlines()[1]
    for reference in vault.list():
        assert secret not in repr(reference) + str(reference) + str(reference.as_json())


def test_a_reference_survives_its_json_form(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    reference = vault.ensure("root", mint, R1)
    assert Reference.from_json(reference.as_json()) == reference
    assert vault.get(Reference.from_json(reference.as_json())) == mint.made[0]


def test_sixty_versions_are_all_listed(harness: Harness, mint: Minting) -> None:
    vault, materials = harness.open(), [mint(), mint()]
    stored = [vault.put("ca-key", materials[n % 2], {}).version for n in range(60)]
    assert {reference.version for reference in vault.list()} == set(stored)


def test_a_missing_version_is_not_found(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    there = vault.ensure("root", mint, R1)
    for name, version in (("root", "0" * 32), ("other", there.version)):
        missing = Reference(
            there.vault, name, version, there.fingerprint, there.content_sha256, there.tags, there.created
        )
        with pytest.raises(NotFound):
            vault.get(missing)
        with pytest.raises(NotFound):
            vault.destroy(missing, "test")


def test_a_reference_to_other_content_is_refused(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    one, two = vault.ensure("root", mint, R1), vault.ensure("root", mint, R2)
    crossed = Reference(one.vault, one.name, one.version, two.fingerprint, two.content_sha256, one.tags, one.created)
    with pytest.raises(InvalidInput, match="something else"):
        vault.get(crossed)


def test_a_destroyed_key_cannot_be_read_and_is_never_minted_again(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    reference = vault.ensure("root", mint, R1)
    assert vault.destroy(reference, "rotation given up") in set(Fate)
    for handle in (vault, harness.open()):
        with pytest.raises(NotFound, match="destroyed"):
            handle.get(reference)
        with pytest.raises(InvalidInput, match="rotation given up"):
            handle.ensure("root", mint, R1)
    assert len(mint.made) == 1
    assert [found.state for found in vault.list()] == [State.DESTROYED]


def test_destroying_twice_is_harmless_and_keeps_the_first_reason(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    reference = vault.ensure("root", mint, R1)
    assert vault.destroy(reference, "first") == vault.destroy(reference, "second")
    with pytest.raises(NotFound, match="first"):
        vault.get(reference)


def test_destroying_one_key_leaves_the_others(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    old, new = vault.ensure("root", mint, R1), vault.ensure("root", mint, R2)
    vault.destroy(old, "distrusted everywhere")
    assert vault.get(new) == mint.made[1]


@pytest.mark.parametrize("reason", ["", "  ", "x" * 257])
def test_destroying_needs_a_reason_that_fits(harness: Harness, mint: Minting, reason: str) -> None:
    vault = harness.open()
    reference = vault.ensure("root", mint, R1)
    with pytest.raises(InvalidInput):
        vault.destroy(reference, reason)
    assert vault.get(reference) == mint.made[0]


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "a.b", "a_b", "x" * 128, "ä"])
def test_a_name_that_some_vault_cannot_take_is_refused_by_all(harness: Harness, mint: Minting, name: str) -> None:
    vault = harness.open()
    for call in (lambda: vault.ensure(name, mint, R1), lambda: vault.put(name, mint(), R1)):
        with pytest.raises(InvalidInput):
            call()
    assert vault.list() == []


@pytest.mark.parametrize(
    "tags",
    [
        {"capstan-content": "x"},
        {"capstan-fingerprint": "x"},
        {"capstan-destroyed": "x"},
        {"capstan-superseded": "x"},
        {"": "x"},
        {"x": ""},
        {"x" * 257: "x"},
        {"x": "x" * 257},
        {f"t{n}": "x" for n in range(12)},
    ],
)
def test_tags_that_some_vault_cannot_take_are_refused_by_all(
    harness: Harness, mint: Minting, tags: dict[str, str]
) -> None:
    with pytest.raises(InvalidInput):
        harness.open().ensure("root", mint, tags)
    assert mint.made == []


def test_the_longest_name_and_the_fullest_tags_fit(harness: Harness, mint: Minting) -> None:
    vault, tags = harness.open(), {f"t{n:02}" + "k" * 253: "v" * 256 for n in range(11)}
    assert vault.ensure("n" * 127, mint, tags).tag == tags


def test_a_value_above_25_kb_is_refused_and_one_just_below_fits(harness: Harness) -> None:
    vault, certificate = harness.open(), root_material().certificate_pem
    fitting = 25 * 1024 // len(certificate)
    vault.put("bundle", Material(certificate * fitting), {})
    with pytest.raises(InvalidInput, match="too large"):
        vault.put("bundle", Material(certificate * (fitting + 1)), {})


def test_every_refusal_is_one_of_our_errors_and_says_where(harness: Harness, mint: Minting) -> None:
    vault = harness.open()
    reference = vault.ensure("root", mint, R1)
    vault.destroy(reference, "gone")
    with pytest.raises(CapstanError) as caught:
        vault.get(reference)
    assert "root" in caught.value.where
    assert vault.url in caught.value.where


def test_a_vault_describes_itself_without_secrets(harness: Harness) -> None:
    vault = harness.open()
    assert vault.describe().url == vault.url
    assert vault.describe().protection


def root_material() -> Material:
    """A small self-signed certificate with its key."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return Material(certificate.public_bytes(Encoding.PEM).decode(), pem)
