"""CreateCertificate: who asks, and the leaf for them (security/pkg/server/ca)."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

from cryptography import x509

from infra.lab.client import ApiError
from infra.lab.istio import wire
from infra.lab.istio.istiod.authority import SigningError
from infra.lab.istio.istiod.grpcserver import Call, RpcError, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from infra.lab.client import KubeClient
    from infra.lab.istio.golog import Log
    from infra.lab.istio.istiod.authority import Authority
    from infra.lab.istio.istiod.metrics import Metrics

JSON = dict[str, Any]
AUDIENCE = "istio-ca"
POD_NAME_EXTRA = "authentication.kubernetes.io/pod-name"
PROXY_NOTE = "proxy"
"""What a connection is noted for in /debug/connections: `POD.NAMESPACE`."""
_SIGN_STATUS = {"CSR_ERROR": Status.INVALID_ARGUMENT, "TTL_ERROR": Status.INVALID_ARGUMENT}


class _NotAuthenticatedError(Exception):
    """An authenticator's refusal, in its words."""


class _Caller:
    """Who asks: identities to be certified; of a pod, its name and service account."""

    def __init__(self, identities: list[str], namespace: str = "", account: str = "", pod: str = "") -> None:
        self.identities = identities
        self.namespace, self.account, self.pod = namespace, account, pod


