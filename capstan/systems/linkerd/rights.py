"""What Capstan needs of a cluster with Linkerd, beside what it needs everywhere."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from capstan.systems.linkerd.checks_hooks import HOOKS, VIZ_HOOKS, Hook
from capstan.systems.linkerd.layout import CONFIG, IDENTITY, ISSUER, OVERRIDES, TRUST_ROOTS
from capstan.systems.linkerd.outside import GROUP
from capstan.systems.rights import Need, Purpose, needs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.record import Kind

_NODE_LEASES: Final = "kube-node-lease"
_VIZ: Final = "linkerd-viz"
# What rotates what: whose rotations need the right.
_ROOTS: Final[tuple[Kind, ...]] = ("anchor", "expired")
_ISSUERS: Final[tuple[Kind, ...]] = ("anchor", "issuer", "expired")


def linkerd(namespace: str) -> Iterator[Need]:
    """Every right, by its purpose.

    Args:
        namespace: Of the control plane.
    """
    here = partial(needs, namespace=namespace)
    yield from here("get", "configmaps", "read the declared roots", names=(TRUST_ROOTS, CONFIG))
    yield from here("get", "secrets", "read the issuer", names=(ISSUER,))
    yield from here("get", "secrets", "see what the next `linkerd upgrade` would write", names=(OVERRIDES,))
    yield from here("list", "events", "see what identity says of its issuer")
    yield from here("get", "deployments", "read identity's flags and version", group="apps", names=(IDENTITY,))
    for hook in HOOKS:
        yield from _hook(hook, namespace, Purpose.READ)
    yield from needs("list", "nodes", "see whether the nodes' clocks agree")
    yield from needs("list", "leases", "see whether the nodes' clocks agree", group="coordination.k8s.io",
                     namespace=_NODE_LEASES)  # fmt: skip
    yield from needs("list", "namespaces", "find Linkerd's extensions")
    yield from needs("list", "externalworkloads", "know who is in the mesh and cannot be asked", group=GROUP)
    rotate = partial(needs, to=Purpose.ROTATE)
    yield from rotate("create", "pods", "rehearse a pod's birth (dry run)", kinds=_ROOTS)
    rotate = partial(rotate, namespace=namespace)
    yield from rotate("update", "configmaps", "declare the roots", names=(TRUST_ROOTS,), kinds=_ROOTS)
    repeat = "repeat roots and issuer for the next upgrade"
    yield from rotate("update", "configmaps", repeat, names=(CONFIG,), kinds=_ISSUERS)
    yield from rotate("update", "secrets", repeat, names=(OVERRIDES,), kinds=_ISSUERS)
    yield from rotate("update", "secrets", "switch the issuer", names=(ISSUER,), kinds=_ISSUERS)
    yield from rotate("get", "pods/log", "hear from each identity replica what it makes of an issuer", kinds=_ISSUERS)
    for hook in HOOKS:
        kind, why = hook.resource, f"turn the certificate of {hook.name}"
        to = Purpose.WEBHOOKS
        yield from needs("update", kind.plural, why, to=to, group=kind.group, names=(hook.configuration,))
        yield from here("update", "secrets", why, to=to, names=hook.secrets[:1])
    optional = Purpose.OPTIONAL
    yield from here("list", "secrets", "read what Helm's release would take back", to=optional)
    for group, plural in (("trust.cert-manager.io", "bundles"), ("trust-manager.io", "clusterbundles")):
        yield from needs("get", plural, "name the present sources of trust-manager's bundle", to=optional, group=group)
    for hook in VIZ_HOOKS:
        yield from _hook(hook, _VIZ, optional)


def _hook(hook: Hook, namespace: str, to: Purpose) -> Iterator[Need]:
    kind = hook.resource
    why = f"judge the certificate of {hook.name}"
    yield from needs("get", kind.plural, why, to=to, group=kind.group, names=(hook.configuration,))
    yield from needs("get", "secrets", why, to=to, namespace=namespace, names=hook.secrets[:1])
