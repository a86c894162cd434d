"""Checks of the CA itself: what an istiod demands of its files at start, and what two roots need to stand side by side.

Rules: istio/istio security/pkg/pki/util/keycertbundle.go (Verify) and pilot/pkg/bootstrap/istio_ca.go.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509

from capstan.cluster.resources import SECRETS
from capstan.errors import CapstanError
from capstan.pki.bundle import Bundle
from capstan.pki.rules import Level, bundle_findings
from capstan.pki.verify import verify_issuer
from capstan.systems.base import CheckResult, Severity
from capstan.systems.istio.forms import Form, form_of, key_of, place_of, text_of
from capstan.systems.istio.layout import (
    CA_CERT_KEY,
    CA_KEY_KEY,
    CERT_CHAIN_KEY,
    ROOT_CERT_KEY,
    TLS_CERT_KEY,
)
from capstan.systems.istio.reporting import (
    CA,
    ISSUE,
    ISTIOD_PAGE,
    PLUG_IN_PAGE,
    TRANSITION_PAGE,
    each,
    listed,
    result,
    skipped,
)
from capstan.systems.istio.source import Mode
from capstan.systems.istio.versions import ROTATOR_INTERVAL, starts_without
from capstan.systems.linkerd.secrets import decoded

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.pki.inspect import Certificate
    from capstan.systems.istio.observe import View

SOON: Final = timedelta(days=60)
CRL_KEY: Final = "ca-crl.pem"
TLS_ROOT_KEY: Final = "ca.crt"
TLS_KEY_KEY: Final = "tls.key"
PLUG_IN_KEYS: Final = (CA_CERT_KEY, CA_KEY_KEY, CERT_CHAIN_KEY, ROOT_CERT_KEY)
TLS_KEYS: Final = (TLS_CERT_KEY, TLS_KEY_KEY, TLS_ROOT_KEY)
NEGATIVE_INTERVALS: Final = ("0", "0s", "0m", "0h")


def ca_checks(cluster: Cluster, view: View, now: datetime) -> Iterable[CheckResult]:
    """The CA's source, its roots and its signing certificate."""
    secret = None
    about = CA, "the CA's Secret can be read", PLUG_IN_PAGE, Severity.FATAL
    if view.layout.ca_secret:
        try:
            secret = cluster.find(SECRETS, view.layout.ca_secret, view.layout.namespace)
        except CapstanError as error:
            yield result(*about, f"{error.what}: {error.observed}")
        else:
            absent = f"there is no secret {view.layout.namespace}/{view.layout.ca_secret}"
            yield result(*about, "" if secret is not None else absent)
    else:
        yield skipped(*about, "the CA comes from a Key Vault")
    yield _complete(view, secret)
    yield _belongs(view, secret)
    yield from _roots(view, now)
    yield from _signing(view, now)
    yield _told_apart(view)
    yield _form(view, secret)
    yield _revocation(view, secret)
    yield _rotator(view)


def _complete(view: View, secret: Object | None) -> CheckResult:
    """Files are missing: refused since 1.26.1; before, an istiod without the key made itself a root instead."""
    about = CA, "the set of plug-in CA files is complete", PLUG_IN_PAGE, Severity.FATAL
    if view.layout.mode is not Mode.PLUG_IN or secret is None:
        return skipped(*about, f"the CA's mode is {view.layout.mode}")
    data = secret.get("data") or {}
    wanted = TLS_KEYS if TLS_CERT_KEY in data else PLUG_IN_KEYS
    # An empty chain is a file that is there: a root that signs by itself has no intermediate to put into it.
    missing = [key for key in wanted if key not in data or (not data[key] and key != CERT_CHAIN_KEY)]
    if not missing:
        return result(*about, "")
    key = (TLS_KEY_KEY if TLS_CERT_KEY in data else CA_KEY_KEY) in missing
    fates = [
        f"istiod {item.version or 'of unknown version'} {_FATES[starts_without(item.version, key)]}"
        for item in view.layout.revisions
    ]
    told = "; ".join(dict.fromkeys(fates)) or "no istiod is there to start with it"
    return result(*about, f"secret {view.layout.ca_secret} lacks {', '.join(missing)}: {told}")


