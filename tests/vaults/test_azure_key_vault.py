"""Claims about the Azure adapter beyond the protocol, against the lab's endpoint and its faults."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from azure.keyvault.secrets import SecretClient

from capstan.errors import (
    CapstanError,
    Conflict,
    Denied,
    InvalidInput,
    NotFound,
    ServerFault,
    Throttled,
    Unreachable,
    VerificationFailed,
)
from capstan.vaults import ROTATION_TAG, Material, State, open_vault
from capstan.vaults.azure_key_vault import AzureKeyVault
from infra.lab.keyvault import Fault, KeyVault
from tests.vaults.harness import Minting, StaticCredential, lab_sleep

if TYPE_CHECKING:
    from pathlib import Path

R1 = {ROTATION_TAG: "r-1"}
Open = Callable[[], AzureKeyVault]


def raw_client(key_vault: KeyVault) -> SecretClient:
    """Azure's own client with its own defaults, retries included."""
    return SecretClient(key_vault.url, StaticCredential(), connection_verify=str(key_vault.ca_file))


def test_the_clients_own_retry_of_a_lost_answer_makes_two_versions(key_vault: KeyVault, open_azure: Open) -> None:
    """The trap that the adapter is built around: shown with Azure's client alone."""
    key_vault.faults.add(Fault("set", after_commit=True))
    raw_client(key_vault).set_secret("root", "value")
    assert len(key_vault.store.secrets["root"].versions) == 2


@pytest.mark.parametrize("effect", ["answer", "disconnect"])
def test_a_lost_answer_to_a_store_makes_one_version_and_one_key(
    key_vault: KeyVault, open_azure: Open, mint: Minting, effect: str
) -> None:
    key_vault.faults.add(Fault("set", effect=effect, after_commit=True))
    reference = open_azure().ensure("root", mint, R1)
    assert len(mint.made) == 1
    assert [version.id for version in key_vault.store.secrets["root"].versions] == [reference.version]


@pytest.mark.parametrize("effect", ["answer", "disconnect"])
def test_a_lost_answer_to_a_put_makes_one_version(
    key_vault: KeyVault, open_azure: Open, mint: Minting, effect: str
) -> None:
    key_vault.faults.add(Fault("set", effect=effect, after_commit=True))
    open_azure().put("ca-key", mint(), R1)
    assert len(key_vault.store.secrets["ca-key"].versions) == 1


@pytest.mark.parametrize("effect", ["answer", "disconnect"])
def test_a_lost_answer_with_the_network_gone_for_longer_is_made_up_for_by_the_next_call(
    key_vault: KeyVault, open_azure: Open, mint: Minting, effect: str
) -> None:
    key_vault.faults.add(Fault("set", effect=effect, after_commit=True))
    key_vault.faults.add(Fault("versions", skip=1, times=1))
    with pytest.raises((ServerFault, Unreachable)):
        open_azure().ensure("root", mint, R1)
    reference = open_azure().ensure("root", mint, R1)
    assert reference.fingerprint == mint.made[0].fingerprint
    assert len(mint.made) == 1


def test_a_store_that_truly_failed_raises_and_the_next_call_mints(
    key_vault: KeyVault, open_azure: Open, mint: Minting
) -> None:
    key_vault.faults.add(Fault("set"))
    with pytest.raises(ServerFault):
        open_azure().ensure("root", mint, R1)
    reference = open_azure().ensure("root", mint, R1)
    assert reference.fingerprint == mint.made[1].fingerprint
    assert len(key_vault.store.secrets["root"].versions) == 1


def test_two_versions_of_one_key_made_by_a_proxy_that_repeats_are_one_key(
    key_vault: KeyVault, open_azure: Open, mint: Minting
) -> None:
    vault = open_azure()
    reference = vault.ensure("root", mint, R1)
    version = key_vault.store.secrets["root"].versions[0]
    raw_client(key_vault).set_secret("root", version.value, tags=version.tags)
    assert vault.ensure("root", mint, R1) == reference


def test_whoever_stores_second_gets_the_first_key_and_its_own_is_disabled(
    key_vault: KeyVault, open_azure: Open, mint: Minting
) -> None:
    """The race in slow motion: while one mints, another looks, mints and stores."""
    others = []

    def slow_mint() -> Material:
        material = mint()
        others.append(open_azure_again().ensure("root", mint, R1))
        return material

    vault = open_azure()
    open_azure_again = lambda: AzureKeyVault(  # noqa: E731 - `open_azure` would empty nothing, but reads as if it did
        key_vault.url, StaticCredential(), sleep=lab_sleep, connection_verify=str(key_vault.ca_file)
    )
    got = vault.ensure("root", slow_mint, R1)
    assert got == others[0]
    states = {reference.version: reference.state for reference in vault.list()}
    assert sorted(states.values()) == [State.DISABLED, State.ENABLED]
    assert states[got.version] is State.ENABLED
    assert [reference.version for reference in vault.find(R1)] == [got.version]
    assert vault.ensure("root", mint, R1) == got


