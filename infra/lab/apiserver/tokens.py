"""Service-account tokens: the server's signing key, JSON Web Tokens (RFC 7519), and what makes one valid.

Claims are those of Kubernetes bound service-account tokens (KEP-1205): ``sub`` names the account, ``kubernetes.io``
holds namespace, account and, if bound, the pod, Secret or Node whose deletion ends the token. Tokens of the older kind,
held by a Secret (issuer ``kubernetes/serviceaccount``) are accepted as long as their Secret still holds them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from .users import ALL_AUTHENTICATED, User

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .store import Store

ISSUER = "https://kubernetes.default.svc.cluster.local"
LEGACY_ISSUER = "kubernetes/serviceaccount"
# go-jose's default tolerance for clocks, in seconds
LEEWAY = 60
# The kubelet asks for 3607 s; such a pod token lives a year so that old clients survive, and warns from 3607 s on.
WARN_ONLY_BOUND_SECONDS = 3607
EXTENDED_SECONDS = 365 * 24 * 3600


class InvalidTokenError(Exception):
    """Why a token is no login here; the words appear in TokenReview.status.error only, never in a 401."""


@dataclass(frozen=True)
class BoundTo:
    """An object a token dies with. `kind` is Pod, Secret or Node."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class Claims:
    """What to put into a bound token. Times in seconds since the epoch."""

    namespace: str
    account: str
    account_uid: str
    audiences: Sequence[str]
    issued: int
    expires: int
    bound: Sequence[BoundTo] = field(default_factory=tuple)
    warn_after: int = 0

    def payload(self, issuer: str) -> dict[str, Any]:
        private: dict[str, Any] = {
            "namespace": self.namespace,
            "serviceaccount": {"name": self.account, "uid": self.account_uid},
        }
        for bound in self.bound:
            private[bound.kind.lower()] = {"name": bound.name, "uid": bound.uid}
        if self.warn_after:
            private["warnafter"] = self.warn_after
        return {
            "aud": list(self.audiences),
            "exp": self.expires,
            "iat": self.issued,
            "iss": issuer,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": private,
            "nbf": self.issued,
            "sub": f"system:serviceaccount:{self.namespace}:{self.account}",
        }


class SigningKey:
    """The RSA key tokens are signed with (RS256, RFC 7518 section 3.3)."""

    def __init__(self, private: rsa.RSAPrivateKey) -> None:
        self._private = private
        spki = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        # Kubernetes derives the key id from the public key: base64url(SHA-256(SPKI))
        self.key_id = _b64(hashlib.sha256(spki).digest())

    @classmethod
    def load_or_create(cls, path: Path) -> SigningKey:
        """The key at `path`, made there (mode 0600) if it does not exist; tokens so survive a restart of the server."""
        if path.exists():
            private = load_pem_private_key(path.read_bytes(), None)
            if not isinstance(private, rsa.RSAPrivateKey):
                raise TypeError(f"{path} holds no RSA key")
            return cls(private)
        private = rsa.generate_private_key(65537, 2048)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
        return cls(private)

    def sign(self, payload: dict[str, Any]) -> str:
        header = {"alg": "RS256", "kid": self.key_id}
        signed = f"{_b64(_dump(header))}.{_b64(_dump(payload))}"
        signature = self._private.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_b64(signature)}"

    def verified_payload(self, token: str) -> dict[str, Any]:
        """The claims of a token signed by this key. Raises InvalidTokenError; looks at no claim."""
        parts = token.split(".")
        if len(parts) != 3:
            raise InvalidTokenError("not a JSON Web Token")
        try:
            header = json.loads(_unb64(parts[0]))
            signature = _unb64(parts[2])
            payload = json.loads(_unb64(parts[1]))
        except (ValueError, binascii.Error) as error:
            raise InvalidTokenError("not a JSON Web Token") from error
        if not isinstance(header, dict) or not isinstance(payload, dict) or header.get("alg") != "RS256":
            raise InvalidTokenError("unexpected header or algorithm")
        try:
            self._private.public_key().verify(
                signature, f"{parts[0]}.{parts[1]}".encode(), padding.PKCS1v15(), hashes.SHA256()
            )
        except InvalidSignature as error:
            raise InvalidTokenError("the signature is not ours") from error
        return payload

    def jwks(self) -> dict[str, Any]:
        """The public half as a JSON Web Key Set (RFC 7517), served at /openid/v1/jwks."""
        numbers = self._private.public_key().public_numbers()
        key = {
            "use": "sig",
            "kty": "RSA",
            "kid": self.key_id,
            "alg": "RS256",
            "n": _b64(_int(numbers.n)),
            "e": _b64(_int(numbers.e)),
        }
        return {"keys": [key]}