_FATES: Final = {
    True: "makes itself a self-signed CA when it starts again, with a root that nobody trusts",
    False: "will not start again",
    None: "will not start again, or makes itself a self-signed CA with a root that nobody trusts",
}


def _belongs(view: View, secret: Object | None) -> CheckResult:
    """A running istiod keeps what it has; one that starts ends with "the cert does not match the key"."""
    about = CA, "the signing key is the signing certificate's", PLUG_IN_PAGE, Severity.FATAL
    if secret is None:
        return skipped(*about, f"the CA's mode is {view.layout.mode}: its key is not asked for")
    entry = CA_CERT_KEY if form_of(secret) is Form.ISTIO else TLS_CERT_KEY
    try:
        signing = Bundle.parse_lenient(text_of(secret, entry), f"{place_of(secret)} {entry}").certificates[0]
        key = key_of(secret)
    except CapstanError as error:
        return result(*about, f"{error.what}: {error.observed or error.expected}")
    told = f"{place_of(secret)} holds the key of another: no istiod starts with it, and none that runs takes it"
    return result(*about, "" if signing.key_matches(key) else told)


def _roots(view: View, now: datetime) -> Iterable[CheckResult]:
    roots = tuple(view.bundle)
    yield result(
        CA, "roots are within their validity period", TRANSITION_PAGE, Severity.FATAL,
        listed("", each(roots, lambda root: _validity(root, now))),
    )  # fmt: skip
    first = min(roots, key=lambda root: root.not_after)
    days = (first.not_after - now).days
    yield result(
        CA, "roots are valid for at least 60 days", TRANSITION_PAGE, Severity.WARNING,
        listed("", each(roots, lambda root: _expiring(root, now))), note=f"{days} days before the first root expires",
    )  # fmt: skip
    yield result(
        CA, "roots are CAs", PLUG_IN_PAGE, Severity.FATAL,
        listed("", each(roots, lambda root: "" if root.is_ca else "BasicConstraints does not say CA:TRUE")),
    )  # fmt: skip


def _signing(view: View, now: datetime) -> Iterable[CheckResult]:
    readable = CA, "the signing certificate can be read", PLUG_IN_PAGE, Severity.FATAL
    if view.issuer is None:
        if view.files is None:
            yield skipped(*readable, "the CA's source was not read")
        else:
            yield result(*readable, "ca-cert.pem or cert-chain.pem holds no readable certificates")
        return
    yield result(*readable, "")
    issuer = view.issuer
    yield result(
        CA, "the signing certificate is a CA", PLUG_IN_PAGE, Severity.FATAL,
        listed("", each((issuer,), _may_sign)),
    )  # fmt: skip
    yield result(
        CA, "the signing certificate is within its validity period", PLUG_IN_PAGE, Severity.FATAL,
        listed("", each((issuer,), lambda item: _validity(item, now))),
    )  # fmt: skip
    yield result(
        CA, "the signing certificate is valid for at least 60 days", PLUG_IN_PAGE, Severity.WARNING,
        listed("", each((issuer,), lambda item: _expiring(item, now))),
    )  # fmt: skip
    above = _chain(view)
    problem = ""
    try:
        verify_issuer(issuer, view.bundle, now, above)
    except CapstanError as error:
        problem = f"{error.what}: {error.observed}"
    yield result(
        CA, "the signing certificate chains to the roots through cert-chain.pem", PLUG_IN_PAGE, Severity.FATAL, problem
    )  # fmt: skip
    begins = not above or above[0] == issuer or issuer in view.bundle
    inside = issuer in above or issuer in view.bundle
    told = "" if inside else "workloads send the chain along with their leaf: without the signing CA it does not verify"
    if inside and not begins:
        told = "what stands first is not the signing CA: TLS 1.2 wants each certificate before the one that signed it"
    # The order alone stops nobody: Envoy, ztunnel and istiod look for a path among all that came along. A chain for two
    # signers stands there for as long as a switch from one to the other lasts, and after a switch that was taken back.
    level = Severity.WARNING if inside else Severity.ERROR
    yield result(CA, "cert-chain.pem begins with the signing certificate", PLUG_IN_PAGE, level, told)


