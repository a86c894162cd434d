"""The CA that an istiod made for itself: Secret `istio-ca-secret`.

Its two native ways of change are a renewal with the same key (`capstan.systems.istio.redate`) and, for a new key, the
move to a plug-in CA: `cacerts` is created with the old signer and old + new roots, so that nothing changes for anybody
but who is trusted, and from then on it is a plug-in rotation. Writing another key into `istio-ca-secret` itself would
be a swap without an overlap: istiod hands out exactly the one root that stands there.

Source: istio/istio pilot/pkg/bootstrap/istio_ca.go; sail-operator docs/general/plugin-ca.adoc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import SECRETS
from capstan.errors import CapstanError, Conflict, GateRefused
from capstan.systems.base import Change
from capstan.systems.istio import forms
from capstan.systems.istio.layout import CA_CERT_KEY, CA_KEY_KEY, CACERTS, SELF_SIGNED
from capstan.systems.istio.planning import planned
from capstan.systems.istio.preflight import verify_files
from capstan.systems.istio.source import CaFiles, Mode
from capstan.systems.istio.texts import certificates_of
from capstan.systems.linkerd.secrets import decoded

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.systems.base import IssuerMaterial

ORIGIN: Final = "capstan.dev/made-from"


class SelfSignedSource:
    """See `CaSource`. Once it has changed anything the mesh's source is `cacerts`, and this one is of no more use.

    Args:
        now: The wall clock, aware UTC.
    """

    mode = Mode.SELF_SIGNED

    def __init__(self, cluster: Cluster, namespace: str, *, now: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._now = now

    @property
    def where(self) -> str:
        """`secret istio-system/istio-ca-secret in cluster east`."""
        return f"secret {self._namespace}/{SELF_SIGNED} in cluster {self._cluster.name}"

    def read(self) -> CaFiles:
        """See `CaSource.read`. Of the Secret's five entries istiod reads two: `root-cert.pem` goes stale at the first
        renewal, or is empty from the beginning."""
        return _files(self._cluster.get(SECRETS, SELF_SIGNED, self._namespace))

    def read_issuer(self) -> IssuerMaterial:
        """See `CaSource.read_issuer`."""
        secret = self._cluster.get(SECRETS, SELF_SIGNED, self._namespace)
        return forms.material_of(_files(secret), forms.key_of(secret), self.where)

    def ensure(self, *, root_cert: str | None = None, issuer: IssuerMaterial | None = None) -> tuple[Change, ...]:
        """See `CaSource.ensure`; a change of roots creates `cacerts` with the present signer.

        Raises:
            GateRefused: Another issuer is wanted before its root was added.
            Conflict: Somebody has made `cacerts` meanwhile.
        """
        secret = self._cluster.get(SECRETS, SELF_SIGNED, self._namespace)
        present, key = _files(secret), forms.key_of(secret)
        signer = forms.material_of(present, key, self.where)
        version = str(secret["metadata"]["resourceVersion"])
        before = tuple(each.fingerprint for each in certificates_of(present.root_cert, self.where))
        # 1. Is there anything to do?
        plan = planned(
            CaFiles(present.root_cert, present.ca_cert, forms.chain_text(signer, signer.certificate), version), key,
            root_cert=root_cert, issuer=issuer, where=self.where, now=self._now(),
        )  # fmt: skip
        place = f"secret {self._namespace}/{SELF_SIGNED}"
        if not plan.why:
            return (Change(place, before, before, False, version, version),)
        # 2. The first step away from a self-signed CA changes who is trusted, and nothing else.
        if issuer is not None and plan.files.ca_cert != present.ca_cert:
            raise GateRefused(
                "a self-signed istiod can only be given another CA after everybody trusts its root", where=self.where,
                observed="no plug-in CA yet", expected=f"secret {CACERTS} with the present CA and both roots",
                next_command="begin with the roots: capstan rotate",
            )  # fmt: skip
        # 3. Would istiod start with it?
        verify_files(plan.files, plan.key, f"secret {self._namespace}/{CACERTS}", now=self._now())
        # 4. Create it: all in one write, and only if there is none.
        body: Object = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": CACERTS, "namespace": self._namespace, "annotations": {ORIGIN: SELF_SIGNED}},
            "type": "Opaque",
            "data": forms.data_of(plan.files, plan.key, decoded(secret, CA_KEY_KEY)),
        }
        after = self._create(body, plan.files)
        roots = tuple(each.fingerprint for each in certificates_of(plan.files.root_cert, self.where))
        why = f"a self-signed CA hands out one root; {CACERTS} takes its place with the same signer"
        return (
            Change(
                f"secret {self._namespace}/{CACERTS}", (), (*roots, *(each for each in before if each not in roots)),
                True, "", str(after["metadata"]["resourceVersion"]), why,
            ),
        )  # fmt: skip

    def _create(self, body: Object, files: CaFiles) -> Object:
        """Create it; one that an earlier try of ours made, whose answer was lost, counts.

        Raises:
            Conflict: There is one with other contents.
        """
        try:
            return self._cluster.create(SECRETS, body)
        except Conflict:
            found = self._cluster.get(SECRETS, CACERTS, self._namespace)
            try:
                held = forms.files_of(found)
            except (
                CapstanError
            ):  # the old way to append roots to a self-signed CA: a `cacerts` with root-cert.pem alone
                held = CaFiles("", "", "", "")
            if (held.root_cert, held.ca_cert, held.cert_chain) != (files.root_cert, files.ca_cert, files.cert_chain):
                raise
            return found


def _files(secret: Object) -> CaFiles:
    """ca-cert.pem is both: its first certificate signs, all of it is handed out as roots."""
    text = forms.text_of(secret, CA_CERT_KEY)
    return CaFiles(text, text, "", str(secret["metadata"].get("resourceVersion", "")))
