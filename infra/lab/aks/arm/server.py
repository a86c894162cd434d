"""The REST API of Azure Resource Manager: requests to operations on clusters and back."""

from __future__ import annotations

import json
import re
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from infra.lab.aks.arm.clusters import Apply, Clusters
from infra.lab.aks.arm.errors import ArmError
from infra.lab.keyvault.certificates import write_certificates
from infra.lab.keyvault.serving import TlsServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping
    from pathlib import Path

    from infra.lab.aks.arm.clusters import Cluster

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Any]
    Send = Callable[[MutableMapping[str, Any]], Any]

JSON = dict[str, Any]

RETRY_SECONDS = 1
KEY_VAULT_SECRETS_USER = "4633458b-17de-408a-b874-0445c86b69e6"
_API_VERSION = re.compile(r"20\d\d-\d\d-\d\d(-preview)?")
_CLUSTER = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/resourcegroups/(?P<group>[^/]+)/providers/microsoft\.containerservice"
    r"/managedclusters(?:/(?P<name>[^/]+))?",
    re.IGNORECASE,
)
_CLUSTERS = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/providers/microsoft\.containerservice/managedclusters", re.IGNORECASE
)
_OPERATION = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/providers/microsoft\.containerservice/locations/[^/]+/operations"
    r"/(?P<operation>[^/]+)",
    re.IGNORECASE,
)
_VAULT = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/resourcegroups/(?P<group>[^/]+)/providers/microsoft\.keyvault/vaults"
    r"/(?P<name>[^/]+)",
    re.IGNORECASE,
)
_ASSIGNMENTS = re.compile(_VAULT.pattern + r"/providers/microsoft\.authorization/roleassignments", re.IGNORECASE)
_ASSIGNED_TO = re.compile(r"(?:assignedTo\('|principalId eq ')([0-9a-fA-F-]{36})'\)?")


