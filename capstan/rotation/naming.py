"""What new CAs are called.

A new root's name has to differ from every name that a trusted root has: OpenSSL and BoringSSL look for a root by name
before they look at key identifiers, and two Envoys that trust two roots of one name refuse each other (Istio issue
37096). So every root of ours has a generation in its name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cryptography.x509.oid import NameOID

from capstan.config import System

if TYPE_CHECKING:
    from capstan.cluster.record import Kind
    from capstan.pki.inspect import Certificate

_IDENTITY: Final = "identity."  # of Linkerd's issuer: identity.NAMESPACE.TRUST-DOMAIN, and of its root root.…
_GENERATION = re.compile(r" G[1-9][0-9]*$")
_LONGEST = 64 - len(" G999999")  # ub-common-name (RFC 5280, appendix A.1) less the generation that is added


def root_name(current: Certificate) -> str:
    """Common name of the next root, without its generation: the present one's, or its organization.

    Istio's self-signed root is named by its organization alone (`O=cluster.local`). Linkerd's CLI makes one
    certificate that is both anchor and issuer, and names it as the issuer: the next issuer goes on with that name, and
    the next root is called as Linkerd's manual calls a root.
    """
    name = _GENERATION.sub("", current.common_name) or _organization(current) or "mesh root"
    if name.startswith(_IDENTITY):
        name = f"root.{name.removeprefix(_IDENTITY)}"
    return name[:_LONGEST]


def issuer_name(system: System, cluster: str, present: Certificate) -> str:
    """Common name of a cluster's next issuer: the present one's.

    Where Istio signs with its root, or with an issuer without a common name, there is none to keep.
    """
    if system is System.LINKERD or (present.common_name and not present.self_signed):
        return present.common_name
    return f"Istio CA {cluster}"


def _organization(certificate: Certificate) -> str:
    found = certificate.raw.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else ""


def rotate_command(system: System, kind: Kind) -> str:
    """What takes a rotation of this kind forward on the command line; its id and the like come after it."""
    if kind == "anchor":
        return "capstan rotate"
    what = "intermediate" if kind == "issuer" and system is not System.LINKERD else kind
    return f"capstan rotate --what {what}"
