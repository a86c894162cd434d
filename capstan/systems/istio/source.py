"""Where an istiod takes its CA from: one protocol over a Secret and over a Key Vault.

    cacerts          the plug-in CA: Secret `cacerts`, mounted at /etc/cacerts
    istio-ca-secret  the self-signed CA: istiod's own Secret
    key vault        the AKS add-on: four Key Vault secrets, brought to istiod by the secrets-store CSI driver

Texts are handled byte for byte: istiod 1.20 to 1.29 accepts a changed root-cert.pem only where one text contains the
other (facts: pilot/pkg/bootstrap/istio_ca.go, `bytes.Contains`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from capstan.systems.base import Change, IssuerMaterial


class Mode(StrEnum):
    """How an istiod comes by its CA."""

    PLUG_IN = "plug-in"
    SELF_SIGNED = "self-signed"
    KEY_VAULT = "key-vault"
    CITADEL = "citadel"
    """Before istiod (1.4 and older): Citadel, with a Secret per service account."""


@dataclass(frozen=True, slots=True)
class CaFiles:
    """What a source holds of public texts; never the key.

    Attributes:
        root_cert: PEM of every root that is handed out as trusted.
        ca_cert: PEM of the signing CA.
        cert_chain: PEM of what stands between a leaf and its root, the root usually included; may be empty.
        version: What changes with every write: a resourceVersion, or the Key Vault versions of all four.
    """

    root_cert: str
    ca_cert: str
    cert_chain: str
    version: str


class CaSource(Protocol):
    """One cluster's CA material at its source."""

    @property
    def mode(self) -> Mode:
        """Which kind of source this is."""

    @property
    def where(self) -> str:
        """For messages: `secret istio-system/cacerts in cluster east`."""

    def read(self) -> CaFiles:
        """The public texts as they are kept now.

        Raises:
            NotFound: The source, or a part of it, is not there. Others: as the API or the vault.
        """

    def read_issuer(self) -> IssuerMaterial:
        """The signing CA with its key."""

    def ensure(self, *, root_cert: str | None = None, issuer: IssuerMaterial | None = None) -> tuple[Change, ...]:
        """Make the source hold these roots (exactly these bytes), or this signing CA, or both; idempotent.

        Raises:
            InvalidInput: What would be there together is nothing istiod can start with. Nothing was written.
            Conflict: Somebody wrote in between; observe again.
        """
