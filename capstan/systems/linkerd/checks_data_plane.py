"""Categories `linkerd-identity-data-plane` and `linkerd-data-plane`: the proxies of the workloads.

`data plane proxies certificate match CA` is, in Linkerd, a comparison of texts in pod specs (healthcheck.go,
checkPodsProxiesCertificate): it takes a reordered bundle for a stale one, reports pods that ended long ago, leaves out
the control plane, and never asks a process. Ours compares the sets of roots that the processes hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.errors import CapstanError
from capstan.pki.bundle import Bundle
from capstan.systems.base import CheckResult, Severity
from capstan.systems.linkerd.checks_evidence import container_runs, pod_name
from capstan.systems.linkerd.checks_report import (
    DATA_PLANE,
    IDENTITY_DATA_PLANE,
    listed,
    result,
    skipped,
)
from capstan.systems.linkerd.layout import ANCHORS_ENV, PROXY, short
from capstan.systems.linkerd.pods import has_ended, proxy_container, proxy_is_over

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from capstan.cluster.values import Object
    from capstan.systems.linkerd.checks_evidence import Evidence

ANNOTATION_ONLY: Final = "linkerd.io/inject"
ANNOTATION_PREFIXES: Final = ("config.linkerd.io", "config.alpha.linkerd.io")


def identity_data_plane_check(evidence: Evidence) -> CheckResult:
    """Which live proxies do not hold the declared roots."""
    bundle = evidence.view.bundle.fingerprints
    peers = [proxy.peer for proxy in evidence.view.proxies]
    stale = {
        f"{peer.namespace}/{peer.pod}": f"holds {short(peer.trusts)}"
        for peer in peers
        if peer.trusts is not None and peer.trusts != bundle
    }
    by_their_rule = _stale_by_text(evidence)
    differences = [
        f"{name} is stale ({why})" for name, why in by_their_rule.items() if name not in stale
    ] + [
        f"nothing of {name} ({_why_they_are_blind(evidence, name)})" for name in stale if name not in by_their_rule
    ]  # fmt: skip
    note = listed("linkerd check, which compares text, would say:", differences) if differences else ""
    return result(
        IDENTITY_DATA_PLANE, "data plane proxies certificate match CA",
        "l5d-identity-data-plane-proxies-certs-match-ca", Severity.WARNING,
        listed(
            "Some pods do not have the current trust bundle and must be restarted:",
            [f"{name} {why}" for name, why in stale.items()],
        ),
        note=note,
    )  # fmt: skip


def data_plane_checks(evidence: Evidence) -> Iterable[CheckResult]:
    """`linkerd-data-plane`, as far as proxies and their identities are concerned."""
    pods = evidence.data_plane
    ready = DATA_PLANE, "data plane proxies are ready", "l5d-data-plane-ready", Severity.FATAL
    if not pods:
        yield skipped(*ready, 'no workload is meshed; linkerd check would say: × no "linkerd-proxy" containers found')
    else:
        broken, coming, note = readiness(pods)
        yield result(*ready, listed("", broken + coming), note=note, harmless=not broken)
    yield result(
        DATA_PLANE, "data plane is up-to-date", "l5d-data-plane-version", Severity.WARNING,
        listed(
            f"Proxies of another version than the control plane ({evidence.view.layout.version}):",
            other_versions(pods, evidence.view.layout.version),
        ),
    )  # fmt: skip
    yield result(
        DATA_PLANE, "data plane pod labels are configured correctly", "l5d-data-plane-pod-labels", Severity.WARNING,
        listed("These labels should be annotations, and have no effect:", _mislabelled(pods)),
    )  # fmt: skip


def readiness(pods: Sequence[Object]) -> tuple[list[str], list[str], str]:
    """Proxies that run and are not ready; pods whose proxy does not run yet; how Linkerd judges otherwise.

    A proxy is ready once it has its identity. A pod that has not started holds nothing, one that is being deleted is on
    its way, and a proxy that ended for good (a Job's, told to by its own container) holds nothing any more: none of
    them is a broken proxy.
    """
    broken, coming, over, differences = [], [], [], []
    for pod in pods:
        name, status = pod_name(pod), pod.get("status") or {}
        if proxy_container(pod["spec"]) is None:
            continue
        if has_ended(pod):
            if status.get("reason") == "Evicted":
                differences.append(
                    f'container "{PROXY}" in pod {name} is not ready (the pod was evicted, and has ended)'
                )
        elif "deletionTimestamp" in pod["metadata"]:
            differences.append(f"pod {name} status is {status.get('phase')} (it is being deleted)")
        elif proxy_is_over(pod):
            over.append(f"{name}: its proxy has ended, and is not started again; its own containers go on without it")
        elif not container_runs(pod, PROXY):
            coming.append(f"{name}: its proxy has not started ({_phase(pod)})")
        elif not _proxy_ready(pod):
            broken.append(f'container "{PROXY}" in pod {name} is not ready')
    if coming and not broken:
        differences.append(f"× {coming[0]} (a proxy that has not started holds no roots, and refuses nobody)")
    return broken, coming + over, listed("linkerd check would say:", differences)


def other_versions(pods: Iterable[Object], version: str) -> list[str]:
    """Running pods whose proxy is of another version than the control plane."""
    return [
        f"{pod_name(pod)} ({found})"
        for pod in pods
        if not has_ended(pod) and version and (found := version_of(pod)) and found != version
    ]


def version_of(pod: Object) -> str:
    """The proxy's version: the annotation that the injector writes, else the image's tag."""
    annotation = (pod["metadata"].get("annotations") or {}).get("linkerd.io/proxy-version")
    if annotation:
        return str(annotation)
    image = str((proxy_container(pod["spec"]) or {}).get("image", ""))
    _, colon, tag = image.rpartition("/")[2].partition("@")[0].partition(":")
    return tag if colon else ""


def _stale_by_text(evidence: Evidence) -> dict[str, str]:
    """The pods that Linkerd's rule calls stale, each with why it does although (or because) the sets say otherwise."""
    wanted = evidence.bundle_text.strip()
    bundle = evidence.view.bundle.fingerprints
    found = {}
    for pod in evidence.data_plane:
        for group in ("initContainers", "containers"):
            for container in pod["spec"].get(group) or []:
                if container.get("name") != PROXY:
                    continue
                entry: Object = next(
                    (item for item in container.get("env") or [] if item.get("name") == ANCHORS_ENV), {}
                )
                text = str(entry.get("value") or "")
                if text.strip() != wanted:
                    found[pod_name(pod)] = _why_text_differs(pod, entry, text, bundle)
    return found


def _why_text_differs(pod: Object, entry: Object, text: str, bundle: frozenset[str]) -> str:
    if has_ended(pod):
        return "it has ended: no process of it is left"
    if "valueFrom" in entry:
        return "it takes its roots by reference, which that check does not follow"
    try:
        same = Bundle.parse_lenient(text, pod_name(pod)).fingerprints == bundle
    except CapstanError:
        return "its spec holds no readable roots"
    return "the same roots, in another order or spacing" if same else "its spec holds other roots"


def _why_they_are_blind(evidence: Evidence, name: str) -> str:
    if name.partition("/")[0] == evidence.namespace:
        return "it leaves out the control plane"
    return "its spec has the declared text, its process holds other roots"


def _proxy_ready(pod: Object) -> bool:
    status = pod.get("status") or {}
    return any(
        container.get("name") == PROXY and container.get("ready")
        for group in ("initContainerStatuses", "containerStatuses")
        for container in status.get(group) or []
    )


def _phase(pod: Object) -> str:
    status = pod.get("status") or {}
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or []:
            waiting = (container.get("state") or {}).get("waiting")
            if waiting and container.get("name") == PROXY:
                return str(waiting.get("reason") or "waiting")
    return str(status.get("phase") or "unknown")


def _mislabelled(pods: Iterable[Object]) -> list[str]:
    return [
        f"{pod_name(pod)}: {label}"
        for pod in pods
        for label in pod["metadata"].get("labels") or {}
        if label == ANNOTATION_ONLY or label.startswith(ANNOTATION_PREFIXES)
    ]
