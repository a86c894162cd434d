"""Citadel, the CA before istiod (Istio 1.4 and older): a Secret `istio.SERVICE-ACCOUNT` in every namespace.

A workload's proxy loads its certificate from the files of such a Secret, so between the CA and a proxy stand two more
things that can be late: Citadel rewriting the Secret (after a restart, within its 60 s resync), and the kubelet
bringing it to the pod. `root-transition.sh verify-certs` looks at the Secrets alone, says nothing of what was loaded,
and ends with 0 even where they differ.

Source: recorded from Citadel 1.3 (`tests/vectors/controllers/istio-citadel`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import SECRETS
from capstan.errors import CapstanError, GateRefused
from capstan.pki.bundle import Bundle
from capstan.systems.istio import forms
from capstan.systems.istio.layout import CERT_CHAIN_KEY, ROOT_CERT_KEY
from capstan.systems.istio.self_signed import SelfSignedSource
from capstan.systems.istio.source import Mode

if TYPE_CHECKING:
    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.systems.base import Change, IssuerMaterial
    from capstan.trust.observation import Fingerprint

WORKLOAD_TYPE: Final = "istio.io/key-and-cert"
"""Type of the Secrets that Citadel makes for workloads."""


class CitadelSource(SelfSignedSource):
    """See `CaSource`: Citadel keeps its CA in the same Secret as a self-signed istiod.

    It hands out one root, so no other key can be brought in without a gap; a renewal with the same key can
    (`capstan.systems.istio.redate`).
    """

    mode = Mode.CITADEL

    def ensure(self, *, root_cert: str | None = None, issuer: IssuerMaterial | None = None) -> tuple[Change, ...]:
        """Nothing but what is there already.

        Raises:
            GateRefused: Anything else.
        """
        present = self.read()
        signs = self.read_issuer()
        other_roots = root_cert is not None and root_cert != present.root_cert
        other_issuer = issuer is not None and issuer.certificate != signs.certificate
        if other_roots or other_issuer:
            raise GateRefused(
                "Citadel hands out one root, so its key cannot be changed without a gap", where=self.where,
                observed=signs.certificate.fingerprint[:16], expected="the same root",
                next_command="extend the root's life (capstan rotate --redate), and upgrade to a version with istiod",
            )  # fmt: skip
        return super().ensure()


@dataclass(frozen=True, slots=True)
class WorkloadSecret:
    """One `istio.SERVICE-ACCOUNT` Secret.

    Attributes:
        name: `secret NAMESPACE/istio.SERVICE-ACCOUNT`.
        roots: Fingerprints of its root-cert.pem; None if that cannot be read.
        problem: Why not, or what is wrong with its certificate; empty if nothing is.
    """

    name: str
    roots: frozenset[Fingerprint] | None
    problem: str = ""


def workload_secrets(cluster: Cluster) -> tuple[WorkloadSecret, ...]:
    """Every Secret of Citadel's in the cluster, with one paged list."""
    items = cluster.list(SECRETS, field_selector=f"type={WORKLOAD_TYPE}").items
    return tuple(sorted((_read(item) for item in items), key=lambda each: each.name))


def outdated(secrets: tuple[WorkloadSecret, ...], root: Fingerprint) -> tuple[str, ...]:
    """Secrets that do not hold exactly this root, each with what it holds; unreadable ones count."""
    return tuple(
        f"{secret.name}: {secret.problem or 'holds ' + ', '.join(sorted(each[:8] for each in secret.roots or ()))}"
        for secret in secrets
        if secret.roots != frozenset({root})
    )


def _read(item: Object) -> WorkloadSecret:
    name = forms.place_of(item)
    try:
        roots = Bundle.parse_lenient(forms.text_of(item, ROOT_CERT_KEY), f"{name} {ROOT_CERT_KEY}").fingerprints
        Bundle.parse_lenient(forms.text_of(item, CERT_CHAIN_KEY), f"{name} {CERT_CHAIN_KEY}")
    except CapstanError as error:
        return WorkloadSecret(name, None, f"{error.what}: {error.observed or error.expected}")
    return WorkloadSecret(name, roots)
