"""Categories of the control plane: that it is there, runs, is of one version, and has the replicas it should have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.systems.base import CheckResult, Severity
from capstan.systems.linkerd.checks_data_plane import other_versions, readiness
from capstan.systems.linkerd.checks_report import (
    CONTROL_PLANE_PROXY,
    CONTROL_PLANE_VERSION,
    EXISTENCE,
    HIGH_AVAILABILITY,
    listed,
    result,
    skipped,
)
from capstan.systems.linkerd.layout import COMPONENT_LABEL, CONTROL_PLANE, short

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capstan.cluster.values import Object
    from capstan.systems.linkerd.checks_evidence import Evidence

UNSCHEDULABLE: Final = "Unschedulable"


def existence_checks(evidence: Evidence) -> Iterable[CheckResult]:
    """`linkerd-existence`, as far as a rotation depends on it."""
    yield result(
        EXISTENCE, "'linkerd-config' config map exists", "l5d-existence-linkerd-config", Severity.FATAL,
        "" if evidence.has_config else "the proxy-injector reads it at every admission, and there is none",
    )  # fmt: skip
    failures = [
        f"{item['metadata']['name']}: {condition.get('reason', '')}: {condition.get('message', '')}"
        for item in evidence.replica_sets.value
        for condition in (item.get("status") or {}).get("conditions") or []
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True"
    ]
    if evidence.replica_sets.problem:
        failures.append(evidence.replica_sets.problem)
    yield result(
        EXISTENCE, "control plane replica sets are ready", "l5d-existence-replicasets", Severity.FATAL,
        listed("", failures),
    )  # fmt: skip
    waiting = [
        f"{pod['metadata']['name']}: {condition.get('message', '')}"
        for pod in evidence.control_plane
        for condition in (pod.get("status") or {}).get("conditions") or []
        if condition.get("reason") == UNSCHEDULABLE
    ]
    yield result(
        EXISTENCE, "no unschedulable pods", "l5d-existence-unschedulable-pods", Severity.WARNING, listed("", waiting)
    )  # fmt: skip
    yield result(
        EXISTENCE, "control plane pods are ready", "l5d-api-control-ready", Severity.FATAL,
        listed("", _components_down(evidence)),
    )  # fmt: skip


def version_checks(evidence: Evidence) -> Iterable[CheckResult]:
    """`control-plane-version`: what can be said without asking the network which version is the latest."""
    version = evidence.view.layout.version
    yield result(
        CONTROL_PLANE_VERSION, "can retrieve the control plane version", "l5d-version-control", Severity.FATAL,
        "" if version else "neither deployment linkerd-identity nor linkerd-config says one",
    )  # fmt: skip
    yield skipped(
        CONTROL_PLANE_VERSION, "control plane is up-to-date", "l5d-version-control", Severity.WARNING,
        f"{version or 'unknown'}; which version is the latest, only `linkerd check` asks (versioncheck.linkerd.io)",
    )  # fmt: skip


def control_plane_proxy_checks(evidence: Evidence) -> Iterable[CheckResult]:
    """`linkerd-control-plane-proxy`. Linkerd's compares no roots here: it leaves this namespace out (facts 2, d)."""
    broken, coming, note = readiness(evidence.control_plane)
    bundle = evidence.view.bundle.fingerprints
    for proxy in evidence.view.proxies:
        peer = proxy.peer
        if peer.namespace == evidence.namespace and peer.trusts is not None and not peer.trusts & bundle:
            broken.append(f"{peer.namespace}/{peer.pod} holds {short(peer.trusts)}, none of the declared roots")
    yield result(
        CONTROL_PLANE_PROXY, "control plane proxies are healthy", "l5d-cp-proxy-healthy", Severity.FATAL,
        listed("", broken + coming), note=note, harmless=not broken,
    )  # fmt: skip
    yield result(
        CONTROL_PLANE_PROXY, "control plane proxies are up-to-date", "l5d-cp-proxy-version", Severity.WARNING,
        listed("", other_versions(evidence.control_plane, evidence.view.layout.version)),
    )  # fmt: skip


def high_availability_check(evidence: Evidence) -> CheckResult:
    """Two ready replicas of each component, where the installation is meant to have them."""
    about = (
        HIGH_AVAILABILITY, "multiple replicas of control plane pods", "l5d-control-plane-replicas", Severity.WARNING,
    )  # fmt: skip
    if not evidence.values.get("highAvailability"):
        return skipped(*about, "not run for non HA installs")
    few = [name for name in CONTROL_PLANE if len(_ready_pods(evidence, name)) < 2]
    return result(*about, listed("Restarting one of these interrupts it:", few))


def _components_down(evidence: Evidence) -> list[str]:
    problems = []
    for name in CONTROL_PLANE:
        if _ready_pods(evidence, name):
            continue
        pods = _pods_of(evidence, name)
        unready = [
            f"pod/{pod['metadata']['name']} container {container['name']} is not ready"
            for pod in pods
            for container in _containers(pod)
            if not container.get("ready")
        ]
        problems += unready or [f'No running pods for "{name}"']
    return problems


def _pods_of(evidence: Evidence, name: str) -> list[Object]:
    return [
        pod
        for pod in evidence.control_plane
        if f"linkerd-{(pod['metadata'].get('labels') or {}).get(COMPONENT_LABEL)}" == name
        and (pod.get("status") or {}).get("phase") == "Running"
    ]


def _ready_pods(evidence: Evidence, name: str) -> list[Object]:
    return [pod for pod in _pods_of(evidence, name) if all(item.get("ready") for item in _containers(pod) or [{}])]


def _containers(pod: Object) -> list[Object]:
    return list((pod.get("status") or {}).get("containerStatuses") or [])
