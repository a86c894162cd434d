"""What Capstan needs of a cluster with Istio, upstream or as the AKS add-on, beside what it needs everywhere."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from capstan.cluster.record import NAMESPACE
from capstan.cluster.resources import CLUSTER_TRUST_BUNDLES
from capstan.systems.istio.delivery import POD_STATUSES
from capstan.systems.istio.istiods import ACCOUNTS
from capstan.systems.istio.layout import CACERTS, CONFIG_MAP, SELF_SIGNED
from capstan.systems.istio.places import TRUST_BUNDLE
from capstan.systems.rights import Need, Purpose, needs

if TYPE_CHECKING:
    from collections.abc import Iterator


def istio(namespace: str, *, add_on: bool) -> Iterator[Need]:
    """Every right, by its purpose.

    Args:
        namespace: Of the control plane.
        add_on: The AKS add-on takes its CA from Key Vault: nothing is written in its namespace.
    """
    here = partial(needs, namespace=namespace)
    yield from needs("list", "configmaps", "read the roots that istiod hands out everywhere", names=(CONFIG_MAP,))
    for plural in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        why = "see whether the API server trusts istiod"
        yield from needs("list", plural, why, group="admissionregistration.k8s.io")
    yield from needs("list", "events", "see whether pods were refused by the injector")
    yield from here("list", "deployments", "read each revision's version and settings", group="apps")
    yield from here("get", "configmaps", "read the mesh configuration")
    yield from here("get", "secrets", "read the CA", names=(CACERTS, SELF_SIGNED))
    why = "be certified by each istiod, to see what it signs with"
    yield from needs("create", "serviceaccounts/token", why, namespace=NAMESPACE, names=ACCOUNTS[:1])
    rotate = Purpose.ROTATE
    if add_on:
        why = "see which versions of the vault's secrets each istiod holds"
        yield from here("list", POD_STATUSES.plural, why, to=rotate, group=POD_STATUSES.group)
    else:
        yield from here("update", "secrets", "write the CA", to=rotate, names=(CACERTS, SELF_SIGNED))
        yield from here("create", "secrets", "give a self-signed mesh its cacerts", to=rotate)
    optional = Purpose.OPTIONAL
    bundle = CLUSTER_TRUST_BUNDLES
    yield from needs("get", bundle.plural, "read the roots that istiod puts there, if told to", to=optional,
                     group=bundle.group, names=(TRUST_BUNDLE,))  # fmt: skip
    yield from needs("list", "secrets", "read the leaves that Citadel hands out (before Istio 1.5)", to=optional)
