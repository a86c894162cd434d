"""The signing side of istiod: the bundle in memory, what is signed with it, and who is told when roots change."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from infra.lab.istio.istiod import bundle as bundles
from infra.lab.istio.istiod import leaves
from infra.lab.istio.istiod.bundle import Bundle, BundleError
from infra.lab.istio.istiod.versions import ChainElements
from infra.lab.linkerd import gopem
from infra.lab.linkerd.flags import format_duration
from infra.lab.linkerd.gotext import go_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.istio.golog import Log
    from infra.lab.istio.istiod.settings import Settings


class SigningError(Exception):
    """A request that gets no leaf.

    Attributes:
        kind: As the metric's label has it: CSR_ERROR, TTL_ERROR, CERT_GEN_ERROR.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Served:
    """What istiod presents and distributes: its serving chain, that chain's key, the root bundle's text."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    roots: bytes


class Authority:
    """The certificate authority of one istiod.

    Args:
        clock: What time it is.
    """

    def __init__(self, settings: Settings, bundle: Bundle, out: Log, clock: Callable[[], datetime]) -> None:
        self.settings = settings
        self.bundle = bundle
        self.served: Served | None = None
        self._out = out
        self._clock = clock
        self._on_served: list[Callable[[], None]] = []
        self._on_bundle: list[Callable[[str], None]] = []
        self._pushed: str | None = None
        self.root_expiry, self.chain_expiry = self._expiries()
        # Computed once: a CA that ends sooner shortens the default, and a reload does not change it (facts 1.2).
        self._default_ttl = self._minimum(settings.default_ttl)

    # --- state ------------------------------------------------------------------------------------------------------

    def on_served(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `served` is another."""
        self._on_served.append(callback)

    def forget_served(self, callback: Callable[[], None]) -> None:
        """No longer call what `on_served` was given, if it was."""
        if callback in self._on_served:
            self._on_served.remove(callback)

    def on_bundle(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with the text of a root bundle that is to be pushed to proxies."""
        self._on_bundle.append(callback)

    def forget(self, callback: Callable[[str], None]) -> None:
        """No longer call what `on_bundle` was given."""
        self._on_bundle.remove(callback)

    def replace(self, bundle: Bundle) -> None:
        """Sign with another bundle from now on."""
        self.bundle = bundle

    def record_expiry(self) -> None:
        """Let the expiry metrics tell of the bundle as it is now."""
        self.root_expiry, self.chain_expiry = self._expiries()

    def announce(self, served: Served) -> None:
        """Serve with, and distribute, what `served` holds."""
        self.served = served
        for callback in self._on_served:
            callback()

    def push(self) -> None:
        """Push the root bundle to the proxies if its text is another than the one pushed before."""
        text = self.bundle.root_text
        if self._pushed != text:
            self._pushed = text
            self._out.info(f"updating Source IstioCA with certs {text}", "trustBundle")
            for callback in self._on_bundle:
                callback(text)

    @property
    def pushed(self) -> str | None:
        """The bundle a proxy gets when it connects; None while nothing is pushed."""
        return self._pushed

    # --- signing ----------------------------------------------------------------------------------------------------

    async def serving(self) -> Served:
        """A new serving certificate under the bundle as it is now, chain included."""
        bundle = self.bundle
        key = await asyncio.to_thread(leaves.new_key, bundle.key, p384=self.settings.rules.version >= (1, 18, 0))
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in self.settings.dns_names]
        made = leaves.leaf(
            bundle,
            key.public_key(),
            names,
            self.settings.root_ttl,
            now=self._clock(),
            clamp=self.settings.rules.clamps_leaves,
        )
        return Served(leaves.pem(made) + bundle.chain_pem, leaves.key_pem(key), bundle.root_pem)

    def sign(self, csr_pem: str, identities: list[str], seconds: int) -> bytes:
        """A leaf for `identities`, whatever names the request has; only that it has a common name counts.

        Raises:
            SigningError: With istiod's text.
        """
        csr = self._request(csr_pem)
        public = csr.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
            raise SigningError("CERT_GEN_ERROR", f"x509: unsupported public key type: {type(public).__name__}")
        asked = timedelta(seconds=seconds)
        if asked > self.settings.max_ttl:
            limit = format_duration(self.settings.max_ttl.total_seconds())
            raise SigningError(
                "TTL_ERROR", f"requested TTL {format_duration(seconds)} is greater than the max allowed TTL {limit}"
            )
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity) for identity in identities]
        lifetime = asked if seconds > 0 else self._default_ttl
        try:
            made = leaves.leaf(
                self.bundle,
                public,
                names,
                lifetime,
                now=self._clock(),
                clamp=self.settings.rules.clamps_leaves,
                common_name=self._common_name(csr, identities),
            )
        except ValueError as error:
            raise SigningError("CERT_GEN_ERROR", str(error)) from error
        return leaves.pem(made)

    def _request(self, csr_pem: str) -> x509.CertificateSigningRequest:
        block, _ = gopem.decode(csr_pem.encode())
        if block is None:
            raise SigningError("CSR_ERROR", "certificate signing request is not properly encoded")
        try:
            csr = x509.load_der_x509_csr(block.der)
        except ValueError as error:
            raise SigningError("CSR_ERROR", "failed to parse X.509 certificate signing request") from error
        # Nobody looked at a request's signature before 1.17.
        if self.settings.rules.version >= (1, 17, 0) and not csr.is_signature_valid:
            elliptic = isinstance(csr.public_key(), ec.EllipticCurvePublicKey)
            text = "x509: ECDSA verification failure" if elliptic else "crypto/rsa: verification error"
            raise SigningError("CSR_ERROR", text)
        return csr

    def _common_name(self, csr: x509.CertificateSigningRequest, identities: list[str]) -> str:
        """The first identity, if the request has any common name and this fits into one ("dual use")."""
        wanted = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if not wanted or not wanted[-1].value or not identities:
            return ""
        first = identities[0].partition(",")[0]
        if (length := len(first.encode())) <= leaves.MAX_COMMON_NAME:
            return first
        why = f"certificate CN upper bound exceeded ({length}>{leaves.MAX_COMMON_NAME}): {first}"
        self._out.error(f"dual-use failed for cert template - omitting CN ({why})")
        return ""

    def chain(self, leaf_pem: bytes) -> tuple[str, ...]:
        """The elements of an answer, split as this version does."""
        texts = [part for part in (leaf_pem, self.bundle.chain_pem) if part]
        style = self.settings.rules.chain_elements
        if style is ChainElements.WHOLE_FILES:
            whole = [text.decode("utf-8", "replace") for text in texts]
            return (*whole, self.bundle.root_text)
        if style is ChainElements.EACH_CERTIFICATE:
            texts.append(self.bundle.root_pem)
        parts = tuple(f"{element}\n" for text in texts for element in bundles.elements(text))
        return parts if style is ChainElements.EACH_CERTIFICATE else (*parts, self.bundle.root_text)

    def expiry_problems(self) -> list[str]:
        """What the metrics of expiry cannot tell of, as istiod logs it at start: a first certificate that has ended."""
        found, now = [], self._clock()
        for what, text in (("root cert", self.bundle.root_pem), ("CA cert", self.bundle.chain_pem)):
            if not text:
                continue
            try:
                end = bundles.first_certificate(text).not_valid_after_utc
            except BundleError as error:
                problem = f"failed to parse the {what}: {error}"
            else:
                if end >= now:
                    continue
                problem = f"expired {what} found, x509.NotAfter {go_time(end)}, please transit your {what}"
            found.append(f"failed to extract {what} expiry timestamp (error {problem})")
        return found

    def _expiries(self) -> tuple[datetime | None, datetime | None]:
        """Ends of the first root and of the first certificate of the chain."""
        found: list[datetime | None] = []
        for text in (self.bundle.root_pem, self.bundle.chain_pem):
            try:
                found.append(bundles.first_certificate(text).not_valid_after_utc)
            except BundleError:
                found.append(None)
        return found[0], found[1]

    def _minimum(self, default: timedelta) -> timedelta:
        if not self.bundle.chain_pem:
            return default
        try:
            left = bundles.first_certificate(self.bundle.chain_pem).not_valid_after_utc - self._clock()
        except BundleError as error:
            raise BundleError(
                f"failed to get default cert TTL failed to get cert chain TTL failed to extract cert expiration "
                f"timestamp: failed to parse the cert: {error}"
            ) from error
        if left <= timedelta():
            end = bundles.first_certificate(self.bundle.chain_pem).not_valid_after_utc
            raise BundleError(
                "failed to get default cert TTL failed to get cert chain TTL failed to extract cert expiration"
                f" timestamp: expired cert found, x509.NotAfter {go_time(end)}, please transit your cert"
            )
        return min(default, left)
