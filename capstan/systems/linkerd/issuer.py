"""The issuer: read it with its key, and switch it only when every live peer already trusts its chain.

Identity accepts any issuer that verifies against the roots in its memory, at once, for everybody; a proxy that does not
trust it yet then loses every peer whose leaf was renewed. Linkerd's own guard against this (`linkerd upgrade`) covers
one scheme and looks at what is written in pod specs; this one asks the running proxies.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from capstan.cluster.resources import CONFIG_MAPS, SECRETS
from capstan.errors import CapstanError, GateRefused, InvalidCertificate
from capstan.pki.bundle import Bundle
from capstan.pki.keys import PrivateKey
from capstan.pki.verify import verify_issuer
from capstan.systems.base import Change, IssuerMaterial
from capstan.systems.linkerd.identity import read_replicas
from capstan.systems.linkerd.identity_judging import require_clocks
from capstan.systems.linkerd.layout import (
    CONFIG,
    CONFIG_KEY,
    ISSUER,
    OVERRIDES,
    OVERRIDES_KEY,
    Scheme,
    Tool,
    owner_of,
    read_layout,
)
from capstan.systems.linkerd.owners import require_ours
from capstan.systems.linkerd.secrets import decoded, encoded
from capstan.systems.linkerd.values import get_value, set_value

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.pki.inspect import Certificate
    from capstan.systems.linkerd.observe import View

CERTIFICATE_VALUE = ("identity", "issuer", "tls", "crtPEM")
KEY_VALUE = ("identity", "issuer", "tls", "keyPEM")


def read_issuer(cluster: Cluster, namespace: str) -> IssuerMaterial:
    """The issuer as its Secret has it, key included.

    Raises:
        NotFound: The Secret or an entry of it is missing.
        InvalidPem, InvalidCertificate: Certificate or key cannot be read, or do not belong together.
    """
    scheme = read_layout(cluster, namespace).scheme
    return _material(cluster.get(SECRETS, ISSUER, namespace), scheme, f"secret {namespace}/{ISSUER}")


def ensure_issuer(
    cluster: Cluster,
    view: View,
    issuer: IssuerMaterial,
    *,
    now: datetime,
    accept: Collection[Tool] = (),
    trusted_by_all: bool = True,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> tuple[Change, ...]:
    """Make the configured issuer this one.

    Args:
        view: A fresh look at the cluster: every proxy's own roots.
        now: For the validity of the chain, aware UTC.
        accept: As for `ensure_bundle`.
        trusted_by_all: Refuse it while a live proxy would not trust it. False only where the issuer there is signs
            nothing any more, so that whoever does not trust the new one loses nothing by it.
        clock: The wall clock, against which those of identity's replicas are held.

    Raises:
        GateRefused: Somebody alive would not trust it; names them. Nothing was written.
        OwnedElsewhere: cert-manager or another tool would revert it. Nothing was written.
        Conflict: Somebody wrote in between.
    """
    layout = view.layout
    namespace, place = layout.namespace, f"secret {layout.namespace}/{ISSUER}"
    if not issuer.certificate.key_matches(issuer.key):
        raise InvalidCertificate(
            "the issuer's key does not belong to its certificate", where=place, observed=repr(issuer.key),
            expected=f"the key of {issuer.certificate!r}",
        )  # fmt: skip
    secret = cluster.get(SECRETS, ISSUER, namespace)
    certificate_key, key_key = layout.scheme.keys
    root = _root_of(issuer, view, now, place)
    wanted = {certificate_key: encoded(issuer.chain_pem() + "\n"), key_key: encoded(issuer.key.pem())}
    if layout.scheme is Scheme.KUBERNETES:
        wanted["ca.crt"] = encoded(root.pem())  # identity ignores it; `linkerd check` and `upgrade` demand it
    # 1. Is there anything to do?
    before, same = _compare(secret, layout.scheme, issuer, root, place)
    changes: list[Change] = []
    version = str(secret["metadata"]["resourceVersion"])
    if same:
        changes.append(Change(place, before, before, False, version, version))
    else:
        # 2. Would everybody who is alive trust what it signs?
        if trusted_by_all:
            require_trusted_by_all(view, issuer, now, place)
        # Identity would skip an issuer that is not valid by its own clock yet.
        replicas = read_replicas(cluster, namespace, now=clock)
        judged = [issuer.certificate, root]
        require_clocks(replicas, judged, layout.clock_skew, clock(), f"cluster {cluster.name}")
        # 3. May we?
        cli_install = cluster.find(SECRETS, OVERRIDES, namespace) is not None
        require_ours(cluster, secret, place, remedy(secret, issuer, layout.scheme), accept, cli_install=cli_install)
        # 4. Write both halves in one step, under the version that was read.
        body = {**secret, "data": {**(secret.get("data") or {}), **wanted}}
        after = cluster.replace(SECRETS, body)
        changes.append(
            Change(
                place, before, tuple(certificate.fingerprint for certificate in issuer.chain), True,
                version, str(after["metadata"]["resourceVersion"]), "it held another issuer",
            )
        )  # fmt: skip
    changes.extend(_ensure_values(cluster, namespace, issuer))
    return tuple(changes)


def remedy(secret: Object, issuer: IssuerMaterial, scheme: Scheme) -> str:
    """The issuer as a tool's source wants it: values of the chart, or entries of the Secret. Its key is not shown, only
    where it is kept."""
    certificate_key, key_key = scheme.keys
    chart = scheme is Scheme.LINKERD and owner_of(secret) in (Tool.HELM, Tool.ARGO, Tool.FLUX)
    path = CERTIFICATE_VALUE[:-1] if chart else ()
    names = (CERTIFICATE_VALUE[-1], KEY_VALUE[-1]) if chart else (certificate_key, key_key)
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(path)]
    indent = "  " * len(path)
    lines.append(f"{indent}{names[0]}: |-")
    lines += [f"{indent}  {line}" for line in issuer.chain_pem().splitlines()]
    key = f"the private key that is kept as {issuer.source}" if issuer.source else "its private key, never shown here"
    return "\n".join([*lines, f"{indent}# {names[1]}: {key}"])


def require_trusted_by_all(view: View, issuer: IssuerMaterial, now: datetime, place: str) -> None:
    """Every live proxy, and so identity itself, holds a root to which the issuer verifies.

    Identity reads the same ConfigMap at the same moment as its own proxy; the proxy's roots stand for both, unless one
    of the two was started again without the other.

    Raises:
        GateRefused: Names who does not, and whoever could not be asked.
    """
    refused = []
    verdicts: dict[frozenset[str], str] = {}
    for proxy in view.proxies:
        peer = proxy.peer
        if peer.trusts is None:
            refused.append(f"{peer.name}: its roots could not be read ({peer.unreadable})")
            continue
        if peer.trusts not in verdicts:
            roots = [view.certificates[fingerprint] for fingerprint in sorted(peer.trusts)]
            verdicts[peer.trusts] = _why_not(issuer, roots, now)
        if verdicts[peer.trusts] or proxy.apart:
            refused.append(f"{peer.name}: {verdicts[peer.trusts] or proxy.apart}")
    if not any(proxy.component == "identity" for proxy in view.proxies):
        refused.append("no proxy of linkerd-identity is running, so nobody knows which roots identity holds")
    if refused:
        raise GateRefused(
            f"{len(refused)} live peers would not trust this issuer",
            where=place,
            observed="\n            ".join(refused[:20]),
            expected=f"every live proxy to hold a root of {issuer.certificate.fingerprint[:16]}",
            next_command="capstan status, and restart the workloads it names",
        )


def _why_not(issuer: IssuerMaterial, roots: list[Certificate], now: datetime) -> str:
    try:
        verify_issuer(issuer.certificate, roots, now, issuer.chain[1:])
    except CapstanError as error:
        return f"{error.what}: {error.observed}"
    return ""


def _root_of(issuer: IssuerMaterial, view: View, now: datetime, place: str) -> Certificate:
    """The root the issuer verifies to, among those declared: it must be there before the issuer is.

    Raises:
        GateRefused: None of the declared roots.
    """
    try:
        return verify_issuer(issuer.certificate, view.bundle, now, issuer.chain[1:]).anchor
    except CapstanError as error:
        raise GateRefused(
            "the issuer does not verify against the declared trust roots", where=place,
            observed=f"{error.what}: {error.observed}",
            expected="its root in the bundle: an identity that restarts now would refuse to start",
            next_command="capstan status",
        ) from error  # fmt: skip


def _material(secret: Object, scheme: Scheme, where: str) -> IssuerMaterial:
    certificate_key, key_key = scheme.keys
    chain = Bundle.parse_lenient(decoded(secret, certificate_key), f"{where} {certificate_key}").certificates
    key = PrivateKey.parse(decoded(secret, key_key), f"{where} {key_key}")
    if not chain[0].key_matches(key):
        raise InvalidCertificate(
            "the issuer's key does not belong to its certificate", where=where, observed=repr(key),
            expected=f"the key of {chain[0]!r}", next_command=f"write certificate and key of one issuer into {where}",
        )  # fmt: skip
    return IssuerMaterial(chain, key)


def _compare(
    secret: Object, scheme: Scheme, issuer: IssuerMaterial, root: Certificate, place: str
) -> tuple[tuple[str, ...], bool]:
    """Fingerprints found, and whether the Secret holds this issuer completely."""
    try:
        present = _material(secret, scheme, place)
    except CapstanError:
        return (), False
    before = tuple(certificate.fingerprint for certificate in present.chain)
    same = present.chain == issuer.chain
    if same and scheme is Scheme.KUBERNETES:
        try:
            same = root in Bundle.parse_lenient(decoded(secret, "ca.crt"), place)
        except CapstanError:
            same = False
    return before, same


def _ensure_values(cluster: Cluster, namespace: str, issuer: IssuerMaterial) -> list[Change]:
    """The places that repeat the issuer: `linkerd-config` (certificate only) and the CLI's overrides (with its key).

    Only values that are there are changed: where a tool keeps no key, none is put.
    """
    changes = []
    pem = issuer.chain_pem() + "\n"
    for resource, name, key in ((CONFIG_MAPS, CONFIG, CONFIG_KEY), (SECRETS, OVERRIDES, OVERRIDES_KEY)):
        item = cluster.find(resource, name, namespace)
        if item is None:
            continue
        secret = resource is SECRETS
        place = f"{resource.kind.lower()} {namespace}/{name}"
        text = decoded(item, key).decode("utf-8") if secret else str((item.get("data") or {}).get(key, ""))
        present = get_value(text, CERTIFICATE_VALUE, place) if text else None
        if not present:
            continue
        version = str(item["metadata"]["resourceVersion"])
        before = _fingerprints(present, place)
        after = tuple(certificate.fingerprint for certificate in issuer.chain)
        old_key = get_value(text, KEY_VALUE, place)
        if before == after and (not old_key or _same_key(old_key, issuer.key, place)):
            changes.append(Change(place, before, before, False, version, version))
            continue
        text = set_value(text, CERTIFICATE_VALUE, pem, place)
        if old_key:
            text = set_value(text, KEY_VALUE, issuer.key.pem().decode("ascii"), place)
        data = {**(item.get("data") or {}), key: encoded(text) if secret else text}
        written = cluster.replace(resource, {**item, "data": data})
        changes.append(
            Change(
                place, before, after, True, version, str(written["metadata"]["resourceVersion"]),
                "it repeated another issuer",
            )
        )  # fmt: skip
    return changes


def _fingerprints(text: str, place: str) -> tuple[str, ...]:
    try:
        return tuple(certificate.fingerprint for certificate in Bundle.parse_lenient(text, place))
    except CapstanError:
        return ()


def _same_key(text: str, key: PrivateKey, place: str) -> bool:
    try:
        return PrivateKey.parse(text, place) == key
    except CapstanError:
        return False
