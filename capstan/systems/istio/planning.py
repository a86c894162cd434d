"""From what a CA source holds to what it is to hold, and why they differ; the same for every kind of source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capstan.errors import CapstanError, GateRefused, InvalidInput
from capstan.pki.bundle import Bundle
from capstan.pki.verify import verify_issuer
from capstan.systems.istio import forms
from capstan.systems.istio.source import CaFiles
from capstan.systems.istio.texts import certificates_of

if TYPE_CHECKING:
    from datetime import datetime

    from capstan.pki.inspect import Certificate
    from capstan.pki.keys import PrivateKey
    from capstan.systems.base import IssuerMaterial


@dataclass(frozen=True, slots=True)
class Planned:
    """What a source is to hold.

    Attributes:
        files: The public texts; equal to the present ones where nothing changes.
        why: What was not in order; empty if all was.
    """

    files: CaFiles
    key: PrivateKey
    why: str


def planned(
    present: CaFiles,
    present_key: PrivateKey | None,
    *,
    root_cert: str | None,
    issuer: IssuerMaterial | None,
    where: str,
    now: datetime,
) -> Planned:
    """The files to write, and why; see `CaSource.ensure`.

    Raises:
        InvalidInput: There is no key, neither in the source nor with the issuer.
        GateRefused: The issuer does not verify against the roots that would be there.
    """
    roots_text = present.root_cert if root_cert is None else root_cert
    why = [] if roots_text == present.root_cert else ["it held other roots"]
    ca_cert, chain, key = present.ca_cert, present.cert_chain, present_key
    if issuer is not None and not _holds(present, present_key, issuer, where):
        root = root_of(issuer, Bundle(certificates_of(roots_text, where)), where, now)
        ca_cert, chain, key = f"{issuer.certificate.pem()}\n", forms.chain_text(issuer, root), issuer.key
        why.append("it held another issuer")
    if key is None:
        raise InvalidInput(
            "the signing CA's key cannot be read", where=where, observed="no usable key", expected="ca-key.pem",
            next_command="capstan check",
        )  # fmt: skip
    if not chain.strip() and (why or issuer is not None):
        # An istiod-made Secret has an empty chain; as a plug-in CA the set has to be complete.
        chain = _chain_of_present(ca_cert, roots_text, key, where, now)
        why.append("its chain was empty")
    return Planned(CaFiles(roots_text, ca_cert, chain, present.version), key, "; ".join(why))


def root_of(issuer: IssuerMaterial, roots: Bundle, where: str, now: datetime) -> Certificate:
    """The root that an issuer verifies to; it must be trusted before anything is signed under it.

    Raises:
        GateRefused: None of these roots.
    """
    try:
        return verify_issuer(issuer.certificate, roots, now, issuer.chain[1:]).anchor
    except CapstanError as error:
        raise GateRefused(
            "the issuer does not verify against the roots at the source", where=where,
            observed=f"{error.what}: {error.observed}", expected="its root in root-cert.pem before it signs",
            next_command="capstan status",
        ) from error  # fmt: skip


def _holds(present: CaFiles, present_key: PrivateKey | None, issuer: IssuerMaterial, where: str) -> bool:
    """Whether the source holds this issuer, with its chain and its key."""
    try:
        signer = certificates_of(present.ca_cert, where)
        same = bool(signer) and forms.between(signer[0], present, where) == issuer.chain
    except CapstanError:
        return False
    return same and present_key is not None and present_key == issuer.key


def _chain_of_present(ca_cert: str, roots_text: str, key: PrivateKey, where: str, now: datetime) -> str:
    signer = forms.material_of(CaFiles(roots_text, ca_cert, "", ""), key, where)
    return forms.chain_text(signer, root_of(signer, Bundle(certificates_of(roots_text, where)), where, now))
