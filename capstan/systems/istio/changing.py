"""Changing the CA at its source, after asking whether anybody alive would be cut off by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.errors import CapstanError, GateRefused
from capstan.pki.bundle import Bundle
from capstan.pki.verify import verify_issuer
from capstan.systems.istio import preflight, versions
from capstan.systems.istio.layout import short
from capstan.systems.istio.planning import root_of
from capstan.systems.istio.texts import certificates_of, renewed_text, roots_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from capstan.pki.inspect import Certificate
    from capstan.systems.base import Change, IssuerMaterial
    from capstan.systems.istio.observe import View
    from capstan.systems.istio.source import CaSource


def ensure_bundle(source: CaSource, roots: Bundle, *, look: Callable[[], View]) -> tuple[Change, ...]:
    """Make root-cert.pem at the source hold exactly these roots.

    Args:
        look: A fresh look at the cluster; only taken where something is to be written.

    Raises:
        GateRefused: Somebody alive still needs a root that would go, or an istiod is of a version that breaks by it.
        Others: see `CaSource.ensure`.
    """
    present = source.read()
    text = roots_text(present.root_cert, roots, source.where)
    if text != present.root_cert:
        view = look()
        require_versions(view)
        held = Bundle(certificates_of(present.root_cert, source.where)).fingerprints
        if held - roots.fingerprints:
            require_nobody_needs_others(view, roots, source.where)
    return source.ensure(root_cert=text)


def ensure_issuer(source: CaSource, material: IssuerMaterial, *, view: View, now: datetime) -> tuple[Change, ...]:
    """Make the signing CA at the source this one, in one write with a changed text of the same roots where proxies
    sign anew at once when that text changes.

    Args:
        view: A fresh look at the cluster.
        now: Aware UTC.

    Raises:
        GateRefused: A live proxy or istiod does not trust it; names them. Nothing was written.
        Others: see `CaSource.ensure`.
    """
    present = source.read()
    signer = certificates_of(present.ca_cert, source.where)
    switched = not signer or signer[0] != material.certificate
    root_cert = None
    if switched:
        require_versions(view)
        require_trusted_by_all(view, material, now, source.where)
        roots = Bundle(certificates_of(present.root_cert, source.where))
        root = root_of(material, roots, source.where, now)
        if takes_pushed_roots(view):
            root_cert = renewed_text(present.root_cert, root, source.where)
    return source.ensure(root_cert=root_cert, issuer=material)


def takes_pushed_roots(view: View) -> bool:
    """Whether any live proxy signs anew at once when its istiod pushes another text of the roots."""
    by_revision = {istiod.revision: istiod for istiod in view.istiods}
    for proxy in view.proxies:
        istiod = by_revision.get(proxy.revision) or next(iter(view.istiods), None)
        if istiod is not None and versions.pushes_roots(istiod.version, istiod.env, proxy.env):
            return True
    return False


def require_versions(view: View) -> None:
    """No istiod is of a version that must not be given several roots.

    Raises:
        GateRefused: One is.
    """
    for revision in view.layout.revisions:
        preflight.require_version(revision.version, f"deployment {view.layout.namespace}/{revision.deployment_name}")
    for istiod in view.istiods:
        preflight.require_version(istiod.version, f"pod {istiod.ref.namespace}/{istiod.ref.name}")


def require_nobody_needs_others(view: View, roots: Bundle, where: str) -> None:
    """Refuse roots to which the configured issuer, a live istiod's issuer or a leaf that is presented does not chain.

    The last line of defence, on positive evidence only: who could not be read is the business of the gate before.

    Raises:
        GateRefused: Names who would not be trusted any more. Nothing was written.
    """
    kept = roots.fingerprints
    needing = [
        f"{peer.name} presents a leaf of {short(peer.leaf.anchors)}"
        for peer in view.observation.peers
        if peer.leaf is not None and not peer.leaf.anchors & kept
    ]
    for signer in view.observation.signers:
        if signer.issuer is not None and not signer.anchors & kept:
            needing.insert(0, f"{signer.name} signs by {signer.issuer[:8]}, which chains to {short(signer.anchors)}")
    issuer = view.observation.issuer
    # An issuer that chains to nothing declared now is broken already, and this write does not make it worse.
    if issuer is not None and issuer.anchors & view.bundle.fingerprints and not issuer.anchors & kept:
        needing.insert(0, f"the configured issuer {issuer.fingerprint[:8]} chains to {short(issuer.anchors)}")
    if needing:
        raise GateRefused(
            f"{len(needing)} still need a root that would be taken away", where=where,
            observed="\n            ".join(needing[:20]),
            expected=f"everything that is presented to chain to {short(kept)}",
            next_command="capstan status, and wait until it names nobody",
        )  # fmt: skip


def require_trusted_by_all(view: View, issuer: IssuerMaterial, now: datetime, where: str) -> None:
    """Every live proxy holds, and every istiod hands out, a root to which the issuer verifies.

    Raises:
        GateRefused: Names who does not, and whoever could not be asked.
    """
    refused: list[str] = []
    verdicts: dict[frozenset[str], str] = {}

    def judge(name: str, roots: frozenset[str] | None, unreadable: str, what: str) -> None:
        if roots is None:
            refused.append(f"{name}: {what} could not be read ({unreadable})")
            return
        if roots not in verdicts:
            known = [view.certificates[each] for each in sorted(roots) if each in view.certificates]
            verdicts[roots] = _why_not(issuer, known, now)
        if verdicts[roots]:
            refused.append(f"{name}: {verdicts[roots]}")

    for proxy in view.proxies:
        judge(proxy.peer.name, proxy.peer.trusts, proxy.peer.unreadable, "its roots")
    for signer in view.observation.signers:
        judge(signer.name, signer.roots, signer.unreadable, "the roots it hands out")
    if not view.istiods:
        refused.append("no istiod is running, so nobody knows which roots would be handed out")
    if refused:
        raise GateRefused(
            f"{len(refused)} live peers would not trust this issuer", where=where,
            observed="\n            ".join(refused[:20]),
            expected=f"every live proxy to hold, and every istiod to hand out, the root of "
            f"{issuer.certificate.fingerprint[:16]}",
            next_command="capstan status, and wait for (or restart) the workloads it names",
        )  # fmt: skip


def _why_not(issuer: IssuerMaterial, roots: list[Certificate], now: datetime) -> str:
    if not roots:
        return "holds no root that is known here"
    try:
        verify_issuer(issuer.certificate, roots, now, issuer.chain[1:])
    except CapstanError as error:
        return f"{error.what}: {error.observed}"
    return ""
