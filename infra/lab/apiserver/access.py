"""Identity and permission of the API server in one piece: what the rest of the server needs of it.

`build` makes everything from the server's PKI files; `Access.handle` answers the requests that are this part's own:
reviews, TokenRequest, and the subresources of pods which the kubelet serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import bootstrap_rbac, reviews, token_request
from .admission import AdmissionChain
from .authn import Authenticator, ClientCertificates
from .authz import Authorizer
from .kubelet_proxy import STREAMS, KubeletProxy
from .rbac import Attributes
from .request import Response
from .reviews import Reviews
from .tokens import ISSUER, SigningKey, TokenVerifier
from .webhook_client import WebhookClient
from .webhooks import Webhooks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .api import Api
    from .calls import Calls
    from .request import Request


@dataclass
class AccessFiles:
    """Where the server keeps what this part reads. The signing key is made when it is not there."""

    client_ca: Path
    signing_key: Path
    kubelet_client_certificate: Path
    kubelet_client_key: Path


@dataclass
class Access:
    """Authentication, authorization, admission, and the requests they answer themselves."""

    api: Api
    authenticator: Authenticator
    authorizer: Authorizer
    admission: AdmissionChain
    signing_key: SigningKey
    kubelets: KubeletProxy
    reviews: Reviews
    webhook_client: WebhookClient
    calls: Calls

    def handles(self, request: Request) -> bool:
        """Whether `handle` is the one to answer this request."""
        return self._is_review(request) or self._is_token_request(request) or self.kubelets.handles(request)

    async def handle(self, request: Request, decode: Callable[[], dict[str, Any]]) -> Response | None:
        """Answer a request for which `handles` is true; None when its connection was taken over and is finished.

        `decode` turns the request's body into an object (JSON or protobuf). Raises ApiStatusError.
        """
        if self._is_review(request):
            kind = request.kind.kind
            answer = self.reviews.answer(kind, request.user, request.info.namespace, decode())
            return Response.json(answer, 201)
        if self._is_token_request(request):
            info = request.info
            issued = token_request.issue(
                self.api.store, self.signing_key, info.namespace, info.name, decode(), self.api.now()
            )
            return Response.json(issued, 201)
        self._authorize_stream(request)
        return await self.kubelets.handle(request)

    def _authorize_stream(self, request: Request) -> None:
        """A WebSocket is a GET, but opening a stream into a pod needs ``create`` as well, as for SPDY's POST.

        Feature AuthorizePodWebsocketUpgradeCreatePermission, on by default since Kubernetes 1.35 (KEP-4006).
        """
        info = request.info
        if info.subresource not in STREAMS or request.method != "GET":
            return
        if request.headers.get("upgrade", "").lower() == "websocket":
            self.authorizer.authorize(
                Attributes(request.user, "create", "", "v1", "pods", info.subresource, info.namespace, info.name)
            )

    def openid(self, path: str, base: str) -> Response | None:
        """The token issuer's public documents for relying parties; None for any other path.

        OpenID Connect Discovery 1.0 section 4 and RFC 7517; `base` is the server's own URL.
        """
        match path.rstrip("/"):
            case "/openid/v1/jwks":
                return Response.json(self.signing_key.jwks())
            case "/.well-known/openid-configuration":
                document = {
                    "issuer": ISSUER,
                    "jwks_uri": f"{base}/openid/v1/jwks",
                    "response_types_supported": ["id_token"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                }
                return Response.json(document)
        return None

    async def close(self) -> None:
        """Close the connections to kubelets and webhooks; they are opened again when needed."""
        await self.kubelets.close()
        await self.webhook_client.close()

    @staticmethod
    def _is_review(request: Request) -> bool:
        return request.info.kind is not None and request.info.kind.kind in reviews.KINDS

    @staticmethod
    def _is_token_request(request: Request) -> bool:
        info = request.info
        return info.group == "" and info.resource == "serviceaccounts" and info.subresource == "token"


def build(api: Api, files: AccessFiles) -> Access:
    """Everything, and the default RBAC objects in the store. Sets `api.admission` and `api.access`."""
    bootstrap_rbac.bootstrap(api.store)
    key = SigningKey.load_or_create(files.signing_key)
    tokens = TokenVerifier(key, api.store)
    authorizer = Authorizer(api.store)

    def clock() -> float:
        return api.now().timestamp()

    webhook_client = WebhookClient(api.store)
    webhooks = Webhooks(api.store, api.registry, webhook_client)
    api.admission = admission = AdmissionChain(api.store, authorizer, webhooks, api.rng, api.now)
    api.access = Access(
        api=api,
        authenticator=Authenticator(ClientCertificates(files.client_ca, clock), tokens, authorizer, clock),
        authorizer=authorizer,
        admission=admission,
        signing_key=key,
        kubelets=KubeletProxy(api.store, files.kubelet_client_certificate, files.kubelet_client_key),
        reviews=Reviews(authorizer, tokens, api.now),
        webhook_client=webhook_client,
        calls=webhooks.calls,
    )
    return api.access
