"""Authentication: client certificates, bearer tokens, the anonymous user, and impersonation.

The order is kube-apiserver's: a good client certificate wins, then a good bearer token. A credential that was presented
and is bad means 401, everywhere; presenting none makes the request anonymous. A user who may impersonate becomes
whom the Impersonate headers name.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

from . import go_json
from .authz import denial
from .rbac import Attributes
from .status import ApiStatusError, bad_request, unauthorized
from .tokens import InvalidTokenError, TokenVerifier, service_account_user
from .users import ALL_AUTHENTICATED, ALL_UNAUTHENTICATED, ANONYMOUS, SERVICE_ACCOUNT_PREFIX, User, anonymous

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from .authz import Authorizer

_REMEMBERED = 512
_NODE_PREFIX = "system:node:"
AUTHENTICATION = "authentication.k8s.io"


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

    def authenticate(self, scope: Mapping[str, Any], asked: Attributes | None = None) -> User:
        """The user of an ASGI http scope, impersonation included.

        `asked` is what the request is for (its user does not matter): impersonation may be granted for that alone.

        Raises ApiStatusError: 401 for a bad credential, 403 for impersonation not granted, 400 for half of its headers.
        """
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        chain: Sequence[bytes] = scope.get("state", {}).get("peer_chain", ())
        user = self._real_user(chain, headers)
        return self._impersonated(user, headers, replace(asked, user=user) if asked else None)

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

    def _impersonated(self, user: User, headers: list[tuple[bytes, bytes]], request: Attributes | None) -> User:
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
            raise bad_request(f"requested {_go_user(uid, groups, extra)} without impersonating a user name")
        wanted = User(username, uid, groups, extra)
        if request is None or not self._may_for_this(request, wanted):
            self._may_impersonate(user, wanted, request)
        if username.startswith(SERVICE_ACCOUNT_PREFIX) and not groups:
            namespace, _, name = username.removeprefix(SERVICE_ACCOUNT_PREFIX).partition(":")
            groups = service_account_user(namespace, name, "", {}).groups
        if username == ANONYMOUS:
            groups = groups or (ALL_UNAUTHENTICATED,)
        elif ALL_AUTHENTICATED not in groups:
            groups = (*groups, ALL_AUTHENTICATED)
        return User(username, uid, groups, extra)

    def _may_for_this(self, request: Attributes, wanted: User) -> bool:
        """Constrained impersonation (KEP-5284, on since v1.36): as whom, and what for, are granted apart."""
        mode = _mode(wanted)
        if not mode or not self._authorizer.decide(_on(mode, request)).allowed:
            return False
        checks = _checks(request.user, wanted, f"impersonate:{mode}", AUTHENTICATION)
        return all(self._authorizer.decide(check).allowed for check in checks)

    def _may_impersonate(self, user: User, wanted: User, request: Attributes | None) -> None:
        """Whether the old right is there. Raises ApiStatusError 403, with what was asked for first."""
        for check in _checks(user, wanted, "impersonate", ""):
            try:
                self._authorizer.authorize(check)
            except ApiStatusError as error:
                mode = _mode(wanted)
                if request is None or not mode:
                    raise
                constrained = [_on(mode, request), *_checks(user, wanted, f"impersonate:{mode}", AUTHENTICATION)]
                first = next(c for c in constrained if not self._authorizer.decide(c).allowed)
                raise denial(first, self._authorizer.decide(first).reason) from error


def _mode(wanted: User) -> str:
    """The mode of constrained impersonation for this user; empty when there is none."""
    bare = not (wanted.uid or wanted.groups or wanted.extra)
    if wanted.username.startswith(SERVICE_ACCOUNT_PREFIX):
        return "serviceaccount" if bare else ""
    if wanted.username.startswith(_NODE_PREFIX):
        return "arbitrary-node" if bare else ""
    return "user-info"


def _on(mode: str, request: Attributes) -> Attributes:
    return replace(request, verb=f"impersonate-on:{mode}:{request.verb}")


def _checks(user: User, wanted: User, verb: str, group: str) -> list[Attributes]:
    """The rights to be each part of the wanted user; `group` is that of users, accounts and groups."""
    if wanted.username.startswith(SERVICE_ACCOUNT_PREFIX):
        namespace, _, name = wanted.username.removeprefix(SERVICE_ACCOUNT_PREFIX).partition(":")
        checks = [Attributes(user, verb, group, "v1", "serviceaccounts", "", namespace, name)]
    elif group and wanted.username.startswith(_NODE_PREFIX):
        name = wanted.username.removeprefix(_NODE_PREFIX)
        checks = [Attributes(user, verb, group, "v1", "nodes", "", "", name)]
    else:
        checks = [Attributes(user, verb, group, "v1", "users", "", "", wanted.username)]
    if wanted.uid:
        checks.append(Attributes(user, verb, AUTHENTICATION, "v1", "uids", "", "", wanted.uid))
    checks += [Attributes(user, verb, group, "v1", "groups", "", "", name) for name in wanted.groups]
    for key, values in wanted.extra.items():
        checks += [Attributes(user, verb, AUTHENTICATION, "v1", "userextras", key, "", value) for value in values]
    return checks


def _go_user(uid: str, groups: Sequence[str], extra: Mapping[str, Sequence[str]]) -> str:
    """A user without a name as Go prints the structure."""
    listed = "{" + ", ".join(go_json.quote(group) for group in groups) + "}" if groups else "(nil)"
    pairs = (
        f"{go_json.quote(key)}:[]string{{{', '.join(map(go_json.quote, values))}}}" for key, values in extra.items()
    )
    shown = "{" + ", ".join(pairs) + "}" if extra else "(nil)"
    return (
        f'&user.DefaultInfo{{Name:"", UID:{go_json.quote(uid)}, Groups:[]string{listed}, '
        f"Extra:map[string][]string{shown}}}"
    )


def _bearer_token(headers: list[tuple[bytes, bytes]]) -> str:
    value = next((value for name, value in headers if name == b"authorization"), b"").strip()
    scheme, _, token = value.partition(b" ")
    return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""
