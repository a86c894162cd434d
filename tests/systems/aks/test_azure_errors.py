"""Whatever Azure's client raises is one of our errors, with the delay that Azure asks for; none is passed over."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError
from azure.core.pipeline.transport import HttpTransport

from capstan.errors import (
    Conflict,
    Denied,
    GateRefused,
    InvalidInput,
    NotFound,
    ServerFault,
    Throttled,
    Unreachable,
    VerificationFailed,
)
from capstan.systems.aks import enable
from capstan.systems.aks.arm import mapped, open_arm
from capstan.systems.aks.profile import read_profile, vault_url
from tests.systems.aks.test_managed_cluster import CLUSTER, PLUGIN, VAULT_ID, Endpoint, Token, cluster_body

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure.core.credentials import AccessToken

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def refused(status: int, **headers: str) -> HttpResponseError:
    """What azure-core raises for an answer of this status."""
    response: Any = SimpleNamespace(status_code=status, headers=headers, reason="why", content_type="", text=lambda: "")
    error = HttpResponseError(message="(Code) the words of Azure", response=response)
    error.status_code = status
    return error


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidInput), (401, Denied), (403, Denied), (404, NotFound), (409, Conflict), (412, Conflict),
        (429, Throttled), (500, ServerFault), (503, ServerFault), (302, ServerFault),
    ],
)  # fmt: skip
def test_each_status_is_an_error_of_its_kind_in_azures_words(status: int, error: type[Exception]) -> None:
    found = mapped(refused(status), "the cluster's profile cannot be read", "cluster east", now=NOW.timestamp)
    assert type(found) is error
    assert (found.what, found.where) == ("the cluster's profile cannot be read", "cluster east")
    assert f"HTTP {status}: (Code) the words of Azure" in found.observed


def test_throttling_lasts_as_long_as_azure_says() -> None:
    for asked, seconds in (("17", 17.0), ("Sun, 22 Nov 2026 12:01:00 GMT", 60.0)):
        found = mapped(refused(429, **{"Retry-After": asked}), "x", "y", now=NOW.timestamp)
        assert isinstance(found, Throttled)
        assert found.delay == seconds


@pytest.mark.parametrize(
    ("raised", "error", "hint"),
    [
        pytest.param(ServiceRequestError("Name or service not known"), Unreachable, "DNS", id="network"),
        pytest.param(
            ServiceRequestError("SSL: CERTIFICATE_VERIFY_FAILED"), VerificationFailed, "REQUESTS_CA_BUNDLE", id="TLS"
        ),
        pytest.param(ClientAuthenticationError("no credential in the chain"), Denied, "az login", id="no credential"),
        pytest.param(ValueError("not a URL"), InvalidInput, "", id="URL"),
    ],
)
def test_what_has_no_status_is_told_apart_too(raised: Exception, error: type[Exception], hint: str) -> None:
    found = mapped(raised, "x", "y", now=NOW.timestamp)
    assert isinstance(found, error)
    assert hint in found.next_command


def test_a_resource_manager_without_tls_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not the URL of Azure Resource Manager"):
        open_arm(CLUSTER, Token("t"), {"CAPSTAN_ARM_URL": "http://127.0.0.1:1"})


class Remembering(Token):
    """A credential that remembers for what it was asked."""

    def __init__(self) -> None:
        super().__init__("t")
        self.scopes: list[str] = []

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        self.scopes += scopes
        return super().get_token(*scopes, **options)


class Closed(HttpTransport[Any, Any]):
    """A network on which Azure refuses whatever is asked."""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def send(self, request: Any, **_: Any) -> Any:
        raise refused(403)


@pytest.mark.parametrize(
    ("url", "scope", "vault"),
    [
        ("", "https://management.azure.com/.default", "https://example-vault.vault.azure.net"),
        (
            "https://management.chinacloudapi.cn", "https://management.chinacloudapi.cn/.default",
            "https://example-vault.vault.azure.cn",
        ),
        (
            "https://management.usgovcloudapi.net/", "https://management.core.usgovcloudapi.net/.default",
            "https://example-vault.vault.usgovcloudapi.net",
        ),
    ],
)  # fmt: skip
def test_each_cloud_is_asked_with_a_token_of_its_own_and_names_its_own_vaults(url: str, scope: str, vault: str) -> None:
    credential = Remembering()
    arm = open_arm(CLUSTER, credential, {"CAPSTAN_ARM_URL": url}, transport=Closed())
    with pytest.raises(Denied):
        read_profile(arm)
    assert vault_url(arm, VAULT_ID) == vault  # which may not be read, so that its name has to do
    assert set(credential.scopes) == {scope}


class Forgetful(Endpoint):
    """Azure says that it has done it, and has not."""

    async def _apply(self, new: dict[str, Any], old: dict[str, Any] | None) -> None:
        await super()._apply(new, old)
        new["serviceMeshProfile"] = {"mode": "Disabled"}


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[Forgetful]:
    made = Forgetful(tmp_path)
    yield made
    made.stop()


def test_what_stands_in_the_profile_counts_and_not_what_was_answered(forgetful: Forgetful) -> None:
    forgetful.holds(cluster_body())
    with pytest.raises(GateRefused, match="the cluster's profile is not what was asked for") as caught:
        enable.enable_plugin_ca(forgetful.open(), PLUGIN, revision="asm-1-30", seconds=20)
    assert caught.value.observed == "no plug-in CA"