def test_two_stores_within_one_second_of_the_service_agree_on_one(
    key_vault: KeyVault, open_azure: Open, mint: Minting
) -> None:
    """`created` cannot order them, so both must wait until the second is over before they choose."""
    vault = open_azure()
    first = vault.ensure("root", mint, R1)
    versions = key_vault.store.secrets["root"].versions
    twin = mint()
    raw_client(key_vault).set_secret(
        "root",
        twin.unsafe_text(),
        tags=versions[0].tags | {"capstan-content": twin.content_sha256, "capstan-fingerprint": twin.fingerprint},
    )
    versions[1].created = versions[0].created
    expected = min(version.id for version in versions)
    assert vault.ensure("root", mint, R1).version == expected
    assert first.version in {version.id for version in versions}


def test_a_young_version_is_not_believed_before_its_second_is_over(
    key_vault: KeyVault, open_azure: Open, mint: Minting
) -> None:
    open_azure().ensure("root", mint, R1)
    key_vault.faults.requests.clear()
    open_azure().ensure("root", mint, R1)
    young = key_vault.faults.requests.count("versions")
    for version in key_vault.store.secrets["root"].versions:
        version.created -= 3600
    key_vault.faults.requests.clear()
    open_azure().ensure("root", mint, R1)
    assert young >= 2
    assert key_vault.faults.requests.count("versions") == 1


def test_a_disabled_version_is_refused_and_nothing_is_minted(
    key_vault: KeyVault, open_azure: Open, mint: Minting
) -> None:
    vault = open_azure()
    reference = vault.ensure("root", mint, R1)
    raw_client(key_vault).update_secret_properties("root", reference.version, enabled=False)
    for call in (lambda: vault.ensure("root", mint, R1), lambda: vault.get(reference)):
        with pytest.raises(InvalidInput, match="disabled") as caught:
            call()
        assert "az keyvault secret set-attributes" in caught.value.next_command
    assert len(mint.made) == 1


def test_a_soft_deleted_name_is_refused_with_the_way_out(key_vault: KeyVault, open_azure: Open, mint: Minting) -> None:
    vault = open_azure()
    vault.ensure("root", mint, R1)
    raw_client(key_vault).begin_delete_secret("root", _polling_interval=0.02).wait()
    for call in (lambda: vault.ensure("root", mint, R1), lambda: vault.put("root", mint(), R1)):
        with pytest.raises(InvalidInput, match="recover"):
            call()


def test_a_name_that_is_being_deleted_is_worth_another_try(
    key_vault: KeyVault, open_azure: Open, mint: Minting
) -> None:
    vault = open_azure()
    vault.ensure("root", mint, R1)
    key_vault.store.secrets["root"].versions[0].created -= 3600
    key_vault.store.delete("root")
    key_vault.store.secrets["root"].visible += 3600
    with pytest.raises(Conflict) as caught:
        vault.ensure("root", mint, R1)
    assert caught.value.delay


@pytest.mark.parametrize("operation", ["versions", "set", "get"])
def test_throttling_is_passed_on_with_its_delay_and_not_sat_out(
    key_vault: KeyVault, open_azure: Open, mint: Minting, operation: str
) -> None:
    key_vault.faults.add(Fault.throttled(operation, retry_after=37))
    with pytest.raises(Throttled) as caught:
        open_azure().ensure("root", mint, R1)
    assert caught.value.delay == 37
    open_azure().ensure("root", mint, R1)
    assert len(key_vault.store.secrets["root"].versions) == 1


@pytest.mark.parametrize("operation", ["versions", "set", "get"])
def test_a_missing_permission_is_denied_with_the_role_to_assign(
    key_vault: KeyVault, open_azure: Open, mint: Minting, operation: str
) -> None:
    key_vault.faults.add(Fault.forbidden(operation))
    with pytest.raises(Denied) as caught:
        open_azure().ensure("root", mint, R1)
    assert "Key Vault Secrets Officer" in caught.value.next_command


def test_a_wrong_token_is_denied(key_vault: KeyVault, open_azure: Open, mint: Minting) -> None:
    class Stranger(StaticCredential):
        def get_token(self, *scopes: str, **rest: object) -> object:
            return super().get_token()._replace(token="unknown")

    stranger = AzureKeyVault(key_vault.url, Stranger(), connection_verify=str(key_vault.ca_file))
    with pytest.raises(Denied):
        stranger.list()


