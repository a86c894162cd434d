"""Which rights Capstan needs in a cluster, and what for: the one list of them.

`capstan check --rbac` and the beginning of every rotation ask the API server for each. The roles in infra/kubernetes
grant these and no others: tests/cluster/test_faults_rights.py holds the two against each other, and
tests/rotation/test_least_privilege.py holds the list against what a whole rotation is seen to ask for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final

from capstan.cluster.access import Right, may, who_am_i
from capstan.cluster.record import NAMESPACE, record_name
from capstan.config import System
from capstan.errors import Denied

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from capstan.cluster.client import Cluster
    from capstan.cluster.record import Kind

_CLUSTER: Final = "kubectl apply -k infra/kubernetes/cluster"
_ISTIO: Final = f"{_CLUSTER} && kubectl apply -k infra/kubernetes/istio"
_WEBHOOKS: Final = f"{_CLUSTER} && kubectl apply -k infra/kubernetes/linkerd-webhooks"
RESTART_WORKLOADS: Final[tuple[Kind, ...]] = ("anchor", "issuer", "re-date", "expired")
SHOWN: Final = 12  # objects whose missing rights an error lists; `capstan check --rbac` lists all


def shipped(system: System, kind: Kind) -> str:
    """What gives all of it to the service accounts capstan-reader and capstan-rotator."""
    if system is not System.LINKERD:
        return _ISTIO
    return _WEBHOOKS if kind == "webhooks" else _CLUSTER


class Purpose(StrEnum):
    """What a right is for."""

    READ = "read"
    """`check`, `plan`, `status` and the radar."""
    ROTATE = "rotate"
    """A rotation, beside reading."""
    WEBHOOKS = "webhooks"
    """A rotation of the certificates of Linkerd's webhooks: who may write those can have every API request sent to
    himself, so it takes a role of its own."""
    OPTIONAL = "optional"
    """Of use in some clusters only; nothing is refused without it, and no role of ours grants it."""


@dataclass(frozen=True, slots=True)
class Need:
    """A right, and why it is needed.

    Attributes:
        why: As a clause that ends a sentence "it is needed to ...".
        kinds: The kinds of rotation that need it; empty for every kind.
    """

    right: Right
    purpose: Purpose
    why: str
    kinds: frozenset[Kind] = frozenset()


def needs(
    verbs: str,
    resource: str,
    why: str,
    *,
    to: Purpose = Purpose.READ,
    group: str = "",
    namespace: str = "",
    names: Sequence[str] = ("",),
    kinds: Sequence[Kind] = (),
) -> Iterator[Need]:
    """One need for each of these verbs and names.

    Args:
        verbs: Verbs with spaces between them.
    """
    for verb in verbs.split():
        for name in names:
            yield Need(Right(verb, resource, group, namespace, name), to, why, frozenset(kinds))


def needed(system: System, namespace: str, domain: str) -> tuple[Need, ...]:
    """Every right that is of use, each once.

    Args:
        namespace: Of the control plane.
        domain: Name of the trust domain.
    """
    if system is System.LINKERD:
        from capstan.systems.linkerd.rights import linkerd

        own = linkerd(namespace)
    else:
        from capstan.systems.istio.rights import istio

        own = istio(namespace, add_on=system is System.AKS_ISTIO)
    return tuple({need.right: need for need in (*_everywhere(domain), *own)}.values())


def _everywhere(domain: str) -> Iterator[Need]:
    """What is the same for every trust system: meshed workloads in any namespace, and Capstan's own memory."""
    yield from needs("get list", "pods", "find the live proxies")
    yield from needs("get create", "pods/portforward", "ask each proxy for its roots and its leaf")
    yield from needs("get list", "replicasets", "know which workload a pod belongs to", group="apps")
    yield from needs("get list", "jobs", "know which workload a pod belongs to", group="batch")
    record = (record_name(domain),)
    yield from needs("get", "configmaps", "read the rotation record", namespace=NAMESPACE, names=record)
    rotate = Purpose.ROTATE
    why = "restart the control plane, and workloads, and follow them"
    yield from needs("get list watch patch", "deployments", why, to=rotate, group="apps")
    restarts = partial(needs, to=rotate, kinds=RESTART_WORKLOADS)
    for plural in ("statefulsets", "daemonsets"):
        yield from restarts("get list watch patch", plural, "restart workloads and follow them", group="apps")
    yield from restarts("patch", "replicasets", "restart one that no Deployment owns", group="apps")
    yield from restarts("get patch", "replicationcontrollers", "restart them")
    yield from restarts("create", "pods/eviction", "restart what does not roll by itself")
    why = "know whether a budget could ever allow an eviction"
    yield from restarts("list", "poddisruptionbudgets", why, group="policy")
    yield from restarts("watch", "pods", "see evicted pods replaced")
    yield from restarts("list", "cronjobs", "find templates that have no pod now", group="batch")
    own = partial(needs, to=rotate, namespace=NAMESPACE)
    yield from own("get", "namespaces", "see that the record has a place", names=(NAMESPACE,))
    yield from own("create", "configmaps", "begin the rotation record")
    yield from own("update", "configmaps", "keep the rotation record", names=record)
    yield from own("create", "leases", "lock the rotation", group="coordination.k8s.io")
    yield from own("get update", "leases", "lock the rotation", group="coordination.k8s.io", names=record)
    optional = Purpose.OPTIONAL
    for group, plural in (
        ("argoproj.io", "rollouts"), ("core.strimzi.io", "strimzipodsets"), ("postgresql.cnpg.io", "clusters"),
    ):  # fmt: skip
        yield from needs(
            "get patch", plural, "have its operator restart it, not evict its pods", to=optional, group=group
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the API server said to one need."""

    need: Need
    allowed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Rights:
    """The answers of one cluster.

    Attributes:
        user: The name under which its API server knows us; empty where it does not tell.
    """

    cluster: str
    user: str
    verdicts: tuple[Verdict, ...]

    def missing(self, *purposes: Purpose) -> tuple[Need, ...]:
        """What is not permitted, of needs of these purposes."""
        return tuple(v.need for v in self.verdicts if not v.allowed and v.need.purpose in purposes)


def rights_in(cluster: Cluster, wanted: Iterable[Need]) -> Rights:
    """Ask one cluster's API server for each.

    Raises:
        Denied: Even asking is not permitted. Others: as any read.
    """
    each = tuple(wanted)
    answers = may(cluster, [need.right for need in each])
    verdicts = (Verdict(need, answer.allowed, answer.reason) for need, answer in zip(each, answers, strict=True))
    return Rights(cluster.name, who_am_i(cluster), tuple(verdicts))


def require_rights(cluster: Cluster, system: System, namespace: str, domain: str, kind: Kind) -> None:
    """Refuse to begin what would be refused half-way.

    Args:
        kind: Of the rotation.

    Raises:
        Denied: A right is missing; names each with its verb, resource and namespace.
    """
    purposes = {Purpose.READ, Purpose.ROTATE} | ({Purpose.WEBHOOKS} if kind == "webhooks" else set())
    wanted = [
        need
        for need in needed(system, namespace, domain)
        if need.purpose in purposes and (not need.kinds or kind in need.kinds)
    ]
    found = rights_in(cluster, wanted)
    missing = found.missing(*purposes)
    if missing:
        verbs: dict[tuple[str, str], list[str]] = {}
        for need in missing:
            verbs.setdefault((need.right.what, need.why), []).append(need.right.verb)
        named = [f"cannot {', '.join(found)} {what} (to {why})" for (what, why), found in verbs.items()]
        if len(named) > SHOWN:
            rest = sum(map(len, list(verbs.values())[SHOWN:]))
            named[SHOWN:] = [f"and {rest} more"]
        raise Denied(
            f"{len(missing)} of {len(wanted)} rights that a rotation needs are missing, so none is begun",
            where=f"cluster {cluster.name}, as {found.user or 'whoever the kubeconfig names'}",
            observed="\n            ".join(named),
            expected=f"the roles of infra/kubernetes ({shipped(system, kind)}), or others that permit the same",
            next_command="capstan check --rbac lists all that is missing, with the roles that would grant it",
        )
