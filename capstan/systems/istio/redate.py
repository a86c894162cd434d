"""Re-dating a self-signed root: the same key, the same name to the byte, a later end.

What `root-transition.sh root-transition` wants to do (istio.io, "Extending Self-Signed Certificate Lifetime"). The
script lets OpenSSL write the name anew, as another ASN.1 string type; Go compares names byte for byte, so its old and
new root do not verify each other's leaves for anything written in Go. It also puts the key into a file that everybody
may read, and deletes the Secret before it creates it again. Here the name is copied as it stands, the key stays in
memory, and the one entry that changes is replaced under the Secret's version.

It extends a life and cures nothing else: who has the old key has the new one's. For a new key, rotate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography import x509

from capstan.cluster.resources import DEPLOYMENTS, SECRETS
from capstan.cluster.restart import RestartReport, Step, restart_workloads
from capstan.errors import GateRefused, GateTimedOut, InvalidCertificate, InvalidInput
from capstan.pki.clock import require_aware
from capstan.pki.inspect import Certificate
from capstan.pki.mint import BACKDATE
from capstan.pki.rules import same_key
from capstan.systems.base import Change
from capstan.systems.istio import forms
from capstan.systems.istio.layout import CA_CERT_KEY, CITADEL_CONTAINER, SELF_SIGNED, read_layout, short
from capstan.systems.istio.owners import require_ours
from capstan.systems.istio.preflight import verify_files
from capstan.systems.istio.source import CaFiles, Mode
from capstan.systems.istio.texts import certificates_of
from capstan.systems.linkerd.secrets import encoded
from capstan.trust.observation import Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime, timedelta

    from capstan.cluster.client import Cluster
    from capstan.systems.base import IssuerMaterial
    from capstan.systems.istio.observe import View
    from capstan.systems.istio.owners import Tool
    from capstan.trust.observation import Fingerprint

POLL: Final = 1.0
SLOWEST_POLL: Final = 5.0
_COPIED: Final = (
    x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier,
    x509.SubjectAlternativeName, x509.NameConstraints,
)  # fmt: skip


def present(cluster: Cluster, namespace: str) -> IssuerMaterial:
    """The self-signed root with its key, as its Secret has it: to be backed up before anything is written.

    Raises:
        NotFound: There is no such Secret. InvalidCertificate: Its certificate is not self-signed, or not its key's.
    """
    secret = cluster.get(SECRETS, SELF_SIGNED, namespace)
    text, where = forms.text_of(secret, CA_CERT_KEY), f"{forms.place_of(secret)} in cluster {cluster.name}"
    material = forms.material_of(CaFiles(text, text, "", ""), forms.key_of(secret), where)
    if not material.certificate.self_signed:
        raise InvalidCertificate(
            "this is no self-signed root", where=where, observed=f"issued by {material.certificate.issuer}",
            expected="a root that signed itself", next_command="rotate the CA where its root is kept",
        )  # fmt: skip
    return material


def require_self_signed(cluster: Cluster, namespace: str) -> None:
    """Refuse a mesh that another CA than the self-signed root signs for.

    Raises:
        GateRefused: A plug-in CA is in use, from a Secret or a Key Vault. NotFound: There is no control plane.
    """
    layout = read_layout(cluster, namespace)
    if layout.mode not in (Mode.SELF_SIGNED, Mode.CITADEL) or layout.ca_secret != SELF_SIGNED:
        raise GateRefused(
            "the self-signed root is not what signs here",
            where=f"secret {namespace}/{SELF_SIGNED} in cluster {cluster.name}",
            observed=f"the CA comes from {layout.ca_secret or 'a Key Vault'}", expected=f"from {SELF_SIGNED}",
            next_command="capstan rotate",
        )  # fmt: skip


def redated(root: IssuerMaterial, validity: timedelta, now: datetime) -> Certificate:
    """The same root with another life: same key, same subject bytes, same extensions, a new serial number.

    Args:
        validity: From now to its end.
        now: Aware UTC.

    Raises:
        InvalidInput: The life would not be positive, or not be longer than what is left of the present one.
    """
    old = root.certificate
    moment = require_aware(now).replace(microsecond=0)
    end = moment + validity
    if end <= moment or end <= old.not_after:
        raise InvalidInput(
            "a re-dated root must end later than the present one", where=old.fingerprint[:16],
            observed=f"until {end:%F %T}Z", expected=f"later than {old.not_after:%F %T}Z",
            next_command="choose a longer --validity",
        )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.raw.subject)  # keeps the type of every ASN.1 string, and with it the bytes
        .issuer_name(old.raw.subject)
        .public_key(root.key.public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - BACKDATE)
        .not_valid_after(end)
    )
    for extension in old.raw.extensions:
        if isinstance(extension.value, _COPIED):
            builder = builder.add_extension(extension.value, critical=extension.critical)
    new = Certificate(root.key.sign(builder))
    require_redate(old, new, "the new certificate")
    return new


def require_redate(old: Certificate, new: Certificate, where: str) -> None:
    """Refuse a certificate that is not the old root with another life.

    Raises:
        InvalidCertificate: Another key, other bytes in the name, or one that did not sign itself.
    """
    told = {
        "its key": old.spki_sha256 == new.spki_sha256,
        "its name, byte for byte": old.raw.subject.public_bytes() == new.raw.subject.public_bytes()
        and new.raw.issuer.public_bytes() == new.raw.subject.public_bytes(),
        "its own signature": new.self_signed,
        "its CA bit": new.is_ca,
        "its key identifier": old.ski == new.ski,
    }
    missing = [what for what, same in told.items() if not same]
    if missing:
        raise InvalidCertificate(
            "this is not the same root with another life", where=where, observed=f"not kept: {', '.join(missing)}",
            expected=f"subject, key and identifiers of {old.fingerprint[:16]}",
            next_command="for another key: capstan rotate",
        )  # fmt: skip


def ensure_redated(
    cluster: Cluster, namespace: str, new: Certificate, *, now: datetime, accept: Collection[Tool] = ()
) -> tuple[Change, ...]:
    """Make ca-cert.pem of `istio-ca-secret` this certificate, and nothing else; the way back is the old one again.

    Args:
        now: Aware UTC.
        accept: Tools whose objects may be written because somebody made sure that the source says the same.

    Raises:
        InvalidCertificate: Not the present root with another life. GateRefused: A plug-in CA is in use, so this Secret
            is not what signs. OwnedElsewhere, Conflict: As for every write. Nothing was written.
    """
    require_self_signed(cluster, namespace)
    secret = cluster.get(SECRETS, SELF_SIGNED, namespace)
    place = forms.place_of(secret)
    where = f"{place} in cluster {cluster.name}"
    text, version = forms.text_of(secret, CA_CERT_KEY), str(secret["metadata"]["resourceVersion"])
    held = certificates_of(text, where)
    before = tuple(dict.fromkeys(each.fingerprint for each in held))
    if held == (new,):
        return (Change(place, before, before, False, version, version),)
    material = present(cluster, namespace)
    require_redate(material.certificate, new, where)
    after = f"{new.pem()}\n"
    verify_files(CaFiles(after, after, after, ""), material.key, where, now=now)
    require_ours(secret, place, cluster.name, accept, f"  {CA_CERT_KEY}: the certificate {new.fingerprint}")
    body = {**secret, "data": {**secret["data"], CA_CERT_KEY: encoded(after)}}
    written = cluster.replace(SECRETS, body)
    return (
        Change(
            place, before, (new.fingerprint,), True, version, str(written["metadata"]["resourceVersion"]),
            "its root ended earlier",
        ),
    )  # fmt: skip


def restart_signers(
    cluster: Cluster,
    namespace: str,
    stamp: str,
    *,
    seconds: float,
    on_progress: Callable[[Step], None] | None = None,
    now: Callable[[], datetime],
) -> RestartReport:
    """Start every istiod (or Citadel) anew, once for this stamp: the quick way to the re-dated root.

    Without it istiod's own rotator comes upon it within its interval and a start up to as late (two hours by default),
    and a Citadel never does while it runs.

    Raises:
        GateTimedOut: A restart did not end in time.
    """
    layout = read_layout(cluster, namespace)
    owners = [Owner("Deployment", namespace, revision.deployment_name) for revision in layout.revisions]
    return restart_workloads(cluster, owners, stamp, seconds=seconds, parallel=1, on_progress=on_progress, now=now)


def await_redated(
    cluster: Cluster,
    look: Callable[[], View],
    root: Fingerprint,
    *,
    seconds: float,
    on_progress: Callable[[Step], None] | None = None,
) -> View:
    """Wait until every istiod hands out, every ConfigMap and webhook declares, and every proxy holds the re-dated root.

    Old and new verify each other's leaves, so nobody is cut off meanwhile, however long a proxy takes.

    Args:
        look: A fresh look at everything.
        root: Fingerprint of the re-dated root.

    Returns:
        The last look.

    Raises:
        GateTimedOut: Somebody did not get there in time; names them.
    """
    until, pause, told = cluster.clock() + seconds, POLL, ""
    while True:
        view = look()
        found = not_redated(view, root)
        if not found:
            return view
        if cluster.clock() >= until:
            raise GateTimedOut(
                f"{len(found)} do not have the re-dated root yet", stragglers=found, where=f"cluster {cluster.name}",
                observed="\n            ".join(found[:20]), expected=f"root {root[:16]} everywhere",
                next_command="run the same command again to wait on, or restart the workloads named",
            )  # fmt: skip
        if on_progress is not None and (text := "; ".join(found[:3])) != told:
            on_progress(Step(Owner("Deployment", view.layout.namespace, "istiod"), f"waiting for {text}"))
            told = text
        cluster.sleep(min(pause, max(until - cluster.clock(), 0.05)))
        pause = min(pause * 1.5, SLOWEST_POLL)


def not_redated(view: View, root: Fingerprint) -> tuple[str, ...]:
    """Who does not have the re-dated root, each with what it has; unreadable ones count.

    A place that declares only roots of other keys is not this CA's: a webhook may have its certificate from elsewhere.
    """
    new = view.certificates.get(root)
    others = {each.fingerprint for each in view.certificates.values() if new is None or not same_key(each, new)}
    found = []
    for signer in view.observation.signers:
        if signer.roots is None and view.layout.mode is not Mode.CITADEL:
            found.append(f"{signer.name}: the roots it hands out could not be read ({signer.unreadable})")
        elif signer.roots is not None and signer.roots != {root}:
            found.append(f"{signer.name} hands out {short(signer.roots)}")
    for place, held in view.observation.declared:
        if held != {root} and not (held and held <= others):
            found.append(f"{place} holds {short(held)}")
    for proxy in view.proxies:
        if proxy.leaving:
            continue
        peer = proxy.peer
        if peer.trusts is None:
            found.append(f"{peer.name}: its roots could not be read ({peer.unreadable})")
        elif peer.trusts != {root}:
            found.append(f"{peer.name} holds {short(peer.trusts)}")
    return tuple(found)


def has_citadel(cluster: Cluster, namespace: str) -> bool:
    """Whether the CA is a Citadel, whose workload Secrets have to be rewritten before proxies can load anything new."""
    return any(
        container.get("name") == CITADEL_CONTAINER
        for item in cluster.list(DEPLOYMENTS, namespace).items
        for container in item["spec"]["template"]["spec"].get("containers") or []
    )