def test_a_vault_that_does_not_answer_is_unreachable(key_vault: KeyVault, open_azure: Open) -> None:
    with pytest.raises(Unreachable):
        AzureKeyVault("https://127.0.0.1:1", StaticCredential()).list()
    slow = AzureKeyVault(key_vault.url, StaticCredential(), connection_verify=str(key_vault.ca_file), read_timeout=0.1)
    key_vault.faults.add(Fault("list", effect="delay", seconds=0.5))
    with pytest.raises(Unreachable):
        slow.list()


def test_a_server_with_a_foreign_certificate_is_not_spoken_to(
    key_vault: KeyVault, open_azure: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with pytest.raises(VerificationFailed):
        AzureKeyVault(key_vault.url, StaticCredential()).list()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("set", status=500),
        Fault("set", status=400, code="BadParameter"),
        Fault("set", effect="disconnect"),
        Fault("set", status=403, code="Forbidden"),
        Fault("set", status=429, code="Throttled"),
    ],
    ids=["500", "400", "disconnect", "403", "429"],
)
def test_no_error_about_a_store_leads_to_the_key(
    key_vault: KeyVault, open_azure: Open, mint: Minting, fault: Fault
) -> None:
    """Azure's exceptions hold the request and its body; ours hold neither them nor a way to them."""
    key_vault.faults.add(Fault(**vars(fault)))
    with pytest.raises(CapstanError) as caught:
        open_azure().ensure("root", mint, R1)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    secret = mint.made[0].unsafe_private_key_pem().splitlines()[1]  # only now, or this very frame would show it
    reached, waiting = set(), [caught.value]
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in reached:
            continue
        reached.add(id(error))
        assert not type(error).__module__.startswith("azure"), error
        assert secret not in repr(error) + str(error) + repr(vars(error))
        waiting += [error.__cause__, error.__context__]
    assert secret not in shown


def test_a_value_changed_behind_our_back_is_noticed(key_vault: KeyVault, open_azure: Open, mint: Minting) -> None:
    vault = open_azure()
    reference = vault.ensure("root", mint, R1)
    key_vault.store.secrets["root"].versions[0].value = mint().unsafe_text()
    for call in (lambda: vault.get(reference), lambda: vault.ensure("root", mint, R1)):
        with pytest.raises(InvalidInput, match="something else"):
            call()


def test_secrets_of_others_are_listed_and_left_alone(key_vault: KeyVault, open_azure: Open, mint: Minting) -> None:
    raw_client(key_vault).set_secret("database-password", "hunter2", tags={"team": "b"})
    vault = open_azure()
    assert [(reference.name, reference.fingerprint) for reference in vault.list()] == [("database-password", "")]
    vault.ensure("root", mint, R1)
    assert raw_client(key_vault).get_secret("database-password").value == "hunter2"


def test_a_group_written_by_hand_is_taken_over_without_a_new_version(
    key_vault: KeyVault, open_azure: Open, mint: Minting
) -> None:
    material = mint()
    raw_client(key_vault).set_secret("ca-key", material.unsafe_text())
    reference = open_azure().put("ca-key", material, {})
    assert len(key_vault.store.secrets["ca-key"].versions) == 1
    assert open_azure().get(reference) == material


def test_the_default_credential_works_with_nothing_but_the_environment(
    key_vault: KeyVault, open_azure: Open, mint: Minting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in key_vault.environment.items():
        monkeypatch.setenv(name, value)
    vault = open_vault(key_vault.url)
    assert list(vault.list()) == []
    assert "token" in key_vault.faults.requests


@pytest.mark.parametrize(
    "url", ["http://x.vault.azure.net", "https://x.vault.azure.net/secrets/a", "https://u:p@x.vault.azure.net", "x"]
)
def test_a_url_of_something_else_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        AzureKeyVault(url, StaticCredential())


def test_destroying_keeps_our_tags_so_that_history_can_be_read(
    key_vault: KeyVault, open_azure: Open, mint: Minting
) -> None:
    vault = open_azure()
    reference = vault.ensure("root", mint, R1 | {"plan": "abc"})
    vault.destroy(reference, "old root, distrusted everywhere")
    listed = vault.list()[0]
    assert listed.fingerprint == reference.fingerprint
    assert listed.tag == R1 | {"plan": "abc", "capstan-destroyed": "old root, distrusted everywhere"}
    with pytest.raises(NotFound):
        vault.get(listed)


def test_opening_a_local_vault_does_not_import_azure(tmp_path: Path) -> None:
    program = (
        "import sys; from capstan.vaults import open_vault; "
        f"open_vault('local:{tmp_path}/v', {{}}); "
        "sys.exit(sum(name.split('.')[0] == 'azure' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=dict(os.environ), check=False)
    assert done.returncode == 0
