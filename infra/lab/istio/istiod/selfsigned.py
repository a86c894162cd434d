"""The self-signed CA: istio-ca-secret, made if need be, and the rotator that looks after it."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from cryptography.x509.oid import NameOID

from infra.lab.client import ApiError
from infra.lab.istio.istiod import bundle as bundles
from infra.lab.istio.istiod import leaves
from infra.lab.istio.istiod.bundle import Bundle, BundleError
from infra.lab.istio.istiod.plugin import ISTIO_GENERATED, StartError
from infra.lab.istio.istiod.settings import CA_SECRET, CACERTS_SECRET
from infra.lab.linkerd import gopem
from infra.lab.linkerd.flags import format_duration

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from infra.lab.client import KubeClient
    from infra.lab.istio.golog import Log
    from infra.lab.istio.istiod.authority import Authority
    from infra.lab.istio.istiod.settings import Settings

JSON = dict[str, Any]
SECRET_TYPE = "istio.io/ca-root"  # noqa: S105 - a Secret's type
RETRY_SECONDS = 5.0
RETRY_LIMIT = 30.0
_START_ATTEMPTS = 12  # 0.5 s doubling to a minute: about seven minutes; the kubelet restarts it anyway


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
        self._scopes = scopes

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
            except (ApiError, BundleError) as error:
                # From 1.17 on it tries again; before, and in the end, it gives up.
                if self._settings.rules.version < (1, 17, 0) or attempt >= _START_ATTEMPTS:
                    text = f"failed to create a self-signed istiod CA: {_text(error)}"
                    raise StartError(text) from error
                await asyncio.sleep(pause)
                pause = min(pause * 2, 60.0)
        if self._settings.rules.version >= (1, 20, 0):
            self._out.info(f"Set secret name for self-signed CA cert rotator to {self.secret_name}", self._scopes.start)
        return bundle

    async def _load_or_create(self) -> Bundle:
        names = [CA_SECRET, CACERTS_SECRET] if self._settings.rules.cacerts_for_self_signed else [CA_SECRET]
        missing: ApiError | None = None
        for name in names:
            self.secret_name = name
            try:
                return self._take(await self.read())
            except ApiError as error:
                if error.status != 404:
                    raise
                missing = missing or error
        if self._settings.rules.version >= (1, 17, 0):
            self._out.info(f"CASecret {self.secret_name} not found, will create one", self._scopes.start)
        else:
            reason = missing.message if missing else ""
            self._out.info(f"Failed to get secret (error: {reason}), will create one", self._scopes.start)
        return await self._create()

    def _take(self, secret: JSON) -> Bundle:
        separator = "/" if self._settings.rules.version >= (1, 17, 0) else ":"
        where = f"{self._settings.namespace}{separator}{self.secret_name}"
        self._out.info(f"Load signing key and cert from existing secret {where}", self._scopes.start)
        bundle = self.bundle(*ca_pair(secret))
        self._out.info(f"Using existing public key: {bundle.root_text}", self._scopes.start)
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
            self._out.warn(f"Failed to create secret {self.secret_name} ({error.message})", self._scopes.start)
            raise
        self._out.info(f"Using self-generated public key: {bundle.root_text}", self._scopes.start)
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

    # --- the rotator ------------------------------------------------------------------------------------------------

    async def rotate(
        self, authority: Authority, chance: random.Random, updated: Callable[[], Awaitable[None]] | None
    ) -> None:
        """Look at the Secret every check interval, for ever, the first time after a jitter of up to one more.

        Args:
            updated: Called after a new root has been taken over (1.21 and newer); older ones leave that to their poll.
        """
        interval, out = self._settings.check_interval.total_seconds(), self._out
        if self._settings.jitter:
            wait = int(chance.uniform(0, interval))
            text = format_duration(wait)
            out.info(f"Set up back off time {text} to start rotator.", self._scopes.rotator)
            out.info(f"Jitter is enabled, wait {text} before starting root cert rotator.", self._scopes.rotator)
            await asyncio.sleep(wait)
            out.info("Jitter complete, start rotator.", self._scopes.rotator)
        loop = asyncio.get_running_loop()
        due = loop.time() + interval
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            due += interval
            while due <= loop.time():  # a ticker drops what nobody was there for
                due += interval
            out.info("Check and rotate root cert.", self._scopes.rotator)
            await self._check(authority, updated)

    async def _check(self, authority: Authority, updated: Callable[[], Awaitable[None]] | None) -> None:
        out = self._out
        try:
            secret = await self._read_with_retries()
        except ApiError as error:
            where = f"{self._settings.namespace}:{self.secret_name}"
            out.error(
                f"Fail to load CA secret {where} (error: {error.message}), skip cert rotation job", self._scopes.rotator
            )
            return
        cert_pem, key_pem = ca_pair(secret)
        reason = self._due(cert_pem)
        if reason is None:
            out.info("Root cert is not about to expire, skipping root cert rotation.", self._scopes.rotator)
            if authority.bundle.cert_pem != cert_pem:
                await self._adopt(authority, cert_pem, key_pem, updated)
            return
        out.info(f"Refresh root certificate, root cert is about to expire: {reason}", self._scopes.rotator)
        await self._renew(authority, secret, updated)

    def _due(self, cert_pem: bytes) -> str | None:
        """Why the root is to be renewed now; None if it is not."""
        try:
            root = bundles.first_certificate(cert_pem)
        except BundleError as error:
            return str(error)
        begin, end, now = root.not_valid_before_utc, root.not_valid_after_utc, self._clock()
        if now > end:
            return f"certificate already expired at {end:%Y-%m-%d %H:%M:%S +0000 UTC}, but now is {now}"
        grace = (end - begin) * self._settings.grace_percent / 100
        return None if end - now - grace > timedelta() else "got a certificate that should be renewed now"

    async def _adopt(
        self, authority: Authority, cert_pem: bytes, key_pem: bytes, updated: Callable[[], Awaitable[None]] | None
    ) -> None:
        self._out.warn(
            f"CA cert in KeyCertBundle does not match CA cert in {self.secret_name}. "
            "Start to reload root cert into KeyCertBundle",
            self._scopes.rotator,
        )
        try:
            authority.replace(self.bundle(cert_pem, key_pem))
        except BundleError as error:
            self._out.error(f"failed to reload root cert into KeyCertBundle ({error})", self._scopes.rotator)
        else:
            self._out.info("Successfully reloaded root cert into KeyCertBundle.", self._scopes.rotator)
        if updated is not None:
            await updated()  # after a failure too, as istiod does

    async def _renew(self, authority: Authority, secret: JSON, updated: Callable[[], Awaitable[None]] | None) -> None:
        """The same key, a new certificate: the Secret first, then the memory (rolled back if that fails)."""
        old_cert, key_pem = ca_pair(secret)
        try:
            key = gopem.private_key(key_pem)
        except gopem.PemError as error:
            text = f"unable to generate CA cert and key for self-signed CA: {error}"
            self._out.error(text, self._scopes.rotator)
            return
        renewed = leaves.self_signed_root(key, self._organization(old_cert), self._settings.root_ttl, self._clock())
        cert_pem = leaves.pem(renewed)
        try:
            await self._write(secret, cert_pem)
        except ApiError as error:
            text = f"failed to update CA secret (error: {error.message})"
            self._out.error(
                f"Failed to roll forward root certificate (error: {text}). Abort new root certificate",
                self._scopes.rotator,
            )
            return
        self._out.info(f"Root certificate is written into CA secret: {cert_pem.decode()}", self._scopes.rotator)
        try:
            authority.replace(self.bundle(cert_pem, key_pem))
        except BundleError as error:
            self._out.error(f"Failed to update CA KeyCertBundle (error: {error})", self._scopes.rotator)
            try:
                await self._write(await self.read(), old_cert)
            except ApiError as failure:
                self._out.error(
                    f"Failed to roll backward root certificate (error: {failure.message}).", self._scopes.rotator
                )
            return
        self._out.info(f"Root certificate is updated in CA KeyCertBundle: {cert_pem.decode()}", self._scopes.rotator)
        if updated is not None:
            await updated()
        self._out.info("Root certificate rotation is completed successfully.", self._scopes.rotator)

    def _organization(self, cert_pem: bytes) -> str:
        try:
            found = bundles.first_certificate(cert_pem).subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        except BundleError:
            found = []
        return str(found[0].value) if found else self._settings.trust_domain

    async def _write(self, secret: JSON, cert_pem: bytes) -> None:
        body = {**secret, "data": {**secret["data"], "ca-cert.pem": base64.b64encode(cert_pem).decode()}}
        await self._client.replace(self._path, body)

    async def _read_with_retries(self) -> JSON:
        waited = 0.0
        while True:
            try:
                return await self.read()
            except ApiError:
                where = f"{self._settings.namespace}:{self.secret_name}"
                self._out.error(f"Failed on loading CA secret {where}.", self._scopes.controller)
                if waited >= RETRY_LIMIT:
                    raise
                waited += RETRY_SECONDS
                await asyncio.sleep(RETRY_SECONDS)


def ca_pair(secret: JSON) -> tuple[bytes, bytes]:
    """ca-cert.pem and ca-key.pem, the only keys that are read back; b"" for one that is not there."""
    data = secret.get("data") or {}
    return base64.b64decode(data.get("ca-cert.pem") or ""), base64.b64decode(data.get("ca-key.pem") or "")


def append_roots(cert_pem: bytes, more: bytes) -> bytes:
    """`more` after `cert_pem`, on its own line (AppendRootCerts)."""
    if not more:
        return cert_pem
    return cert_pem + (b"" if cert_pem.endswith(b"\n") or not cert_pem else b"\n") + more


def _text(error: ApiError | BundleError) -> str:
    if isinstance(error, BundleError):
        return f"failed to create CA KeyCertBundle ({error})"
    return error.message