class TokenVerifier:
    """Decides whether a bearer token is somebody: signature, times, audience, and that what it is bound to lives."""

    def __init__(self, key: SigningKey, store: Store, issuer: str = ISSUER) -> None:
        self._key = key
        self._store = store
        self._issuer = issuer

    def verify(self, token: str, now: float, audiences: Sequence[str] = ()) -> tuple[User, list[str]]:
        """User and those of `audiences` (default: the API server) the token is for.

        `now` in seconds since the epoch. Raises InvalidTokenError.
        """
        payload = self._key.verified_payload(token)
        if payload.get("iss") == LEGACY_ISSUER:
            return self._legacy(token, payload), list(audiences or [self._issuer])
        if payload.get("iss") != self._issuer:
            raise InvalidTokenError("the issuer is not ours")
        if now > float(payload.get("exp") or 0) + LEEWAY:
            raise InvalidTokenError("service account token has expired")
        if now < float(payload.get("nbf") or 0) - LEEWAY:
            raise InvalidTokenError("service account token is not valid yet")
        wanted = list(audiences or [self._issuer])
        matching = [audience for audience in wanted if audience in (payload.get("aud") or [])]
        if not matching:
            have = " ".join(f'"{a}"' for a in payload.get("aud") or [])
            want = " ".join(f'"{a}"' for a in wanted)
            raise InvalidTokenError(f"token audiences [{have}] is invalid for the target audiences [{want}]")
        return self._bound_user(payload), matching

    def _bound_user(self, payload: dict[str, Any]) -> User:
        private = payload.get("kubernetes.io") or {}
        namespace, account = private.get("namespace", ""), private.get("serviceaccount") or {}
        self._require_account(namespace, account.get("name", ""), account.get("uid", ""))
        extra = {"authentication.kubernetes.io/credential-id": [f"JTI={payload.get('jti')}"]}
        for kind, resource, within in (
            ("secret", "secrets", namespace),
            ("pod", "pods", namespace),
            ("node", "nodes", ""),
        ):
            reference = private.get(kind)
            if not reference:
                continue
            # A pod's token also carries its node, as information: only a token bound to the node itself needs it alive.
            informational = kind == "node" and private.get("pod")
            if not informational:
                self._require_living(resource, within, reference)
            if kind != "secret":
                extra[f"authentication.kubernetes.io/{kind}-name"] = [reference.get("name", "")]
                extra[f"authentication.kubernetes.io/{kind}-uid"] = [reference.get("uid", "")]
        return service_account_user(namespace, account["name"], account["uid"], extra)

    def _legacy(self, token: str, payload: dict[str, Any]) -> User:
        prefix = "kubernetes.io/serviceaccount/"
        namespace = payload.get(f"{prefix}namespace", "")
        account = payload.get(f"{prefix}service-account.name", "")
        uid = payload.get(f"{prefix}service-account.uid", "")
        secret = self._store.get("secrets", namespace, payload.get(f"{prefix}secret.name", ""))
        held = (secret.obj.get("data") or {}).get("token", "") if secret else ""
        if base64.b64decode(held) != token.encode():
            raise InvalidTokenError("service account token has been invalidated")
        self._require_account(namespace, account, uid)
        return service_account_user(namespace, account, uid, {})

    def _require_account(self, namespace: str, name: str, uid: str) -> None:
        account = self._store.get("serviceaccounts", namespace, name)
        if account is None or account.uid != uid:
            raise InvalidTokenError("service account token has been invalidated")

    def _require_living(self, resource: str, namespace: str, reference: dict[str, str]) -> None:
        found = self._store.get(resource, namespace, reference.get("name", ""))
        if found is None or found.uid != reference.get("uid"):
            raise InvalidTokenError(f"service account token has been invalidated: its {resource} object is gone")


def service_account_user(namespace: str, name: str, uid: str, extra: dict[str, list[str]]) -> User:
    """The identity of a ServiceAccount: its user name and its three groups."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", ALL_AUTHENTICATED)
    return User(f"system:serviceaccount:{namespace}:{name}", uid, groups, extra)


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _int(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")
