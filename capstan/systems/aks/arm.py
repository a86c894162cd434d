"""Azure Resource Manager, for one managed cluster. The client's own retries are off: who calls decides."""

from __future__ import annotations

import email.utils
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from azure.core import AzureClouds
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
from azure.core.pipeline.policies import HeadersPolicy, RetryPolicy, UserAgentPolicy
from azure.core.rest import HttpRequest
from azure.mgmt.containerservice import ContainerServiceClient
from azure.mgmt.core import ARMPipelineClient
from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy
from azure.mgmt.core.tools import get_arm_endpoints

from capstan.cluster.client import user_agent
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

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from azure.core.credentials import TokenCredential

T = TypeVar("T")

ENDPOINT: Final = "CAPSTAN_ARM_URL"
"""Variable with Resource Manager's URL, for other clouds and private links; default: the public cloud's."""
PUBLIC: Final = "https://management.azure.com"
_VAULT_SUFFIXES: Final = {
    AzureClouds.AZURE_PUBLIC_CLOUD: "vault.azure.net",
    AzureClouds.AZURE_CHINA_CLOUD: "vault.azure.cn",
    AzureClouds.AZURE_US_GOVERNMENT: "vault.usgovcloudapi.net",
}
"""Azure documentation, "About keys, secrets, and certificates": DNS suffixes for base URL."""
_CLUSTER_ID: Final = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)/providers/Microsoft\.ContainerService"
    r"/managedClusters/(?P<name>[^/]+)/?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ClusterId:
    """The parts of a managed cluster's ARM id."""

    subscription: str
    group: str
    name: str

    @classmethod
    def parse(cls, text: str) -> ClusterId:
        """From `/subscriptions/S/resourceGroups/G/providers/Microsoft.ContainerService/managedClusters/N`.

        Raises:
            InvalidInput: It is no such id.
        """
        match = _CLUSTER_ID.fullmatch(text.strip())
        if match is None:
            raise InvalidInput(
                "not the id of a managed cluster", observed=repr(text),
                expected="/subscriptions/S/resourceGroups/G/providers/Microsoft.ContainerService/managedClusters/N",
                next_command="az aks show --resource-group GROUP --name NAME --query id",
            )  # fmt: skip
        return cls(match["subscription"], match["group"], match["name"])

    def __str__(self) -> str:
        return f"managed cluster {self.name} in resource group {self.group}"


