"""Authentication: client certificates, bearer tokens, the anonymous user, and impersonation.

The order is kube-apiserver's: a good client certificate wins, then a good bearer token. A credential that was presented
and is bad means 401, everywhere; presenting none makes the request anonymous. A user who may impersonate becomes
whom the Impersonate headers name.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

from .rbac import Attributes
from .status import bad_request, unauthorized
from .tokens import InvalidTokenError, TokenVerifier, service_account_user
from .users import ALL_AUTHENTICATED, ALL_UNAUTHENTICATED, ANONYMOUS, SERVICE_ACCOUNT_PREFIX, User, anonymous

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from .authz import Authorizer

_REMEMBERED = 512


class UntrustedCertificateError(Exception):
    """A client certificate that is no identity here."""


class ClientCertificates:
    """Verifies client certificates against the bundle in a file, read again whenever it changes, as real servers do."""

    def __init__(self, client_ca: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = client_ca
        self._clock = clock
        self._stamp: tuple[int, int] = (0, 0)
        self._anchors: list[crypto.X509Store] = []
        self._known: dict[bytes, tuple[User | None, float]] = {}

    def user(self, chain: Sequence[bytes]) -> User | None:
        """The user of a DER chain, leaf first; None when its subject has no common name.

        Raises UntrustedCertificateError when the chain does not lead to the bundle, is out of date, or is not for
        client authentication.
        """
        self._reload()
        now = self._clock()
        digest = hashlib.sha256(b"".join(chain)).digest()
        known = self._known.get(digest)
        if known is None or known[1] < now:
            known = self._verify(chain)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[digest] = known
        return known[0]

    def _reload(self) -> None:
        status = self._path.stat()
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp == self._stamp:
            return
        # Go takes every certificate of the bundle as an anchor, self-signed or not, and tries all that have the
        # issuer's name; OpenSSL may settle for the wrong one of two CAs of one name. Hence a store for each.
        self._anchors = []
        for certificate in x509.load_pem_x509_certificates(self._path.read_bytes()):
            store = crypto.X509Store()
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
            store.add_cert(crypto.X509.from_cryptography(certificate))
            self._anchors.append(store)
        self._stamp = stamp
        self._known.clear()

    def _verify(self, chain: Sequence[bytes]) -> tuple[User | None, float]:
        try:
            leaf, *rest = [x509.load_der_x509_certificate(der) for der in chain]
        except ValueError as error:
            raise UntrustedCertificateError(f"not a certificate: {error}") from error
        verified = self._verified(leaf, rest)
        if not _for_clients(leaf):
            raise UntrustedCertificateError("the certificate is not for client authentication")
        until = min(c.to_cryptography().not_valid_after_utc.timestamp() for c in verified)
        names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if not names:
            return None, until
        groups = [str(a.value) for a in leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
        fingerprint = hashlib.sha256(chain[0]).hexdigest()
        extra = {"authentication.kubernetes.io/credential-id": [f"X509SHA256={fingerprint}"]}
        return User(str(names[0].value), groups=(*groups, ALL_AUTHENTICATED), extra=extra), until

    def _verified(self, leaf: x509.Certificate, rest: Sequence[x509.Certificate]) -> Sequence[crypto.X509]:
        """The chain from the leaf to the first anchor that fits."""
        reason = "no anchors"
        untrusted = [crypto.X509.from_cryptography(certificate) for certificate in rest]
        for anchor in self._anchors:
            context = crypto.X509StoreContext(anchor, crypto.X509.from_cryptography(leaf), untrusted)
            try:
                return context.get_verified_chain()
            except crypto.X509StoreContextError as error:
                reason = str(error)
        raise UntrustedCertificateError(reason)


def _for_clients(leaf: x509.Certificate) -> bool:
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    wanted = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    return any(usage in wanted for usage in usages)


class Authenticator:
    """Turns the credentials of a request into a User."""

    def __init__(
        self,
        certificates: ClientCertificates,
        tokens: TokenVerifier,
        authorizer: Authorizer,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._certificates = certificates
        self._tokens = tokens
        self._authorizer = authorizer
        self._clock = clock

    def authenticate(self, scope: Mapping[str, Any]) -> User:
        """The user of an ASGI http scope, impersonation included.

        Raises ApiStatusError: 401 for a bad credential, 403 for impersonation not granted, 400 for half of its headers.
        """
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        chain: Sequence[bytes] = scope.get("state", {}).get("peer_chain", ())
        user = self._real_user(chain, headers)
        return self._impersonated(user, headers)

    def _real_user(self, chain: Sequence[bytes], headers: list[tuple[bytes, bytes]]) -> User:
        refused = False
        if chain:
            try:
                user = self._certificates.user(chain)
            except UntrustedCertificateError:
                refused = True
            else:
                if user is not None:
                    return user
        token = _bearer_token(headers)
        if token:
            try:
                return self._tokens.verify(token, self._clock())[0]
            except InvalidTokenError:
                refused = True
        if refused:
            raise unauthorized()
        return anonymous()

    def _impersonated(self, user: User, headers: list[tuple[bytes, bytes]]) -> User:
        asked = [(name[12:].decode("latin-1"), value) for name, value in headers if name.startswith(b"impersonate-")]
        if not asked:
            return user
        text = [(name, value.decode("utf-8", "replace")) for name, value in asked]
        username = next((value for name, value in text if name == "user"), "")
        groups = tuple(value for name, value in text if name == "group")
        uid = next((value for name, value in text if name == "uid"), "")
        extra: dict[str, list[str]] = {}
        for name, value in text:
            if name.startswith("extra-"):
                extra.setdefault(unquote(name[6:]), []).append(value)
        if not username:
            raise bad_request(f"requested {[value for _, value in text]} without impersonating a user")
        self._may_impersonate(user, username, groups, uid, extra)
        if username.startswith(SERVICE_ACCOUNT_PREFIX) and not groups:
            namespace, _, name = username.removeprefix(SERVICE_ACCOUNT_PREFIX).partition(":")
            groups = service_account_user(namespace, name, "", {}).groups
        if username == ANONYMOUS:
            groups = groups or (ALL_UNAUTHENTICATED,)
        elif ALL_AUTHENTICATED not in groups:
            groups = (*groups, ALL_AUTHENTICATED)
        return User(username, uid, groups, extra)

    def _may_impersonate(
        self, user: User, username: str, groups: Sequence[str], uid: str, extra: Mapping[str, Sequence[str]]
    ) -> None:
        authentication = "authentication.k8s.io"
        if username.startswith(SERVICE_ACCOUNT_PREFIX):
            namespace, _, name = username.removeprefix(SERVICE_ACCOUNT_PREFIX).partition(":")
            checks = [Attributes(user, "impersonate", "", "v1", "serviceaccounts", "", namespace, name)]
        else:
            checks = [Attributes(user, "impersonate", "", "v1", "users", "", "", username)]
        checks += [Attributes(user, "impersonate", "", "v1", "groups", "", "", group) for group in groups]
        if uid:
            checks.append(Attributes(user, "impersonate", authentication, "v1", "uids", "", "", uid))
        for key, values in extra.items():
            checks += [Attributes(user, "impersonate", authentication, "v1", "userextras", key, "", v) for v in values]
        for check in checks:
            self._authorizer.authorize(check)


def _bearer_token(headers: list[tuple[bytes, bytes]]) -> str:
    value = next((value for name, value in headers if name == b"authorization"), b"").strip()
    scheme, _, token = value.partition(b" ")
    return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""
