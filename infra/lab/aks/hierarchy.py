"""Offline-made roots and intermediates with the names of Microsoft's page ("Plug in CA certificates"), and the four
texts of them that go into Key Vault or into Secret `cacerts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.lab.istio.hierarchy import mint_intermediate, mint_root

if TYPE_CHECKING:
    from datetime import datetime

    from infra.lab.pki import KeyPair

ROOT_CERT, CA_CERT, CA_KEY, CERT_CHAIN = FILES = ("root-cert.pem", "ca-cert.pem", "ca-key.pem", "cert-chain.pem")


@dataclass(frozen=True)
class Hierarchy:
    """A root and an intermediate under it."""

    root: KeyPair
    intermediate: KeyPair

    def texts(self, *, roots: str | None = None) -> dict[str, str]:
        """File name -> text: the set that istiod reads.

        Args:
            roots: root-cert.pem, where it holds more (or others) than this root.
        """
        root, intermediate = self.root.certificate_pem, self.intermediate.certificate_pem
        return {
            ROOT_CERT: root if roots is None else roots,
            CA_CERT: intermediate,
            CA_KEY: self.intermediate.key_pem,
            CERT_CHAIN: intermediate + root,
        }


def mint(letter: str, *, now: datetime, identifiers: bool = True, root_name: str = "") -> Hierarchy:
    """A new root `O=Istio,CN=Root LETTER` and an intermediate of it.

    Args:
        identifiers: Whether the certificates carry SKI and AKI.
        root_name: The root's common name, for two roots of one name.
    """
    root = mint_root(now=now, common_name=root_name or f"Root {letter}", identifiers=identifiers)
    name = f"Intermediate CA - {letter}1"
    return Hierarchy(root, mint_intermediate(root, now=now, common_name=name, identifiers=identifiers))