def _told_apart(view: View) -> CheckResult:
    """Envoy takes the first root of the issuer's name: two of one name break each other, unless key identifiers tell
    them apart on everything (run with Envoy 1.40; istio#37096 is what it looks like)."""
    children = [item for item in view.certificates.values() if not item.self_issued]
    mixed = [str(finding) for finding in bundle_findings(view.bundle, children) if finding.level is Level.FATAL]
    return result(
        CA, "roots can be told apart", ISSUE + "37096", Severity.FATAL, listed("Peers fail now and then:", mixed)
    )  # fmt: skip


def _form(view: View, secret: Object | None) -> CheckResult:
    about = CA, "the form of the CA's Secret can carry two roots", ISSUE + "50420", Severity.WARNING
    if view.layout.mode is not Mode.PLUG_IN or secret is None:
        return skipped(*about, f"the CA's mode is {view.layout.mode}")
    if TLS_CERT_KEY in (secret.get("data") or {}):
        return result(
            *about,
            f"secret {view.layout.ca_secret} is of the form kubernetes.io/tls: whoever issues it (cert-manager) writes "
            "one root into ca.crt, so a root cannot be rotated in it without a gap; use the keys of the plug-in CA",
        )
    return result(*about, "")


def _revocation(view: View, secret: Object | None) -> CheckResult:
    """A revocation list must cover every CA of the chain; a bad one also stops the signing key from being changed."""
    about = CA, "the CA's revocation lists cover its chain", ISSUE + "61075", Severity.ERROR
    if secret is None or CRL_KEY not in (secret.get("data") or {}):
        return skipped(*about, f"there is no {CRL_KEY}")
    lists: list[x509.CertificateRevocationList] = []
    try:
        text = decoded(secret, CRL_KEY).decode("utf-8", "replace")
        for piece in text.split("-----END X509 CRL-----")[:-1]:
            lists.append(x509.load_pem_x509_crl(f"{piece.strip()}\n-----END X509 CRL-----\n".encode()))
    except (ValueError, CapstanError) as error:
        return result(*about, f"{CRL_KEY} cannot be read: {error}")
    names = {item.issuer for item in lists}
    uncovered = [item.subject for item in {*_chain(view), *view.bundle} if item.is_ca and item.raw.subject not in names]
    return result(*about, listed("No list of these CAs:", sorted(uncovered)))


def _rotator(view: View) -> CheckResult:
    about = CA, "istiod renews its self-signed root by itself", TRANSITION_PAGE, Severity.WARNING
    if view.layout.mode is not Mode.SELF_SIGNED:
        return skipped(*about, f"the CA's mode is {view.layout.mode}")
    off = [
        f"deployment {item.deployment_name}: {ROTATOR_INTERVAL}={value}"
        for item in view.layout.revisions
        if (value := item.env.get(ROTATOR_INTERVAL, "")) and (value in NEGATIVE_INTERVALS or value.startswith("-"))
    ]
    return result(CA, about[1], ISTIOD_PAGE, about[3], listed("Switched off:", off))


def _chain(view: View) -> tuple[Certificate, ...]:
    """What cert-chain.pem holds; nothing where it cannot be read (another check says so)."""
    if view.files is None or not view.files.cert_chain.strip():
        return ()
    try:
        return Bundle.parse_lenient(view.files.cert_chain, CERT_CHAIN_KEY).certificates
    except CapstanError:
        return ()


def _may_sign(certificate: Certificate) -> str:
    if not certificate.is_ca:
        return "BasicConstraints does not say CA:TRUE"
    usage = certificate.extension(x509.KeyUsage)
    return "key usage lacks keyCertSign" if usage is not None and not usage.value.key_cert_sign else ""


def _validity(certificate: Certificate, now: datetime) -> str:
    if certificate.not_before > now:
        return f"not valid before {certificate.not_before:%F %T}Z"
    return f"expired on {certificate.not_after:%F %T}Z" if certificate.not_after < now else ""


def _expiring(certificate: Certificate, now: datetime) -> str:
    days = (certificate.not_after - now).days
    return f"{days} days before it expires, on {certificate.not_after:%F %T}Z" if days < SOON.days else ""