class ResourceManager:
    """One subscription's Resource Manager.

    Args:
        directory: Where the lab's Azure certificates are (the Key Vault's: clients need to trust one CA), and where
            `arm.json` is written.
        subscription: Its id.
        accepts: Whether a bearer token is let in.
        apply: Carries out what a cluster's new body asks for.
        vaults: Key Vault name -> its URL, for a GET of the vault's resource.
        describe: More for `arm.json`.

    Attributes:
        clusters: The subscription's managed clusters.
        grants: (Key Vault name, object id) of identities with the role Key Vault Secrets User. They are told of; the
            lab's vault lets everybody in who has a token.
    """

    def __init__(
        self,
        directory: Path,
        subscription: str,
        accepts: Callable[[str], bool],
        apply: Apply,
        *,
        vaults: Mapping[str, str] | None = None,
        describe: Mapping[str, Any] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.clusters = Clusters(subscription, apply)
        self.grants: list[tuple[str, str]] = []
        self.url = ""
        self._directory = directory
        self._accepts = accepts
        self._vaults = {name.lower(): url for name, url in (vaults or {}).items()}
        self._describe = describe or {}
        self._host = host
        self._server = TlsServer(self, host)

    async def start(self, port: int = 0) -> None:
        """Serve; returns once the port is open and DIR/arm.json is written. Raises RuntimeError."""
        ca, certificate, key = write_certificates(self._directory, self._host)
        port = await self._server.start(port, certificate, key)
        self.url = f"https://{self._host}:{port}"
        content = {"url": self.url, "ca": str(ca), "subscription": self.clusters.subscription, **self._describe}
        if "environment" in content:  # what Capstan needs besides, to find this Resource Manager
            content["environment"] = {**content["environment"], "CAPSTAN_ARM_URL": self.url}
        temporary = self._directory / ".arm.json"
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(self._directory / "arm.json")

    async def stop(self) -> None:
        """Stop serving and abandon what runs."""
        (self._directory / "arm.json").unlink(missing_ok=True)
        await self.clusters.stop()
        await self._server.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        extra: dict[str, str] = {"x-ms-request-id": str(uuid.uuid4())}
        try:
            self._authenticate(headers, extra)
            self._check_version(query)
            status, answer = self._answer(scope["method"], scope["path"], query, headers, body, extra)
        except ArmError as error:
            status, answer = error.status, {"error": {"code": error.code, "message": error.message}}
            if error.target:
                answer["error"]["target"] = error.target
        await _send(send, status, answer, extra)

    def _authenticate(self, headers: Mapping[str, str], extra: dict[str, str]) -> None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme == "Bearer" and self._accepts(token):
            return
        problem = "The access token is invalid." if token else "The 'Authorization' header is missing."
        extra["www-authenticate"] = (
            'Bearer authorization_uri="https://login.windows.net/00000000-0000-0000-0000-000000000001",'
            f' error="invalid_token", error_description="{problem}"'
        )
        code = "InvalidAuthenticationToken" if token else "AuthenticationFailed"
        raise ArmError(401, code, problem if token else f"Authentication failed. {problem}")

    def _check_version(self, query: Mapping[str, str]) -> None:
        version = query.get("api-version")
        if version is None:
            raise ArmError(
                400, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required."
            )
        if not _API_VERSION.fullmatch(version):
            raise ArmError(400, "InvalidApiVersionParameter", f"The api-version '{version}' is invalid.")

    def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
        extra: dict[str, str],
    ) -> tuple[int, JSON]:
        for pattern, handler in (
            (_OPERATION, self._operation),
            (_CLUSTERS, self._list),
            (_VAULT, self._vault),
        ):
            if match := pattern.fullmatch(path):
                self._check(match["subscription"], method, "GET")
                return 200, handler(match)
        if match := _ASSIGNMENTS.fullmatch(path):
            self._check(match["subscription"], method, "GET")
            return 200, self._assignments(match, query.get("$filter", ""))
        if not (match := _CLUSTER.fullmatch(path)):
            raise ArmError(404, "InvalidResourceType", f"No resource of this lab has the path {path}.")
        if match["name"] is None:
            self._check(match["subscription"], method, "GET")
            return 200, {"value": [self.clusters.document(each) for each in self.clusters.all(match["group"])]}
        self._check(match["subscription"], method, "GET", "PUT")
        if method == "GET":
            return 200, self._shown(self.clusters.get(match["group"], match["name"]), extra)
        cluster, created = self.clusters.put(
            match["group"],
            match["name"],
            _json(body),
            headers.get("if-match", ""),
            headers.get("if-none-match", ""),
        )
        if cluster.operation is not None:
            location = str(cluster.body["location"])
            where = f"/subscriptions/{match['subscription']}/providers/Microsoft.ContainerService/locations/{location}"
            extra["azure-asyncoperation"] = (
                f"{self.url}{where}/operations/{cluster.operation.id}?api-version=2017-08-31"
            )
            extra["retry-after"] = str(RETRY_SECONDS)
        return (201 if created else 200), self._shown(cluster, extra)

    def _shown(self, cluster: Cluster, extra: dict[str, str]) -> JSON:
        extra["etag"] = cluster.etag
        return self.clusters.document(cluster)

    def _operation(self, match: re.Match[str]) -> JSON:
        operation = self.clusters.operations.get(match["operation"])
        if operation is None:
            raise ArmError(404, "NotFound", f"The operation {match['operation']} was not found.")
        return operation.document()

    def _list(self, _: re.Match[str]) -> JSON:
        return {"value": [self.clusters.document(each) for each in self.clusters.all()]}

    def _vault(self, match: re.Match[str]) -> JSON:
        self.clusters.check_group(match["group"])
        url = self._vaults.get(match["name"].lower())
        if url is None:
            raise ArmError(
                404,
                "ResourceNotFound",
                f"The Resource 'Microsoft.KeyVault/vaults/{match['name']}' under resource group '{match['group']}' was"
                " not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix",
            )
        return {
            "id": match.string,
            "name": match["name"],
            "type": "Microsoft.KeyVault/vaults",
            "properties": {"vaultUri": f"{url}/", "enableSoftDelete": True, "enableRbacAuthorization": True},
        }

    def _assignments(self, match: re.Match[str], condition: str) -> JSON:
        """The role assignments at a vault's scope, all or those of one principal."""
        principal = ""
        if condition:
            if not (wanted := _ASSIGNED_TO.fullmatch(condition)):
                raise ArmError(400, "UnsupportedQuery", f"The filter '{condition}' is not supported.")
            principal = wanted[1].lower()
        scope = match.string.partition("/providers/Microsoft.Authorization")[0]
        definitions = f"/subscriptions/{match['subscription']}/providers/Microsoft.Authorization/roleDefinitions"
        found: list[JSON] = []
        for vault, holder in self.grants:
            if vault.lower() == match["name"].lower() and principal in ("", holder.lower()):
                name = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{scope}/{holder}"))
                properties = {
                    "roleDefinitionId": f"{definitions}/{KEY_VAULT_SECRETS_USER}",
                    "principalId": holder,
                    "principalType": "ServicePrincipal",
                    "scope": scope,
                }
                kind = "Microsoft.Authorization/roleAssignments"
                where = f"{scope}/providers/{kind}/{name}"
                found.append({"id": where, "name": name, "type": kind, "properties": properties})
        return {"value": found}

    def _check(self, subscription: str, method: str, *allowed: str) -> None:
        if subscription.lower() != self.clusters.subscription.lower():
            raise ArmError(404, "SubscriptionNotFound", f"The subscription '{subscription}' could not be found.")
        if method not in allowed:
            raise ArmError(405, "HttpMethodNotSupported", f"The HTTP method '{method}' is not supported here.")


def _json(body: bytes) -> JSON:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ArmError(400, "InvalidRequestContent", "The request content was invalid and could not be deserialized.")
    return found


async def _send(send: Send, status: int, answer: JSON, extra: Mapping[str, str]) -> None:
    data = json.dumps(answer).encode()
    headers = {"content-type": "application/json; charset=utf-8", "content-length": str(len(data)), **extra}
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": data})
