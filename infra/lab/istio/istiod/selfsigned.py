"""The self-signed CA: istio-ca-secret, made if need be."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError
from infra.lab.istio.istiod import bundle as bundles
from infra.lab.istio.istiod import leaves
from infra.lab.istio.istiod.bundle import Bundle, BundleError
from infra.lab.istio.istiod.plugin import ISTIO_GENERATED, StartError
from infra.lab.istio.istiod.settings import CA_SECRET, CACERTS_SECRET

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from infra.lab.client import KubeClient
    from infra.lab.istio.golog import Log
    from infra.lab.istio.istiod.settings import Settings

JSON = dict[str, Any]
SECRET_TYPE = "istio.io/ca-root"  # noqa: S105 - a Secret's type
_START_ATTEMPTS = 12  # 0.5 s doubling to a minute: about seven minutes; the kubelet restarts it anyway


class _WriteError(Exception):
    """The new Secret could not be written (up to 1.20)."""


@dataclass(frozen=True)
class Scopes:
    """Under which names parts of the process log; Citadel's are older."""

    start: str = "pkica"
    rotator: str = "rootcertrotator"
    controller: str = "secretcontroller"


class SelfSigned:
    """The CA Secret of one namespace.

    Args:
        extra_roots: Reads root-cert.pem of the plug-in directory, b"" without one: its roots are appended.
    """

    def __init__(
        self,
        settings: Settings,
        client: KubeClient,
        out: Log,
        clock: Callable[[], datetime],
        extra_roots: Callable[[], bytes],
        scopes: Scopes = Scopes(),
    ) -> None:
        self.secret_name = CA_SECRET
        self._settings = settings
        self._client = client
        self._out = out
        self._clock = clock
        self._extra_roots = extra_roots
        self.scopes = scopes

    async def start(self) -> Bundle:
        """The CA of the Secret, which is made if there is none.

        Raises:
            StartError: The Secret cannot be read or made, or holds nothing usable.
        """
        pause, attempt = 0.5, 0
        while True:
            attempt += 1
            try:
                bundle = await self._load_or_create()
                break
            except (ApiError, BundleError, _WriteError) as error:
                # From 1.17 on it tries again; before, and in the end, it gives up.
                if self._settings.rules.version < (1, 17, 0) or attempt >= _START_ATTEMPTS:
                    text = f"failed to create a self-signed istiod CA: {_text(error)}"
                    raise StartError(text) from error
                await asyncio.sleep(pause)
                pause = min(pause * 2, 60.0)
        if self._settings.rules.version >= (1, 20, 0):
            self._out.info(f"Set secret name for self-signed CA cert rotator to {self.secret_name}", self.scopes.start)
        return bundle

    async def _load_or_create(self) -> Bundle:
        names = [CA_SECRET, CACERTS_SECRET] if self._settings.rules.cacerts_for_self_signed else [CA_SECRET]
        missing: ApiError | None = None
        for name in names:
            self.secret_name = name
            try:
                return self._take(await self.read())
            except ApiError as error:
                # Up to 1.16 whatever the error is: whoever may not read the Secret tries to make one.
                if error.status != 404 and self._settings.rules.version >= (1, 17, 0):
                    raise
                missing = missing or error
        if self._settings.rules.version >= (1, 17, 0):
            self._out.info(f"CASecret {self.secret_name} not found, will create one", self.scopes.start)
        else:
            reason = missing.message if missing else ""
            self._out.info(f"Failed to get secret (error: {reason}), will create one", self.scopes.start)
        return await self._create()

    def _take(self, secret: JSON) -> Bundle:
        separator = "/" if self._settings.rules.version >= (1, 17, 0) else ":"
        where = f"{self._settings.namespace}{separator}{self.secret_name}"
        self._out.info(f"Load signing key and cert from existing secret {where}", self.scopes.start)
        bundle = self.bundle(*ca_pair(secret))
        self._out.info(f"Using existing public key: {bundle.root_text}", self.scopes.start)
        return bundle

    async def _create(self) -> Bundle:
        settings = self._settings
        key = await asyncio.to_thread(leaves.new_key, None, settings.rsa_bits)
        root = leaves.self_signed_root(key, settings.trust_domain, settings.root_ttl, self._clock())
        cert_pem, key_pem = leaves.pem(root), leaves.key_pem(key)
        bundle = self.bundle(cert_pem, key_pem)
        data = {
            "ca-cert.pem": cert_pem,
            "ca-key.pem": key_pem,
            "cert-chain.pem": b"",
            "key.pem": b"",
            "root-cert.pem": cert_pem if settings.rules.root_in_secret else b"",
        }
        if self.secret_name == CACERTS_SECRET:
            data[ISTIO_GENERATED] = b""
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": self.secret_name, "namespace": settings.namespace},
            "type": SECRET_TYPE,
            "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
        }
        try:
            await self._client.create(f"/api/v1/namespaces/{settings.namespace}/secrets", secret)
        except ApiError as error:
            if settings.rules.version < (1, 21, 0):
                text = f"Failed to write secret to CA (error: {error.message}). Abort."
                self._out.error(text, self.scopes.start)
                raise _WriteError("failed to create CA due to secret write error") from error
            self._out.warn(f"Failed to create secret {self.secret_name} ({error.message})", self.scopes.start)
            raise
        self._out.info(f"Using self-generated public key: {bundle.root_text}", self.scopes.start)
        return bundle

    def bundle(self, cert_pem: bytes, key_pem: bytes) -> Bundle:
        """What these two texts make, if they are usable; raises BundleError."""
        roots = append_roots(cert_pem, self._extra_roots())
        return bundles.verified(cert_pem, key_pem, b"", roots, b"", rules=self._settings.rules, now=self._clock())

    async def read(self) -> JSON:
        """The Secret as it is now; raises ApiError."""
        return await self._client.get(self._path)

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self._settings.namespace}/secrets/{self.secret_name}"

    async def write(self, secret: JSON, cert_pem: bytes) -> None:
        """The Secret `secret` with another ca-cert.pem; raises ApiError."""
        body = {**secret, "data": {**secret["data"], "ca-cert.pem": base64.b64encode(cert_pem).decode()}}
        await self._client.replace(self._path, body)


def ca_pair(secret: JSON) -> tuple[bytes, bytes]:
    """ca-cert.pem and ca-key.pem, the only keys that are read back; b"" for one that is not there."""
    data = secret.get("data") or {}
    return base64.b64decode(data.get("ca-cert.pem") or ""), base64.b64decode(data.get("ca-key.pem") or "")


def append_roots(cert_pem: bytes, more: bytes) -> bytes:
    """`more` after `cert_pem`, on its own line (AppendRootCerts)."""
    if not more:
        return cert_pem
    return cert_pem + (b"" if cert_pem.endswith(b"\n") or not cert_pem else b"\n") + more


def _text(error: ApiError | BundleError | _WriteError) -> str:
    if isinstance(error, BundleError):
        return f"failed to create CA KeyCertBundle ({error})"
    return error.message if isinstance(error, ApiError) else str(error)
