"""Rehearsing births: which roots would a pod get that is created now?

The API server is asked to create a pod without keeping it (`dryRun=All`): the injector is called as for any other, and
its answer comes back. The pod is made after one that the injector made before, for a cluster's own rules judge it as
well: image policies, quotas that want limits, mandatory labels. A namespace that refuses the rehearsal says nothing
about the injector, so another one is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from capstan.cluster.resources import NAMESPACES, PODS
from capstan.errors import CapstanError, Denied, GateRefused, GateTimedOut, InvalidInput, Retryable
from capstan.pki.bundle import Bundle
from capstan.systems.linkerd.layout import COMPONENT_LABEL, INIT, MESH_LABEL, PROXY, short
from capstan.systems.linkerd.pods import INJECT, has_ended, literal_anchors, proxy_container, why_not_injected

if TYPE_CHECKING:
    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.trust.observation import Fingerprint

POLL: Final = 1.0
DRY_RUNS: Final = 3
CREATED_BY: Final = "linkerd.io/created-by"
INJECTOR: Final = "linkerd/proxy-injector"
"""What that annotation begins with on a pod of the injector's (pkg/k8s/labels.go); `linkerd/cli`: injected by hand."""
_NOT_PERMITTED: Final = "cannot create resource"  # the API server's authorizer; admission says something else
_SHOWN: Final = 10


def await_injector(cluster: Cluster, namespace: str, roots: frozenset[Fingerprint], *, until: float) -> None:
    """Wait until pods born now get these roots.

    The injector's replicas read the roots from a mounted file, each as late as its kubelet; so several answers in a row
    must be right. The API server chooses whom it asks: what is born stale all the same is restarted again.

    Args:
        namespace: The control plane's.
        until: When to stop waiting, by the cluster's clock.

    Raises:
        GateTimedOut: They still get others, or none.
        GateRefused: No namespace lets a birth be rehearsed; says which refused, and why.
        Denied: The right to create pods is missing.
    """
    meshed = cluster.list(PODS, label_selector=f"{MESH_LABEL}={namespace}", metadata_only=True).items
    models = _models(cluster, meshed, namespace)
    components = [(pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL) for pod in meshed]
    needed = max(DRY_RUNS, 2 * components.count("proxy-injector"))
    refused: dict[str, CapstanError] = {}
    right = 0
    while models and right < needed:
        chosen = sorted(models)[right % len(models)]
        try:
            problem = _rehearse(cluster, chosen, models[chosen], roots)
        except (Denied, InvalidInput) as error:
            refused[chosen] = error
            del models[chosen]
            continue
        if not problem:
            right += 1
            continue
        right = 0
        if cluster.clock() >= until:
            raise GateTimedOut(
                "pods born now would not get the wanted roots", stragglers=("proxy-injector",),
                where=f"proxy-injector of cluster {cluster.name}", observed=problem, expected=f"roots {short(roots)}",
                next_command=f"kubectl logs -n {namespace} deploy/linkerd-proxy-injector proxy-injector",
            )  # fmt: skip
        cluster.sleep(POLL)
    if refused and not models:
        raise _nowhere(cluster, refused)


def _models(cluster: Cluster, meshed: tuple[Object, ...], namespace: str) -> dict[str, Object]:
    """Of each namespace where the injector is at work a pod that it made; empty where nothing is meshed yet, or all is
    injected by hand: there is nothing to be born wrong."""
    there = {str(item["metadata"]["name"]): item for item in cluster.list(NAMESPACES, metadata_only=True).items}
    models: dict[str, Object] = {}
    for entry in meshed:
        metadata = entry["metadata"]
        place = str(metadata["namespace"])
        by = str((metadata.get("annotations") or {}).get(CREATED_BY, ""))
        if place == namespace or place in models or "deletionTimestamp" in metadata or not by.startswith(INJECTOR):
            continue
        if place not in there or "deletionTimestamp" in there[place]["metadata"]:
            continue  # nothing is born any more in a namespace on its way out
        pod = cluster.find(PODS, str(metadata["name"]), place)
        if pod is None or has_ended(pod):
            continue
        rehearsal = _after(pod)
        if not why_not_injected(rehearsal, there[place]):
            models[place] = rehearsal
    return models


def _rehearse(cluster: Cluster, namespace: str, pod: Object, roots: frozenset[Fingerprint]) -> str:
    """Why a pod born now in this namespace would be wrong; empty if it would be right.

    Raises:
        Denied, InvalidInput: The namespace does not take the rehearsal.
    """
    try:
        born = cluster.create(PODS, pod, dry_run=True)
    except Retryable as error:
        return f"{error.what}: {error.observed}"
    container = proxy_container(born["spec"])
    if container is None:
        return f"in namespace {namespace}: no linkerd-proxy was injected"
    text = literal_anchors(container)
    if text is None:
        return f"in namespace {namespace}: the injected proxy has no roots written in"
    try:
        found = Bundle.parse_lenient(text, f"dry-run pod in namespace {namespace}").fingerprints
    except CapstanError as error:
        return error.what
    return "" if found == roots else f"in namespace {namespace}: roots {short(found)}"


def _after(pod: Object) -> Object:
    """A pod like this one as it was before it was injected, with the first of its own containers and no volumes."""
    metadata, spec = pod["metadata"], pod["spec"]
    own: Object = next(
        (each for each in spec.get("containers") or [] if each.get("name") not in (PROXY, INIT)), {"image": "none"}
    )
    container = {key: own[key] for key in ("image", "securityContext") if own.get(key)}
    # Claims of devices would be looked for in the pod; what quotas and policies ask for is the rest.
    container["resources"] = {k: v for k, v in (own.get("resources") or {}).items() if k in ("limits", "requests")}
    kept = ("serviceAccountName", "securityContext", "priorityClassName", "runtimeClassName")
    labels = {key: text for key, text in (metadata.get("labels") or {}).items() if "linkerd.io/" not in key}
    born: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "capstan-rehearsal-",
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": {INJECT: "enabled"},
        },
        "spec": {
            **{key: spec[key] for key in kept if spec.get(key)},
            "containers": [{"name": "rehearsal", **container}],
            "restartPolicy": "Always",
        },
    }
    return born


def _nowhere(cluster: Cluster, refused: dict[str, CapstanError]) -> CapstanError:
    errors = list(refused.values())
    if all(_NOT_PERMITTED in error.observed for error in errors):
        return errors[-1]
    lines = [f"{name}: {error.observed}" for name, error in list(refused.items())[:_SHOWN]]
    return GateRefused(
        "it cannot be seen which roots new pods would get: no namespace lets a birth be rehearsed",
        where=f"{len(refused)} namespaces with meshed pods in cluster {cluster.name}",
        observed="\n            ".join(lines),
        expected="one namespace that takes a pod like those in it, as a dry run",
        next_command="let pods named capstan-rehearsal-* pass the policy that is named, then run this again",
    )
