"""The rotator of a self-signed CA: renews its root in time, and takes over what others wrote into the Secret
(security/pkg/pki/ca/selfsignedcarootcertrotator.go).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from cryptography.x509.oid import NameOID

from infra.lab.client import ApiError
from infra.lab.istio.istiod import bundle as bundles
from infra.lab.istio.istiod import leaves
from infra.lab.istio.istiod.bundle import BundleError
from infra.lab.istio.istiod.selfsigned import ca_pair
from infra.lab.linkerd.flags import format_duration
from infra.lab.linkerd.gotext import go_now, go_time

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from infra.lab.istio.golog import Log
    from infra.lab.istio.istiod.authority import Authority
    from infra.lab.istio.istiod.selfsigned import SelfSigned
    from infra.lab.linkerd import gopem

JSON = dict[str, Any]
T = TypeVar("T")
RETRY_SECONDS = 5.0
RETRY_LIMIT = 30.0


class Rotator:
    """One process's rotator.

    Args:
        chance: Where the jitter comes from.
        updated: Called after a new root has been taken over (1.21 and newer); older ones leave that to their poll.
    """

    def __init__(
        self,
        source: SelfSigned,
        authority: Authority,
        out: Log,
        clock: Callable[[], datetime],
        chance: random.Random,
        updated: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._source = source
        self._authority = authority
        self._settings = authority.settings
        self._out = out
        self._clock = clock
        self._chance = chance
        self._updated = updated
        self._scope = source.scopes.rotator

    async def run(self) -> None:
        """Look at the Secret every check interval, for ever, the first time after a jitter of up to one more."""
        interval, out = self._settings.check_interval.total_seconds(), self._out
        if self._settings.jitter:
            wait = int(self._chance.uniform(0, interval))
            text = format_duration(wait)
            out.info(f"Set up back off time {text} to start rotator.", self._scope)
            out.info(f"Jitter is enabled, wait {text} before starting root cert rotator.", self._scope)
            await asyncio.sleep(wait)
            if self._settings.rules.version >= (1, 5, 0):
                out.info("Jitter complete, start rotator.", self._scope)
        loop = asyncio.get_running_loop()
        due = loop.time() + interval
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            due += interval
            while due <= loop.time():  # a ticker drops what nobody was there for
                due += interval
            out.info("Check and rotate root cert.", self._scope)
            await self._check()

    async def _check(self) -> None:
        out = self._out
        try:
            secret = await self._with_retries("loading", self._source.read)
        except ApiError as error:
            where = f"{self._settings.namespace}:{self._source.secret_name}"
            out.error(f"Fail to load CA secret {where} (error: {error.message}), skip cert rotation job", self._scope)
            return
        cert_pem, key_pem = ca_pair(secret)
        reason = self._due(cert_pem)
        if reason is None:
            out.info("Root cert is not about to expire, skipping root cert rotation.", self._scope)
            if self._authority.bundle.cert_pem != cert_pem:
                await self._adopt(cert_pem, key_pem)
            return
        out.info(f"Refresh root certificate, root cert is about to expire: {reason}", self._scope)
        await self._renew(secret)

    def _due(self, cert_pem: bytes) -> str | None:
        """Why the root is to be renewed now; None if it is not."""
        try:
            root = bundles.first_certificate(cert_pem)
        except BundleError as error:
            return str(error)
        begin, end, now = root.not_valid_before_utc, root.not_valid_after_utc, self._clock()
        if now > end:
            return f"certificate already expired at {go_time(end)}, but now is {go_now(now)}"
        grace = (end - begin) * self._settings.grace_percent / 100
        return None if end - now - grace > timedelta() else "got a certificate that should be renewed now"

    async def _adopt(self, cert_pem: bytes, key_pem: bytes) -> None:
        self._out.warn(
            f"CA cert in KeyCertBundle does not match CA cert in {self._source.secret_name}. "
            "Start to reload root cert into KeyCertBundle",
            self._scope,
        )
        try:
            self._authority.replace(self._source.bundle(cert_pem, key_pem))
        except BundleError as error:
            self._out.error(f"failed to reload root cert into KeyCertBundle ({error})", self._scope)
            if not self._settings.rules.notifies_of_self_signed_roots:
                return
        else:
            self._out.info("Successfully reloaded root cert into KeyCertBundle.", self._scope)
        if self._updated is not None:
            await self._updated()  # after a failure too, as istiod does from 1.21 on

    async def _renew(self, secret: JSON) -> None:
        """The same key, a new certificate: the Secret first, then the memory (rolled back if that fails)."""
        old_cert, key_pem = ca_pair(secret)
        organization = self._organization(old_cert)
        try:
            key = _signing_key(key_pem)
        except BundleError as error:
            text = f"unable to generate CA cert and key for self-signed CA: {error}"
            self._out.error(text, self._scope)
            return
        renewed = leaves.self_signed_root(key, organization, self._settings.root_ttl, self._clock())
        cert_pem = leaves.pem(renewed)
        try:
            await self._with_retries("updating", lambda: self._source.write(secret, cert_pem))
        except ApiError as error:
            text = f"failed to update CA secret (error: {error.message})"
            self._out.error(
                f"Failed to roll forward root certificate (error: {text}). Abort new root certificate",
                self._scope,
            )
            return
        self._out.info(f"Root certificate is written into CA secret: {cert_pem.decode()}", self._scope)
        try:
            self._authority.replace(self._source.bundle(cert_pem, key_pem))
        except BundleError as error:
            self._out.error(f"Failed to update CA KeyCertBundle (error: {error})", self._scope)
            try:
                await self._source.write(await self._source.read(), old_cert)
            except ApiError as failure:
                self._out.error(f"Failed to roll backward root certificate (error: {failure.message}).", self._scope)
            return
        self._out.info(f"Root certificate is updated in CA KeyCertBundle: {cert_pem.decode()}", self._scope)
        if self._updated is not None:
            await self._updated()
        self._out.info("Root certificate rotation is completed successfully.", self._scope)

    def _organization(self, cert_pem: bytes) -> str:
        try:
            found = bundles.first_certificate(cert_pem).subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        except BundleError as error:
            self._out.warn(
                f"Failed to generate cert options from existing root certificate ({error}), "
                "new root certificate may not match old root certificate",
                self._scope,
            )
            found = []
        return str(found[0].value) if found else self._settings.trust_domain

    async def _with_retries(self, doing: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try for half a minute; raises the last ApiError.

        Args:
            doing: "loading" or "updating", as the lines of each failure have it.
        """
        where, scope = f"{self._settings.namespace}:{self._source.secret_name}", self._source.scopes.controller
        waited = 0.0
        while True:
            try:
                return await attempt()
            except ApiError:
                if self._settings.rules.version >= (1, 4, 0):
                    self._out.error(f"Failed on {doing} CA secret {where}.", scope)
                if waited > RETRY_LIMIT:
                    self._out.error(f"Timeout on {doing} CA secret {where}.", scope)
                    raise
                waited += RETRY_SECONDS
                await asyncio.sleep(RETRY_SECONDS)


def _signing_key(pem: bytes) -> gopem.PrivateKey:
    """The key to renew a root with (GenRootCertFromExistingKey)."""
    if not pem:
        raise BundleError("skip cert generation. Citadel is not in self-signed mode or CA private key is not available")
    try:
        return bundles.private_key(pem)
    except BundleError as error:
        # The spelling is istiod's.
        raise BundleError(f"unrecogniazed CA private key, skip root cert rotation: {error}") from error
