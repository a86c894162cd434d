"""Categories of the extensions: `linkerd-extension-checks`, `linkerd-viz`, `linkerd-multicluster`, where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.systems.base import CheckResult, Severity
from capstan.systems.linkerd.checks_data_plane import other_versions, readiness
from capstan.systems.linkerd.checks_evidence import EXTENSION_LABEL, pod_name
from capstan.systems.linkerd.checks_report import EXTENSIONS, MULTICLUSTER, VIZ, listed, result, skipped
from capstan.systems.linkerd.checks_webhooks import tap_checks
from capstan.systems.linkerd.layout import short
from capstan.systems.linkerd.pods import has_ended, proxy_container

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capstan.cluster.values import Object
    from capstan.systems.linkerd.checks_evidence import Evidence

VIZ_COMPONENTS: Final = ("web", "tap", "metrics-api", "tap-injector")


def extension_checks(evidence: Evidence) -> Iterable[CheckResult]:
    """Of the extensions that are installed; nothing of those that are not."""
    about = EXTENSIONS, "namespace configuration for extensions", "l5d-extension-namespaces", Severity.WARNING
    if evidence.extensions.problem:
        yield result(*about, f"it is not known which extensions there are: {evidence.extensions.problem}")
        return
    names: dict[str, list[str]] = {}
    for item in evidence.extensions.value:
        names.setdefault(str(item["metadata"]["labels"][EXTENSION_LABEL]), []).append(str(item["metadata"]["name"]))
    twice = [f"{name} is the label of {', '.join(sorted(found))}" for name, found in names.items() if len(found) > 1]
    if evidence.extension_pods.problem:
        twice.append(f"their pods cannot be read: {evidence.extension_pods.problem}")
    yield result(*about, listed("", twice))
    for namespace in names.get("viz", []):
        yield from _viz(evidence, namespace)
    for namespace in names.get("multicluster", []):
        yield from _multicluster(evidence, namespace)


def _viz(evidence: Evidence, namespace: str) -> Iterable[CheckResult]:
    pods = _pods(evidence, namespace)
    yield from tap_checks(evidence)
    yield result(
        VIZ, "linkerd-viz pods are injected", "l5d-viz-pods-injection", Severity.WARNING,
        listed("No linkerd-proxy in these:", _uninjected(pods)),
    )  # fmt: skip
    there = {str((pod["metadata"].get("labels") or {}).get("component", "")) for pod in pods if not has_ended(pod)}
    missing = [f"no pod of {name}" for name in VIZ_COMPONENTS if name not in there]
    yield result(VIZ, "viz extension pods are running", "l5d-viz-pods-running", Severity.WARNING, listed("", missing))
    yield from _proxies(evidence, namespace, VIZ, "viz", "l5d-viz-proxy")


def _multicluster(evidence: Evidence, namespace: str) -> Iterable[CheckResult]:
    """A gateway's clients are in another cluster: it must trust them, and they it."""
    yield skipped(
        MULTICLUSTER, "clusters share trust anchors", "l5d-multicluster-clusters-share-anchors", Severity.ERROR,
        "judged over all clusters that are named (--context EAST --context WEST), each asked itself; linkerd"
        " multicluster check compares a value of two linkerd-configs, which may both be empty",
    )  # fmt: skip
    yield from _proxies(evidence, namespace, MULTICLUSTER, "multicluster", "l5d-multicluster-proxy")


def _proxies(evidence: Evidence, namespace: str, category: str, name: str, anchor: str) -> Iterable[CheckResult]:
    """Their proxies are no other proxies: each must run, hold the declared roots and show a leaf."""
    pods = [pod for pod in evidence.data_plane if pod["metadata"]["namespace"] == namespace]
    broken, coming, note = readiness(pods)
    bundle = evidence.view.bundle.fingerprints
    for proxy in evidence.view.proxies:
        peer = proxy.peer
        if peer.namespace == namespace and peer.trusts is not None and peer.trusts != bundle:
            broken.append(f"{peer.namespace}/{peer.pod} holds {short(peer.trusts)}")
    yield result(
        category, f"{name} extension proxies are healthy", f"{anchor}-healthy", Severity.WARNING,
        listed("", broken + coming), note=note if broken or coming else "",
    )  # fmt: skip
    yield result(
        category, f"{name} extension proxies are up-to-date", f"{anchor}-cp-version", Severity.WARNING,
        listed("", other_versions(pods, evidence.view.layout.version)),
    )  # fmt: skip


def _pods(evidence: Evidence, namespace: str) -> list[Object]:
    return [pod for pod in evidence.extension_pods.value if pod["metadata"]["namespace"] == namespace]


def _uninjected(pods: Iterable[Object]) -> list[str]:
    return sorted(pod_name(pod) for pod in pods if not has_ended(pod) and proxy_container(pod["spec"]) is None)
