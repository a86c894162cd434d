"""How the add-on's four Key Vault secrets reach an istiod, found out from the cluster, and how far they have come.

    csi       the secrets-store CSI driver mounts them into istiod; per pod, a SecretProviderClassPodStatus names the
              version of each object that the pod's volume holds (secrets-store-csi-driver, "Secret auto rotation")
    cacerts   the driver keeps a Secret `cacerts` in step with the vault, and that is mounted (AKS until March 2025)
    unknown   neither can be seen; only what each istiod answers counts

Beside either, a CronJob of the add-on's older revisions restarts istiod when the root has changed (until January 2025).
None of this is proof: an istiod counts as changed when it says so itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import CRON_JOBS, SECRETS, Resource
from capstan.errors import CapstanError, Denied, NotFound
from capstan.systems.istio import forms
from capstan.systems.istio.layout import CACERTS, CSI_DRIVER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.systems.istio.key_vault import Kept
    from capstan.systems.istio.layout import Layout

POD_STATUSES: Final = Resource(
    "secrets-store.csi.x-k8s.io", "v1", "secretproviderclasspodstatuses", "SecretProviderClassPodStatus"
)
VALIDATOR: Final = "istio-cert-validator-cronjob"
_EVERY_MINUTES: Final = re.compile(r"\*/(\d+) \* \* \* \*")
_ASSUMED_INTERVAL: Final = 600.0  # seconds; "every ten minutes", AKS documentation of 2024


class Way(StrEnum):
    """How the secrets come to istiod."""

    CSI = "csi"
    CACERTS = "cacerts"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was found in one cluster.

    Attributes:
        validator_interval: Seconds between two looks of the add-on's CronJob; None where there is no such CronJob.
    """

    way: Way
    validator_interval: float | None = None


def detect(cluster: Cluster, layout: Layout) -> Delivery:
    """Find out how secrets come to the istiods of an add-on.

    Raises:
        CapstanError: The API could not be asked; that something is not there, or not for us to see, is an answer.
    """
    return Delivery(_way(cluster, layout), _validator_interval(cluster, layout.namespace))


def outstanding(cluster: Cluster, layout: Layout, kept: Kept, way: Way) -> tuple[str, ...]:
    """Who does not have what the vault keeps yet, each with what it has; empty if all do.

    An unknown way leaves nothing to wait for here.
    """
    match way:
        case Way.CSI:
            return _behind(cluster, layout, kept.versions)
        case Way.CACERTS:
            return _secret_behind(cluster, layout.namespace, kept)
        case Way.UNKNOWN:
            return ()


def _way(cluster: Cluster, layout: Layout) -> Way:
    mounted = [pod for pod in layout.pods if _class_of(pod)]
    if mounted and _statuses(cluster, layout.namespace) is not None:
        return Way.CSI
    if not mounted and cluster.find(SECRETS, layout.ca_secret or CACERTS, layout.namespace) is not None:
        return Way.CACERTS
    return Way.UNKNOWN


def _behind(cluster: Cluster, layout: Layout, wanted: Mapping[str, str]) -> tuple[str, ...]:
    statuses = _statuses(cluster, layout.namespace) or {}
    found = []
    for pod in layout.pods:
        name, provider = str(pod["metadata"]["name"]), _class_of(pod)
        if not provider or "deletionTimestamp" in pod["metadata"]:
            continue
        held = statuses.get((name, provider))
        if held is None:
            found.append(f"{name}: its volume is not mounted yet")
            continue
        old = [
            f"{each}@{held[each][:8] or '?'}" for each in sorted(wanted) if held.setdefault(each, "") != wanted[each]
        ]
        if old:
            found.append(f"{name}: still has {', '.join(old)}")
    return tuple(found)


def _secret_behind(cluster: Cluster, namespace: str, kept: Kept) -> tuple[str, ...]:
    place = f"secret {namespace}/{CACERTS}"
    secret = cluster.find(SECRETS, CACERTS, namespace)
    if secret is None:
        return (f"{place} is not there",)
    try:
        held, key = forms.files_of(secret), forms.key_of(secret)
    except CapstanError as error:
        return (f"{place}: {error.what}",)
    files = kept.files
    different = [
        name
        for name, ours, theirs in (
            ("root-cert.pem", held.root_cert, files.root_cert),
            ("ca-cert.pem", held.ca_cert, files.ca_cert),
            ("cert-chain.pem", held.cert_chain, files.cert_chain),
        )
        if ours != theirs
    ]
    if key != kept.key:
        different.append("ca-key.pem")
    return (f"{place}: another {', '.join(different)} than in the vault",) if different else ()


def _statuses(cluster: Cluster, namespace: str) -> dict[tuple[str, str], dict[str, str]] | None:
    """(pod, class) -> object name -> version; None where the driver's objects cannot be seen."""
    try:
        items = cluster.list(POD_STATUSES, namespace).items
    except (NotFound, Denied):
        return None
    found: dict[tuple[str, str], dict[str, str]] = {}
    for item in items:
        status = item.get("status") or {}
        versions: dict[str, str] = {}
        for entry in status.get("objects") or []:
            # TYPE/NAME; TYPE/NAME/INDEX where a class asks for several versions of each, the latest of which is 0.
            _, name, index = [*str(entry.get("id", "")).split("/"), "", ""][:3]
            if index in ("", "0"):
                versions[name] = str(entry.get("version", ""))
        found[str(status.get("podName", "")), str(status.get("secretProviderClassName", ""))] = versions
    return found


def _class_of(pod: Object) -> str:
    """The SecretProviderClass that a pod mounts; empty if none."""
    for volume in pod["spec"].get("volumes") or []:
        csi = volume.get("csi") or {}
        if csi.get("driver") == CSI_DRIVER:
            return str((csi.get("volumeAttributes") or {}).get("secretProviderClass", ""))
    return ""


def _validator_interval(cluster: Cluster, namespace: str) -> float | None:
    for item in cluster.list(CRON_JOBS, namespace).items:
        if str(item["metadata"]["name"]).startswith(VALIDATOR) and not item["spec"].get("suspend"):
            every = _EVERY_MINUTES.fullmatch(str(item["spec"].get("schedule", "")))
            return 60.0 * int(every[1]) if every else _ASSUMED_INTERVAL
    return None
