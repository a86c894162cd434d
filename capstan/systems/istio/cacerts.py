"""The plug-in CA of upstream Istio: Secret `cacerts`, mounted at /etc/cacerts.

It is replaced under the version it was read with, all entries in one write, never deleted: an istiod that starts while
there is none makes itself a new self-signed CA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.cluster.resources import SECRETS
from capstan.errors import CapstanError
from capstan.systems.base import Change
from capstan.systems.istio import forms
from capstan.systems.istio.layout import CACERTS
from capstan.systems.istio.owners import require_ours
from capstan.systems.istio.planning import planned
from capstan.systems.istio.preflight import require_secret_size, verify_files
from capstan.systems.istio.source import CaFiles, Mode
from capstan.systems.istio.texts import certificates_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.pki.keys import PrivateKey
    from capstan.systems.base import IssuerMaterial
    from capstan.systems.istio.owners import Tool
    from capstan.trust.observation import Fingerprint


class CacertsSource:
    """See `CaSource`.

    Args:
        name: The Secret's name, as istiod's Deployment mounts it.
        accept: Tools whose objects may be written because somebody made sure that the source says the same.
        now: The wall clock, aware UTC.
    """

    mode = Mode.PLUG_IN

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str = CACERTS,
        *,
        accept: Collection[Tool] = (),
        now: Callable[[], datetime],
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._accept = accept
        self._now = now

    @property
    def where(self) -> str:
        """`secret istio-system/cacerts in cluster east`."""
        return f"{self.place} in cluster {self._cluster.name}"

    @property
    def place(self) -> str:
        """`secret istio-system/cacerts`."""
        return f"secret {self._namespace}/{self._name}"

    def read(self) -> CaFiles:
        """See `CaSource.read`."""
        return forms.files_of(self._cluster.get(SECRETS, self._name, self._namespace))

    def read_issuer(self) -> IssuerMaterial:
        """See `CaSource.read_issuer`."""
        secret = self._cluster.get(SECRETS, self._name, self._namespace)
        return forms.material_of(forms.files_of(secret), forms.key_of(secret), self.where)

    def ensure(self, *, root_cert: str | None = None, issuer: IssuerMaterial | None = None) -> tuple[Change, ...]:
        """See `CaSource.ensure`.

        Raises:
            OwnedElsewhere: A tool would revert the write. Others: as `CaSource.ensure`. Nothing was written.
        """
        # 1. What is there, and what is to be.
        secret = self._cluster.get(SECRETS, self._name, self._namespace)
        present, old_key = forms.files_of(secret), _key_or_none(secret)
        plan = planned(present, old_key, root_cert=root_cert, issuer=issuer, where=self.where, now=self._now())
        version = str(secret["metadata"]["resourceVersion"])
        before = _fingerprints(present, self.where)
        if not plan.why:
            return (Change(self.place, before, before, False, version, version),)
        # 2. Would istiod start with it, and take it?
        crl = forms.text_of(secret, forms.CRL_KEY) if forms.CRL_KEY in (secret.get("data") or {}) else ""
        verify_files(plan.files, plan.key, self.where, now=self._now(), crl=crl)
        require_secret_size((plan.files.root_cert, plan.files.ca_cert, plan.files.cert_chain, crl), self.where)
        # 3. May we?
        require_ours(secret, self.place, self._cluster.name, self._accept, _remedy(plan.files))
        # 4. Write all of it at once, under the version that was read.
        written = forms.with_files(secret, plan.files, plan.key, same_key=issuer is None)
        after = self._cluster.replace(SECRETS, written)
        return (
            Change(
                self.place, before, _fingerprints(plan.files, self.where), True,
                version, str(after["metadata"]["resourceVersion"]), plan.why,
            ),
        )  # fmt: skip


def _remedy(files: CaFiles) -> str:
    """The public half of the change, as a tool's source wants it; the key is in Capstan's vault."""
    entries = {"root-cert.pem": files.root_cert, "ca-cert.pem": files.ca_cert, "cert-chain.pem": files.cert_chain}
    lines = []
    for name, text in entries.items():
        lines.append(f"  {name}: |")
        lines += [f"    {line}" for line in text.splitlines()]
    return "\n".join(lines)


def _key_or_none(secret: dict[str, object]) -> PrivateKey | None:
    try:
        return forms.key_of(secret)
    except CapstanError:
        return None


def _fingerprints(files: CaFiles, where: str) -> tuple[Fingerprint, ...]:
    """Roots first, then the signing CA; what cannot be read counts as none."""
    found: list[Fingerprint] = []
    for text in (files.root_cert, files.ca_cert):
        try:
            found += [certificate.fingerprint for certificate in certificates_of(text, where)]
        except CapstanError:
            continue
    return tuple(dict.fromkeys(found))