class CaService:
    """The service's methods, for the gRPC server."""

    def __init__(self, authority: Authority, client: KubeClient, metrics: Metrics, out: Log) -> None:
        self._authority = authority
        self._settings = authority.settings
        self._client = client
        self._metrics = metrics
        self._out = out

    async def create_certificate(self, data: bytes, call: Call) -> bytes:
        """One request; raises RpcError."""
        self._metrics.count("csr_count")
        try:
            request = wire.CertificateRequest.decode(data)
        except wire.WireError as error:
            raise RpcError(Status.INTERNAL, f"grpc: error unmarshalling request: {error}") from error
        caller = await self._authenticate(call)
        identities = caller.identities
        if wanted := request.metadata.get("ImpersonatedIdentity"):
            await self._check_impersonation(caller, wanted)
            identities = [wanted]
        try:
            leaf = self._authority.sign(request.csr, identities, request.validity_seconds)
        except SigningError as error:
            self._out.error(self._refusal(error, call.connection.peer), "serverca")
            self._metrics.count("csr_sign_err_count", f'error="{error.kind}"')
            raise RpcError(_SIGN_STATUS.get(error.kind, Status.INTERNAL), f"CSR signing error ({error})") from error
        self._metrics.count("success_cert_issuance_count")
        return wire.CertificateResponse(self._authority.chain(leaf)).encode()

    def _refusal(self, error: SigningError, peer: str) -> str:
        version = self._settings.rules.version
        if version < (1, 19, 0):
            return f"CSR signing error ({error})"
        if version < (1, 20, 0):
            return f"CSR signing error for client {peer}: ({error})"
        return f"CSR signing error: {error}\tclient={peer}"

    async def watch_bundles(self, _: bytes, call: Call) -> AsyncIterator[bytes]:
        """The pushed root bundle, now and at every change of its text, for as long as the client stays.

        Without ISTIO_MULTIROOT_MESH nothing is ever sent. The client authenticates as it does for a certificate.
        """
        await self._authenticate(call)
        pushed: asyncio.Queue[str] = asyncio.Queue()
        self._authority.on_bundle(pushed.put_nowait)
        try:
            if (text := self._authority.pushed) is not None:
                yield wire.TrustBundle(text).encode()
            while True:
                yield wire.TrustBundle(await pushed.get()).encode()
        finally:
            self._authority.forget(pushed.put_nowait)

    # --- who asks ---------------------------------------------------------------------------------------------------

    async def _authenticate(self, call: Call) -> _Caller:
        """A verified client certificate, else the token's review; both refusals are printed."""
        reasons = []
        for index, (name, method) in enumerate(
            (("ClientCertAuthenticator", self._by_certificate), ("KubeJWTAuthenticator", self._by_token))
        ):
            try:
                caller = await method(call)
            except _NotAuthenticatedError as error:
                reasons.append(f"Authenticator {name} at index {index} got error: {error}. ")
                continue
            if caller.pod:
                call.connection.notes[PROXY_NOTE] = f"{caller.pod}.{caller.namespace}"
            return caller
        self._metrics.count("authentication_failure_count")
        text = "".join(reasons)
        if self._settings.rules.version >= (1, 15, 0):
            self._out.error(f"Failed to authenticate client from {call.connection.peer}: {text}", "security")
        else:
            self._out.warn(f"Authentication failed for {call.connection.peer}: {text}", "serverca")
        raise RpcError(Status.UNAUTHENTICATED, "request authenticate failure")

    async def _by_certificate(self, call: Call) -> _Caller:
        der = call.connection.certificate
        if der is None:
            raise _NotAuthenticatedError("no verified chain is found")
        try:
            names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound as error:
            raise _NotAuthenticatedError("the SAN extension does not exist") from error
        return _Caller(names.value.get_values_for_type(x509.UniformResourceIdentifier))

    async def _by_token(self, call: Call) -> _Caller:
        header = call.metadata.get("authorization", "")
        if not header:
            raise _NotAuthenticatedError("target JWT extraction error: no HTTP authorization header exists")
        if not header.startswith("Bearer "):
            text = "target JWT extraction error: no bearer token exists in HTTP authorization header"
            raise _NotAuthenticatedError(text)
        cluster = call.metadata.get("clusterid", "")
        version = self._settings.rules.version
        if cluster not in ("", self._settings.cluster_id):
            if version < (1, 23, 0):
                raise _NotAuthenticatedError(f"could not get cluster {cluster}'s kube client")
            text = f'client claims to be in cluster "{cluster}", but we only know about local cluster '
            raise _NotAuthenticatedError(f'{text}"{self._settings.cluster_id}" and remote clusters []')
        token = header.removeprefix("Bearer ")
        try:
            return await self._review(token, self._audiences(token))
        except (_NotAuthenticatedError, ApiError) as error:
            text = error.message if isinstance(error, ApiError) else str(error)
            raise _NotAuthenticatedError(f'failed to validate the JWT from cluster "{cluster}": {text}') from error

    def _audiences(self, token: str) -> list[str]:
        """For whom the token has to be; up to 1.21 one that is for nobody in particular is reviewed as such."""
        if self._settings.rules.version >= (1, 22, 0):
            return [AUDIENCE]
        named = _named_audiences(token)
        if named == []:
            return []
        if named is not None and len(named) == 1 and _is_kubernetes(named[0]):
            self._out.warn(
                f"Received token with aud [\"{AUDIENCE}\"], but expected 'kubernetes.default.svc'."
                " BoundServiceAccountTokenVolume, default in Kubernetes 1.21+, is not compatible with first-party-jwt"
            )
        return [AUDIENCE]

    async def _review(self, token: str, audiences: list[str]) -> _Caller:
        spec: JSON = {"token": token} | ({"audiences": audiences} if audiences else {})
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        answer = await self._client.create("/apis/authentication.k8s.io/v1/tokenreviews", body)
        status: JSON = answer.get("status") or {}
        if error := status.get("error"):
            raise _NotAuthenticatedError(f"the service account authentication returns an error: {error}")
        if not status.get("authenticated"):
            raise _NotAuthenticatedError("the token is not authenticated")
        user: JSON = status.get("user") or {}
        if "system:serviceaccounts" not in (user.get("groups") or []):
            raise _NotAuthenticatedError("the token is not a service account")
        parts = str(user.get("username", "")).split(":")
        if len(parts) != 4:
            raise _NotAuthenticatedError("invalid username field in the token review result")
        namespace, account = parts[2:]
        identity = f"spiffe://{self._settings.trust_domain}/ns/{namespace}/sa/{account}"
        pods = (user.get("extra") or {}).get(POD_NAME_EXTRA) or [""]
        return _Caller([identity], namespace, account, pods[0])

    async def _check_impersonation(self, caller: _Caller, wanted: str) -> None:
        """Only a trusted node agent (ztunnel), and only for service accounts with a pod on its own node."""
        problem = ""
        if not self._settings.trusted_nodes:
            problem = "impersonation not allowed, as node authorizer (CA_TRUSTED_NODE_ACCOUNTS) is not configured"
        else:
            try:
                reason = await self._impersonation_refusal(caller, wanted)
            except ApiError as error:
                reason = error.message
            if reason:
                problem = f"impersonation failed for identity {wanted}, error: {reason}"
        if problem:
            self._metrics.count("authentication_failure_count")
            self._out.warn(problem, "serverca")
            raise RpcError(Status.UNAUTHENTICATED, "request impersonation authentication failure")

    async def _impersonation_refusal(self, caller: _Caller, wanted: str) -> str:
        account = f"{caller.namespace}/{caller.account}"
        if account not in self._settings.trusted_nodes:
            return f"caller ({account}) is not allowed to impersonate"
        parts = wanted.removeprefix("spiffe://").split("/")
        if len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa":
            return f"failed to validate impersonated identity {wanted}"
        namespace, name = parts[2], parts[4]
        pod = await self._client.get(f"/api/v1/namespaces/{caller.namespace}/pods/{caller.pod}")
        node = pod["spec"].get("nodeName", "")
        found = await self._client.list(
            f"/api/v1/namespaces/{namespace}/pods",
            fieldSelector=f"spec.nodeName={node},spec.serviceAccountName={name}",
        )
        live = [item for item in found["items"] if item["status"].get("phase") not in ("Succeeded", "Failed")]
        return "" if live else f'no instances of "{namespace}/{name}" found on node "{node}"'


def _named_audiences(token: str) -> list[str] | None:
    """The audiences a JWT names, [] for a legacy one that names none; None for what is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        found = claims.get("aud") or []
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, list) else None


def _is_kubernetes(audience: str) -> bool:
    return audience.removeprefix("https://").removeprefix("http://").startswith("kubernetes.default.svc")
