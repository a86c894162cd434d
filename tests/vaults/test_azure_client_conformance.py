"""The lab's Key Vault answers Microsoft's own clients as the service does.

What is claimed here is what the test-suite of azure-keyvault-secrets exercises (sdk/keyvault/azure-keyvault-secrets/
tests of azure-sdk-for-python, read for its behaviours), with the synchronous and the asynchronous client as published.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.core.rest import HttpRequest
from azure.keyvault.secrets import ApiVersion, ContentType, KeyVaultSecretIdentifier
from azure.keyvault.secrets._shared import http_challenge_cache

from infra.lab.keyvault import Fault
from tests.vaults.clients import AsyncCalls, Calls, SyncCalls
from tests.vaults.harness import lab_sleep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infra.lab.keyvault import KeyVault

SEVERAL = 7
KINDS = {"sync": SyncCalls, "async": AsyncCalls}
ATTRIBUTES = (
    *("name", "vault_url", "content_type", "enabled", "not_before", "expires_on", "created_on", "updated_on"),
    *("recovery_level", "recoverable_days", "key_id", "tags"),
)
EXPIRES = datetime(2050, 2, 2, 8, tzinfo=UTC)
NOT_BEFORE = datetime(2015, 2, 2, 8, tzinfo=UTC)

Opener = "Callable[..., Calls]"


@pytest.fixture
def vault(key_vault: KeyVault) -> Iterator[KeyVault]:
    """The endpoint, empty, without faults, and met for the first time."""
    key_vault.store.secrets.clear()
    key_vault.faults.clear()
    key_vault.faults.requests.clear()
    http_challenge_cache.clear()
    yield key_vault
    key_vault.faults.clear()
    key_vault.accept_token("lab-token")  # for the other tests of this session, whatever was revoked here
    http_challenge_cache.clear()


@pytest.fixture(params=sorted(KINDS))
def opened(request: pytest.FixtureRequest, vault: KeyVault) -> Iterator[Callable[..., Calls]]:
    """Opens a client of either kind; closed after the test."""
    found: list[Calls] = []

    def get() -> str:
        vault.accept_token("lab-token")
        return "lab-token"

    def opener(get: Callable[[], str] = get, **options: Any) -> Calls:
        found.append(KINDS[request.param](vault, get, **options))
        return found[-1]

    yield opener
    for calls in found:
        calls.close()


@pytest.fixture
def calls(opened: Callable[..., Calls]) -> Calls:
    """A client of either kind with its default API version."""
    return opened()


def attributes(properties: Any) -> dict[str, Any]:
    return {name: getattr(properties, name) for name in ATTRIBUTES}


def set_several(calls: Calls) -> dict[str, Any]:
    return {f"secret{n}": calls.call("set_secret", f"secret{n}", f"value{n}") for n in range(SEVERAL)}


@pytest.mark.parametrize("version", list(ApiVersion))
def test_a_secret_lives_from_set_to_purge_in_every_version_of_the_api(
    opened: Callable[..., Calls], version: ApiVersion
) -> None:
    calls = opened(api_version=version)
    first = calls.call("set_secret", "crud", "one")
    assert first.id.startswith(f"{first.properties.vault_url}/secrets/crud/")
    assert (first.value, first.properties.enabled) == ("one", True)
    assert first.properties.created_on == first.properties.updated_on
    second = calls.call(
        "set_secret",
        "crud",
        "two",
        enabled=True,
        content_type="password",
        not_before=NOT_BEFORE,
        expires_on=EXPIRES,
        tags={"foo": "created"},
    )
    assert second.properties.version != first.properties.version
    assert (second.properties.content_type, second.properties.tags) == ("password", {"foo": "created"})
    assert (second.properties.not_before, second.properties.expires_on) == (NOT_BEFORE, EXPIRES)
    assert attributes(calls.call("get_secret", "crud").properties) == attributes(second.properties)
    exact = calls.call("get_secret", "crud", second.properties.version)
    assert (exact.value, attributes(exact.properties)) == ("two", attributes(second.properties))
    assert calls.call("get_secret", "crud", first.properties.version).value == "one"
    assert second.properties.recovery_level == "Recoverable+Purgeable"
    days = None if version in (ApiVersion.V2016_10_01, ApiVersion.V7_0) else 90
    assert second.properties.recoverable_days == days
    deleted = calls.delete("crud")
    assert deleted.name == "crud"
    calls.call("purge_deleted_secret", "crud")
    with pytest.raises(ResourceNotFoundError, match="Deleted Secret not found: crud"):
        calls.call("get_deleted_secret", "crud")


def test_an_update_changes_everything_but_the_value_and_no_version_comes_of_it(calls: Calls) -> None:
    made = calls.call("set_secret", "updated", "value", content_type="password", tags={"foo": "created"})
    lab_sleep(1.1)
    changed = calls.call(
        "update_secret_properties",
        "updated",
        made.properties.version,
        content_type="text/plain",
        expires_on=EXPIRES,
        not_before=NOT_BEFORE,
        tags={"foo": "updated"},
        enabled=False,
    )
    assert (changed.id, changed.content_type, changed.tags) == (made.id, "text/plain", {"foo": "updated"})
    assert (changed.expires_on, changed.not_before, changed.enabled) == (EXPIRES, NOT_BEFORE, False)
    assert changed.created_on == made.properties.created_on
    assert changed.updated_on > made.properties.updated_on
    assert len(calls.listed("list_properties_of_secret_versions", "updated")) == 1
    again = calls.call("update_secret_properties", "updated", enabled=True)
    assert (again.enabled, again.tags, again.content_type) == (True, {"foo": "updated"}, "text/plain")
    assert calls.call("get_secret", "updated").value == "value"


def test_a_list_of_secrets_gives_every_one_page_by_page_without_version_or_value(calls: Calls) -> None:
    made = set_several(calls)
    pages = calls.pages("list_properties_of_secrets", max_page_size=SEVERAL - 1)
    assert [len(page) for page in pages] == [SEVERAL - 1, 1]
    found = {item.name: item for page in pages for item in page}
    assert {name: attributes(item) for name, item in found.items()} == {
        name: attributes(secret.properties) for name, secret in made.items()
    }
    assert all(item.version is None for item in found.values())


def test_a_list_of_versions_gives_every_one_with_its_attributes(calls: Calls) -> None:
    made = {}
    for _ in range(SEVERAL):
        secret = calls.call("set_secret", "versions", "value")
        made[secret.id] = attributes(secret.properties)
    pages = calls.pages("list_properties_of_secret_versions", "versions", max_page_size=SEVERAL - 1)
    assert [len(page) for page in pages] == [SEVERAL - 1, 1]
    assert {item.id: attributes(item) for page in pages for item in page} == made


def test_a_name_that_is_not_there_or_no_longer_has_no_versions_and_that_is_no_error(calls: Calls) -> None:
    assert calls.listed("list_properties_of_secret_versions", "nobody") == []
    calls.call("set_secret", "gone", "value")
    calls.delete("gone")
    assert calls.listed("list_properties_of_secret_versions", "gone") == []


def test_deleted_secrets_are_listed_with_the_times_of_their_deletion_and_nothing_else_is(calls: Calls) -> None:
    made = set_several(calls)
    calls.call("set_secret", "alive", "value")
    for name in made:
        calls.delete(name)
    found = {item.name: item for item in calls.listed("list_deleted_secrets", max_page_size=3)}
    assert {name: attributes(item.properties) for name, item in found.items()} == {
        name: attributes(secret.properties) for name, secret in made.items()
    }
    for name, item in found.items():
        assert item.recovery_id.endswith(f"/deletedsecrets/{name}")
        assert (item.scheduled_purge_date - item.deleted_date).days == 90
    assert [item.name for item in calls.listed("list_properties_of_secrets")] == ["alive"]


def test_a_backup_brings_back_every_version_after_a_purge(calls: Calls) -> None:
    old = calls.call("set_secret", "kept", "old")
    new = calls.call("set_secret", "kept", "new", tags={"a": "b"})
    backup = calls.call("backup_secret", "kept")
    assert isinstance(backup, bytes)
    with pytest.raises(ResourceExistsError):
        calls.call("restore_secret_backup", backup)
    calls.delete("kept")
    with pytest.raises(ResourceExistsError):
        calls.call("restore_secret_backup", backup)
    calls.call("purge_deleted_secret", "kept")
    restored = calls.call("restore_secret_backup", backup)
    assert attributes(restored) == attributes(new.properties)
    assert calls.call("get_secret", "kept").value == "new"
    assert calls.call("get_secret", "kept", old.properties.version).value == "old"


def test_a_spoiled_backup_is_refused(calls: Calls) -> None:
    with pytest.raises(HttpResponseError) as refused:
        calls.call("restore_secret_backup", b"no backup at all")
    assert refused.value.status_code == 400


def test_recovered_secrets_are_what_they_were(calls: Calls) -> None:
    made = set_several(calls)
    for name in made:
        calls.delete(name)
    assert {item.name for item in calls.listed("list_deleted_secrets")} == set(made)
    for name in made:
        assert calls.recover(name).name == name
    for name, secret in made.items():
        found = calls.call("get_secret", name)
        assert (found.value, attributes(found.properties)) == (secret.value, attributes(secret.properties))
    assert calls.listed("list_deleted_secrets") == []


def test_purged_secrets_are_gone_and_their_names_free(calls: Calls) -> None:
    made = set_several(calls)
    for name in made:
        calls.delete(name)
        calls.call("purge_deleted_secret", name)
    assert calls.listed("list_deleted_secrets") == []
    assert calls.call("set_secret", "secret0", "again").value == "again"
    assert len(calls.listed("list_properties_of_secret_versions", "secret0")) == 1


def test_deleting_returns_only_when_the_deletion_shows(calls: Calls, vault: KeyVault) -> None:
    calls.call("set_secret", "slow", "value")
    vault.faults.requests.clear()
    deleted = calls.delete("slow")
    assert "get-deleted" in vault.faults.requests  # it asks until it shows; how often is a matter of the machine
    assert deleted.properties.version
    assert calls.call("get_deleted_secret", "slow").deleted_date == deleted.deleted_date
    with pytest.raises(ResourceNotFoundError):
        calls.call("get_secret", "slow")
    vault.faults.requests.clear()
    calls.recover("slow")
    assert "get" in vault.faults.requests
    assert calls.call("get_secret", "slow").value == "value"


def test_the_error_of_a_poll_reaches_the_caller(calls: Calls, vault: KeyVault) -> None:
    calls.call("set_secret", "polled", "value")
    vault.faults.add(Fault("get-deleted", status=418, code="Teapot", message="I am a teapot."))
    with pytest.raises(HttpResponseError) as raised:
        calls.delete("polled")
    assert raised.value.status_code == 418


@pytest.mark.parametrize("method", ["get_secret", "get_deleted_secret", "purge_deleted_secret", "backup_secret"])
def test_a_name_that_is_not_there_is_not_found(calls: Calls, method: str) -> None:
    with pytest.raises(ResourceNotFoundError) as raised:
        calls.call(method, "nobody")
    assert raised.value.error is not None
    assert raised.value.error.code == "SecretNotFound"


def test_a_version_that_is_not_there_is_not_found(calls: Calls) -> None:
    calls.call("set_secret", "here", "value")
    with pytest.raises(ResourceNotFoundError):
        calls.call("get_secret", "here", "0" * 32)
    with pytest.raises(ResourceNotFoundError):
        calls.call("update_secret_properties", "here", "0" * 32, enabled=False)


def test_a_disabled_secret_is_listed_and_updated_but_not_read(calls: Calls) -> None:
    calls.call("set_secret", "off", "value", enabled=False)
    with pytest.raises(HttpResponseError) as refused:
        calls.call("get_secret", "off")
    assert refused.value.status_code == 403
    assert refused.value.error is not None
    assert refused.value.error.innererror == {"code": "SecretDisabled"}
    assert [item.enabled for item in calls.listed("list_properties_of_secrets")] == [False]
    assert calls.call("update_secret_properties", "off", enabled=True).enabled


@pytest.mark.parametrize(
    "times", [{"expires_on": datetime(2001, 1, 1, tzinfo=UTC)}, {"not_before": datetime(2100, 1, 1, tzinfo=UTC)}]
)
def test_a_secret_outside_its_time_is_still_read(calls: Calls, times: dict[str, datetime]) -> None:
    calls.call("set_secret", "untimely", "value", **times)
    found = calls.call("get_secret", "untimely")
    assert (found.value, {name: getattr(found.properties, name) for name in times}) == ("value", times)


def test_setting_a_deleted_name_is_a_conflict_that_says_how_it_is_deleted(calls: Calls) -> None:
    calls.call("set_secret", "gone", "value")
    calls.delete("gone")
    with pytest.raises(ResourceExistsError) as refused:
        calls.call("set_secret", "gone", "new")
    assert refused.value.error is not None
    assert refused.value.error.innererror == {"code": "ObjectIsDeletedButRecoverable"}


@pytest.mark.parametrize("length", [1, 127])
def test_names_up_to_127_characters_fit(calls: Calls, length: int) -> None:
    name = "n" * length
    assert calls.call("set_secret", name, "value").name == name


@pytest.mark.parametrize("name", ["n" * 128, "with_underscore", "with.dot"])
def test_other_names_are_refused(calls: Calls, name: str) -> None:
    with pytest.raises(HttpResponseError) as refused:
        calls.call("set_secret", name, "value")
    assert refused.value.status_code == 400


def test_a_name_is_the_same_in_upper_and_lower_case_and_is_shown_as_it_was_first_written(calls: Calls) -> None:
    calls.call("set_secret", "MixedCase", "one")
    assert calls.call("get_secret", "mixedcase").name == "MixedCase"
    calls.call("set_secret", "MIXEDCASE", "two")
    assert [item.name for item in calls.listed("list_properties_of_secrets")] == ["MixedCase"]
    assert calls.call("get_secret", "MixedCase").value == "two"


def test_a_value_of_25_kb_fits_and_one_byte_more_does_not(calls: Calls) -> None:
    assert calls.call("set_secret", "big", "x" * 25 * 1024).value == "x" * 25 * 1024
    with pytest.raises(HttpResponseError) as refused:
        calls.call("set_secret", "big", "ü" * 12 * 1024 + "x" * (1024 + 1))
    assert refused.value.status_code == 400


@pytest.mark.parametrize(
    "given",
    [
        {"tags": {f"t{n}": "v" for n in range(16)}},
        {"tags": {"k" * 257: "v"}},
        {"tags": {"k": "v" * 257}},
        {"content_type": "c" * 256},
    ],
)
def test_what_exceeds_the_services_limits_is_refused_and_nothing_is_made(calls: Calls, given: dict[str, Any]) -> None:
    with pytest.raises(HttpResponseError) as refused:
        calls.call("set_secret", "limits", "value", **given)
    assert refused.value.status_code == 400
    with pytest.raises(ResourceNotFoundError):
        calls.call("get_secret", "limits")


def test_fifteen_tags_and_any_text_come_back_as_they_went_in(calls: Calls) -> None:
    tags = {f"tag {n} ü": "v" * 256 for n in range(15)}
    text = "-----BEGIN-----\r\nbyte for byte\n\n\t€ \U0001f510\n"
    calls.call("set_secret", "exact", text, tags=tags, content_type="application/x-pem-file")
    found = calls.call("get_secret", "exact", out_content_type=ContentType.PEM)
    assert (found.value, found.properties.tags) == (text, tags)
    assert found.properties.content_type == "application/x-pem-file"
    assert found.properties.previous_version is None  # only what a certificate backs has one


def test_an_id_that_the_service_gave_can_be_taken_apart(calls: Calls, vault: KeyVault) -> None:
    made = calls.call("set_secret", "parsed", "value")
    parts = KeyVaultSecretIdentifier(made.id)
    assert (parts.vault_url, parts.name, parts.version) == (vault.url, "parsed", made.properties.version)


# Authentication ----------------------------------------------------------------------------------------------------


def test_a_client_learns_by_challenge_where_to_authenticate_and_sends_no_body_before(
    calls: Calls, vault: KeyVault
) -> None:
    calls.call("set_secret", "first", "value")
    (asked,) = calls.credential.asked
    assert asked["enable_cae"] is True
    assert asked["tenant_id"] == "00000000-0000-0000-0000-000000000001"
    assert asked["scopes"] == ("https://" + vault.url.removeprefix("https://").partition(".")[2] + "/.default",)
    calls.call("get_secret", "first")
    assert len(calls.credential.asked) == 1  # challenge and token are kept
    assert vault.faults.requests == ["set", "get"]  # the unauthenticated request did nothing


def test_a_vault_that_moves_to_another_tenant_challenges_anew(opened: Callable[..., Calls], vault: KeyVault) -> None:
    calls = opened()
    calls.call("set_secret", "moved", "value")
    vault.move_to_tenant("11111111-1111-1111-1111-111111111111")
    try:
        assert calls.call("get_secret", "moved").value == "value"
        assert [asked["tenant_id"][0] for asked in calls.credential.asked] == ["0", "1"]
    finally:
        vault.move_to_tenant("00000000-0000-0000-0000-000000000001")


def test_a_claims_challenge_is_answered_with_a_token_that_has_the_claims(
    opened: Callable[..., Calls], vault: KeyVault
) -> None:
    tokens = iter(["plain", "with-claims"])

    def get() -> str:
        token = next(tokens)
        vault.accept_token(token)
        return token

    calls = opened(get)
    calls.call("set_secret", "evaluated", "value")
    claims = json.dumps({"access_token": {"acrs": {"essential": True, "value": "cp1"}}})
    vault.demand_claims(claims)
    assert calls.call("get_secret", "evaluated").value == "value"
    assert [asked.get("claims") for asked in calls.credential.asked] == [None, claims]


def test_a_challenge_followed_at_once_by_a_claims_challenge_is_answered(
    opened: Callable[..., Calls], vault: KeyVault
) -> None:
    vault.accept_token("revoked")
    vault.demand_claims('{"access_token":{}}')
    tokens = iter(["revoked", "good"])

    def get() -> str:
        token = next(tokens)
        if token == "good":
            vault.accept_token(token)
        return token

    calls = opened(get)
    assert calls.call("set_secret", "twice", "value").value == "value"
    assert [asked.get("claims") for asked in calls.credential.asked] == [None, '{"access_token":{}}']


def test_a_token_that_nobody_issued_is_refused_and_not_tried_for_ever(opened: Callable[..., Calls]) -> None:
    calls = opened(lambda: "forged")
    with pytest.raises(ClientAuthenticationError) as refused:
        calls.call("get_secret", "any")
    assert refused.value.error is not None
    assert refused.value.error.code == "Unauthorized"
    assert len(calls.credential.asked) == 1


# Versions, headers, logs, other requests -----------------------------------------------------------------------------


def test_an_unknown_version_of_the_api_is_refused_by_name(opened: Callable[..., Calls]) -> None:
    with pytest.raises(HttpResponseError, match=r"version \(6\.0\) is not recognized") as refused:
        opened(api_version="6.0").call("get_secret", "any")
    assert refused.value.status_code == 400


def test_a_request_of_ones_own_goes_through_the_client_with_its_version_filled_in(calls: Calls) -> None:
    calls.call("set_secret", "own", "value")
    answer = calls.call("send_request", HttpRequest("GET", "/secrets?maxresults=1"))
    assert answer.status_code == 200
    names = {"x-ms-keyvault-region", "x-ms-keyvault-network-info", "x-ms-keyvault-service-version", "x-ms-request-id"}
    assert names <= {name.lower() for name in answer.headers}


@pytest.mark.parametrize("query", ["maxresults=0", "maxresults=26", "maxresults=many", "$skiptoken=x"])
def test_a_page_size_outside_1_to_25_is_refused(calls: Calls, query: str) -> None:
    answer = calls.call("send_request", HttpRequest("GET", f"/secrets?{query}"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BadParameter")


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"no json",
        b'{"value": 1}',
        b"{}",
        b'{"value": "v", "attributes": 1}',
        b'{"value": "v", "attributes": {"exp": "soon"}}',
        b'{"value": "v", "tags": ["a"]}',
        b'{"value": "v", "tags": {"a": 1}}',
    ],
)
def test_a_body_that_is_no_secret_is_refused(calls: Calls, body: bytes) -> None:
    request = HttpRequest("PUT", "/secrets/odd", content=body, headers={"content-type": "application/json"})
    answer = calls.call("send_request", request)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BadParameter")


@pytest.mark.parametrize("enabled", [True, False])
def test_a_body_is_logged_by_the_client_only_where_logging_was_asked_for(
    opened: Callable[..., Calls], caplog: pytest.LogCaptureFixture, enabled: bool
) -> None:
    calls = opened(logging_enable=enabled)
    with caplog.at_level(logging.DEBUG, logger="azure"):
        calls.call("set_secret", "logged", "logged-value")
    assert ("logged-value" in caplog.text) is enabled


# Faults ------------------------------------------------------------------------------------------------------------


def test_a_client_waits_as_long_as_a_throttled_vault_says_and_goes_on(calls: Calls, vault: KeyVault) -> None:
    calls.call("set_secret", "busy", "value")
    vault.faults.requests.clear()
    vault.faults.add(Fault.throttled("get", retry_after=0.05, times=2))
    assert calls.call("get_secret", "busy").value == "value"
    assert vault.faults.requests == ["get", "get", "get"]


def test_a_throttled_answer_says_so_in_code_and_header(opened: Callable[..., Calls], vault: KeyVault) -> None:
    calls = opened(retry_total=0)
    vault.faults.add(Fault.throttled("get", retry_after=7))
    with pytest.raises(HttpResponseError) as refused:
        calls.call("get_secret", "busy")
    assert refused.value.status_code == 429
    assert refused.value.response is not None
    headers: Any = getattr(refused.value.response, "headers")  # noqa: B009 - the declared type has none
    assert headers["Retry-After"] == "7"
    assert refused.value.error is not None
    assert refused.value.error.code == "Throttled"


@pytest.mark.parametrize("inner", ["ForbiddenByRbac", "ForbiddenByPolicy", "ForbiddenByFirewall", "AccessDenied"])
def test_a_forbidden_operation_names_its_reason(calls: Calls, vault: KeyVault, inner: str) -> None:
    vault.faults.add(Fault.forbidden("set", inner))
    with pytest.raises(HttpResponseError) as refused:
        calls.call("set_secret", "forbidden", "value")
    assert refused.value.status_code == 403
    assert refused.value.error is not None
    assert refused.value.error.innererror == {"code": inner}
    assert vault.faults.requests.count("set") == 1  # a refusal is not repeated


def test_a_client_goes_on_after_a_server_error(calls: Calls, vault: KeyVault) -> None:
    vault.faults.add(Fault("set", status=503, times=1))
    assert calls.call("set_secret", "again", "value").value == "value"