class Arm:
    """Resource Manager as seen from one managed cluster.

    Args:
        client: azure-mgmt-containerservice, of the cluster's subscription.
        raw: For resources that it does not know: the vault, and who may read it.
        vault_suffix: What the names of Key Vaults end in, in this cloud.
        sleep: Waits the given seconds.
    """

    def __init__(
        self,
        cluster: ClusterId,
        client: ContainerServiceClient,
        raw: ARMPipelineClient[Any, Any],
        *,
        vault_suffix: str = _VAULT_SUFFIXES[AzureClouds.AZURE_PUBLIC_CLOUD],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.cluster = cluster
        self.client = client
        self.vault_suffix = vault_suffix
        self.sleep = sleep
        self._raw = raw

    def call(self, what: str, request: Callable[[], T], where: str = "") -> T:
        """The request's answer; whatever Azure's client raises becomes one of ours."""
        try:
            return request()
        except CapstanError:
            raise
        except Exception as error:  # noqa: BLE001 - everything the client raises is mapped; nothing is swallowed
            problem = mapped(error, what, where or str(self.cluster))
        raise problem

    def get(self, path: str, api_version: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Any resource, as JSON.

        Raises:
            NotFound, Denied and the others of `mapped`.
        """
        request = HttpRequest("GET", path, params={"api-version": api_version, **(query or {})})

        def send() -> dict[str, Any]:
            request.url = self._raw.format_url(request.url)
            response = self._raw.send_request(request)
            response.raise_for_status()
            value = response.json()
            return value if isinstance(value, dict) else {}

        return self.call("the resource cannot be read", send, where=path)


def open_arm(
    cluster_id: str,
    credential: TokenCredential | None = None,
    environment: Mapping[str, str] | None = None,
    **client_options: Any,
) -> Arm:
    """Resource Manager for this cluster.

    Args:
        credential: How to authenticate; default: azure-identity's DefaultAzureCredential.
        environment: Where `CAPSTAN_ARM_URL` comes from; default: the process's. A private CA for TLS comes from
            `REQUESTS_CA_BUNDLE`, as for Key Vault.
        client_options: Further arguments of the clients, such as `connection_verify` or `polling_interval` (seconds).

    Raises:
        InvalidInput: The id, or the URL, is none.
    """
    cluster = ClusterId.parse(cluster_id)
    url = (os.environ if environment is None else environment).get(ENDPOINT, "") or PUBLIC
    if not url.startswith("https://"):
        raise InvalidInput(
            "not the URL of Azure Resource Manager", where=ENDPOINT, observed=url, expected="https://..."
        )
    if credential is None:
        from azure.identity import DefaultAzureCredential

        credential = DefaultAzureCredential()
    options = {"retry_total": 0, "connection_timeout": 10, "read_timeout": 60} | client_options
    cloud = _cloud(url)
    scopes: list[str] = get_arm_endpoints(cloud)["credential_scopes"]
    client = ContainerServiceClient(
        credential, cluster.subscription, base_url=url, credential_scopes=scopes, user_agent=user_agent(), **options
    )
    raw: ARMPipelineClient[Any, Any] = ARMPipelineClient(
        base_url=url,
        policies=[
            HeadersPolicy(base_headers={"Accept": "application/json"}),
            UserAgentPolicy(user_agent()),
            RetryPolicy(**options),
            ARMChallengeAuthenticationPolicy(credential, *scopes),
        ],
        **client_options,
    )
    return Arm(cluster, client, raw, vault_suffix=_VAULT_SUFFIXES[cloud])


def _cloud(url: str) -> AzureClouds:
    """The cloud whose Resource Manager this is; any other host stands in front of the public one's.

    Each cloud's tenants issue tokens for their own Resource Manager alone.
    """
    host = urlsplit(url).hostname
    for cloud in AzureClouds:
        if urlsplit(str(get_arm_endpoints(cloud)["resource_manager"])).hostname == host:
            return cloud
    return AzureClouds.AZURE_PUBLIC_CLOUD


def mapped(error: Exception, what: str, where: str, *, now: Callable[[], float] = time.time) -> CapstanError:
    """The error of ours that says what Resource Manager's said."""
    observed = _observed(error)
    if isinstance(error, ClientAuthenticationError):
        return Denied(
            what, where=where, observed=observed, expected="an identity that the subscription's tenant knows",
            next_command="az login, or set AZURE_CLIENT_ID, AZURE_TENANT_ID and a secret or federated token",
        )  # fmt: skip
    if isinstance(error, HttpResponseError) and error.status_code:
        status = error.status_code
        told: dict[str, Any] = {"where": where, "observed": observed}
        if status in (401, 403):
            return Denied(
                what, expected="permission",
                next_command="assign the role Azure Kubernetes Service Contributor on the cluster "
                "(Reader suffices to read its profile)", **told,
            )  # fmt: skip
        if status == 404:
            return NotFound(what, expected="the resource", next_command="az aks list --output table", **told)
        if status in (409, 412):
            return Conflict(what, expected="no other change of the cluster under way", delay=30.0, **told)
        if status == 429:
            return Throttled(what, expected="fewer requests", delay=_retry_after(error, now), **told)
        if status >= 500 or status < 400:
            return ServerFault(what, expected="success", delay=_retry_after(error, now), **told)
        return InvalidInput(what, expected="a request that Resource Manager accepts", **told)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return VerificationFailed(
            what, where=where, observed=observed, expected="a server certificate that verifies",
            next_command="behind a TLS proxy, name its CA in REQUESTS_CA_BUNDLE",
        )  # fmt: skip
    if isinstance(error, AzureError):
        return Unreachable(
            what, where=where, observed=observed, expected="an answer", next_command="check network, proxy and DNS"
        )
    return InvalidInput(what, where=where, observed=observed, expected="a Resource Manager at this URL")


def _observed(error: Exception) -> str:
    status = getattr(error, "status_code", None)
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (f"HTTP {status}: " if status else "") + first


def _retry_after(error: HttpResponseError, now: Callable[[], float]) -> float | None:
    response: Any = error.response
    text = response.headers.get("Retry-After", "") if response is not None else ""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now())
    except (ValueError, TypeError):
        return None
