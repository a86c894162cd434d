"""Who owns the objects that a rotation writes, and what has to be changed at the owner's source.

A tool that renders an object renders it again: at once (trust-manager, cert-manager), at its next sync (Argo CD, Flux)
or at the next upgrade (Helm). A write to what it owns is therefore refused, with the change to make where the tool
reads from. What a Helm release says is read as well: a ConfigMap that somebody edited past its release is right only
until the next `helm upgrade`.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from capstan.cluster.resources import SECRETS, Resource
from capstan.errors import CapstanError, InvalidInput, OwnedElsewhere
from capstan.pki.bundle import Bundle
from capstan.systems.linkerd.layout import ANCHORS, TRUST_ROOTS, TRUST_ROOTS_KEY, Tool, owner_of, short

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.trust.observation import Fingerprint

BUNDLES: Final = (
    Resource("trust.cert-manager.io", "v1alpha1", "bundles", "Bundle", namespaced=False),
    Resource("trust-manager.io", "v1alpha2", "clusterbundles", "ClusterBundle", namespaced=False),
)
RELEASE_NAME: Final = "meta.helm.sh/release-name"
RELEASE_NAMESPACE: Final = "meta.helm.sh/release-namespace"
_GZIP: Final = 16 + zlib.MAX_WBITS
RELEASE_LIMIT: Final = 32 * 2**20
"""Bytes a release may unpack to; etcd keeps at most 1.5 MiB of a Secret, and charts pack about tenfold."""


@dataclass(frozen=True, slots=True)
class Release:
    """The values of a Helm release as they were given by its last deployment, without the chart's defaults.

    Attributes:
        name: `linkerd/linkerd-control-plane v3`.
        values: Never to be shown: an issuer's key may be among them.
    """

    name: str
    values: dict[str, Any]

    def __repr__(self) -> str:
        return f"Release({self.name!r})"

    def roots(self) -> Bundle | None:
        """The trust roots that the next upgrade renders; None if the release was given none (`identity.externalCA`).

        Raises:
            InvalidInput: They cannot be read.
        """
        text = self.values.get(ANCHORS)
        return Bundle.parse_lenient(str(text), f"Helm release {self.name}, value {ANCHORS}") if text else None


def require_ours(
    cluster: Cluster, item: Object, place: str, remedy: str, accept: Collection[Tool], *, cli_install: bool
) -> None:
    """Refuse to write what a tool would revert.

    Args:
        remedy: The value that has to be at the tool's source, for a person; holds no private key.

    Raises:
        OwnedElsewhere: Names the tool, where it reads from, and the change.
    """
    tool = owner_of(item, cli_install=cli_install)
    if not tool.reverts or tool in accept:
        return
    raise OwnedElsewhere(
        f"{tool.value} manages this object and would undo the write",
        where=f"{place} in cluster {cluster.name}",
        observed=f"marks of {tool.value} on it",
        expected="an object that nothing else writes",
        next_command=f"{source_of(cluster, item, tool)}, then run the same command again:\n{remedy}",
    )


def require_release_agrees(
    cluster: Cluster, item: Object, roots: Bundle, remedy: str, accept: Collection[Tool]
) -> None:
    """Refuse to go on with roots that the Helm release which owns this object would take back at its next upgrade.

    Raises:
        OwnedElsewhere: The release was given other roots. Denied: The release cannot be read.
    """
    if Tool.HELM in accept or owner_of(item) is not Tool.HELM:
        return
    release = helm_release(cluster, item)
    found = release.roots() if release is not None else None
    if release is None or found is None or found.fingerprints == roots.fingerprints:
        return
    raise OwnedElsewhere(
        "the next helm upgrade would bring other trust roots back",
        where=f"Helm release {release.name} in cluster {cluster.name}",
        observed=f"{ANCHORS} holds {short(found.fingerprints)}",
        expected=short(roots.fingerprints),
        next_command=f"{source_of(cluster, item, Tool.HELM)}, then run the same command again:\n{remedy}",
    )


def source_of(cluster: Cluster, item: Object, tool: Tool) -> str:
    """Where this tool takes the object from, and what to do there; the value itself follows."""
    return _SOURCES[tool](cluster, item) if tool in _SOURCES else "commit the change at its source"


def helm_release(cluster: Cluster, item: Object) -> Release | None:
    """What the Helm release that made this object was given; None if its Secret is gone.

    Helm keeps each revision as a Secret labelled owner=helm, name=RELEASE, status=deployed: JSON, gzipped, in base64,
    in the base64 of every Secret (Helm 3, storage/driver/secrets).

    Raises:
        InvalidInput: The release cannot be read. Denied: Its Secret may not be listed.
    """
    annotations = item["metadata"].get("annotations") or {}
    name = annotations.get(RELEASE_NAME)
    namespace = annotations.get(RELEASE_NAMESPACE) or str(item["metadata"].get("namespace", ""))
    if not name:
        return None
    selector = f"owner=helm,name={name},status=deployed"
    found = cluster.list(SECRETS, namespace, label_selector=selector).items
    if not found:
        return None
    latest = max(found, key=_revision)
    where = f"secret {namespace}/{latest['metadata']['name']} in cluster {cluster.name}"
    return Release(f"{namespace}/{name} v{_revision(latest)}", read_release(latest, where))


def read_release(secret: Object, where: str) -> dict[str, Any]:
    """The values a release was given.

    Raises:
        InvalidInput: It is no release of Helm 3. The content is not quoted: it may hold keys.
    """
    try:
        packed = base64.b64decode(base64.b64decode(secret["data"]["release"]), validate=True)
        unpacker = zlib.decompressobj(_GZIP)
        text = unpacker.decompress(packed, RELEASE_LIMIT) if packed[:2] == b"\x1f\x8b" else packed
        release = json.loads(text)
        values = release.get("config") or {}
    except (KeyError, ValueError, AttributeError, TypeError, binascii.Error, zlib.error) as error:
        raise InvalidInput(
            "the Helm release cannot be read", where=where, observed=type(error).__name__,
            expected="a release of Helm 3: base64 of gzipped JSON", next_command="helm history in its namespace",
        ) from None  # fmt: skip
    return values if isinstance(values, dict) else {}


def release_drift(cluster: Cluster, item: Object, roots: frozenset[Fingerprint]) -> str:
    """How the Helm release that owns this object differs from these roots; empty if it does not, or if Helm does not
    own it. What cannot be read is told as well, never passed over."""
    if owner_of(item) is not Tool.HELM:
        return ""
    try:
        release = helm_release(cluster, item)
        found = release.roots() if release is not None else None
    except CapstanError as error:
        return f"the Helm release cannot be read: {error.what}: {error.observed}"
    if release is None or found is None or found.fingerprints == roots:
        return ""
    return f"Helm release {release.name} declares {short(found.fingerprints)}"


def _helm(_cluster: Cluster, item: Object) -> str:
    annotations = item["metadata"].get("annotations") or {}
    namespace = annotations.get(RELEASE_NAMESPACE) or item["metadata"].get("namespace", "")
    release = f"{annotations.get(RELEASE_NAME, '')} -n {namespace}"
    return (
        f"put this into the values of Helm release {release}, wherever they are kept, and `helm upgrade` it"
        f" (--reset-then-reuse-values keeps the others)"
    )


def _argo(_cluster: Cluster, item: Object) -> str:
    """The tracking id is `APPLICATION:GROUP/KIND:NAMESPACE/NAME`; an Application outside Argo CD's own namespace is
    written `NAMESPACE_APPLICATION`."""
    metadata = item["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    tracked = str(annotations.get("argocd.argoproj.io/tracking-id", "")).partition(":")[0]
    name = (
        tracked or labels.get("argocd.argoproj.io/instance") or str(labels.get("app.kubernetes.io/instance", "unknown"))
    )
    return f"commit this to the source of Argo CD application {name} and sync it (helm values, or the manifest itself)"


def _flux(_cluster: Cluster, item: Object) -> str:
    labels = item["metadata"].get("labels") or {}
    for prefix, kind, what in (
        ("helm.toolkit.fluxcd.io", "HelmRelease", "under spec.values of"),
        ("kustomize.toolkit.fluxcd.io", "Kustomization", "to the source of"),
    ):
        name = labels.get(f"{prefix}/name")
        if name:
            namespace = labels.get(f"{prefix}/namespace", "flux-system")
            reconcile = f"flux reconcile {kind.lower()} {name} -n {namespace} --with-source"
            return f"commit this {what} Flux {kind} {namespace}/{name} and `{reconcile}`"
    return "commit this to the source that Flux applies"


def _trust_manager(cluster: Cluster, item: Object) -> str:
    """The Bundle by name and with its present sources; the ConfigMap has its name (both kinds are cluster-scoped)."""
    name = str(item["metadata"]["name"])
    for resource in BUNDLES:
        try:
            bundle = cluster.find(resource, name)
        except CapstanError:
            continue  # not installed, or not ours to read: its name is known all the same
        if bundle is not None:
            sources = _sources((bundle.get("spec") or {}).get("sources") or [])
            return f"make the sources of {resource.kind} {name} yield exactly this (now: {sources}; inLine takes PEM)"
    return f"make the sources of trust-manager's Bundle {name} yield exactly this (a source inLine takes PEM)"


def _sources(sources: Sequence[dict[str, Any]]) -> str:
    said = []
    for source in sources:
        for kind, detail in source.items():
            if not isinstance(detail, dict):
                said.append(kind)
            else:
                what = detail.get("name") or detail.get("selector") or ""
                said.append(f"{kind} {what} {detail.get('key', '')}".strip())
    return ", ".join(said) or "none"


def _cert_manager(_cluster: Cluster, item: Object) -> str:
    metadata = item["metadata"]
    annotations = metadata.get("annotations") or {}
    certificate = annotations.get("cert-manager.io/certificate-name", metadata["name"])
    issuer = annotations.get("cert-manager.io/issuer-name", "issuer")
    return (
        f"cert-manager issues this Secret for Certificate {metadata.get('namespace', '')}/{certificate}: let its"
        f" {annotations.get('cert-manager.io/issuer-kind', 'Issuer')} {issuer} sign with the new root and"
        f" `cmctl renew -n {metadata.get('namespace', '')} {certificate}`"
    )


def _controller(_cluster: Cluster, item: Object) -> str:
    """The object that an ownerReference names: the controller's, else the first."""
    metadata = item["metadata"]
    references = metadata.get("ownerReferences") or []
    owner = next((each for each in references if each.get("controller")), references[0] if references else None)
    if owner is None:
        return "commit the change where this tool takes the object from"
    return (
        f"{owner.get('kind', '')} {metadata.get('namespace', '')}/{owner.get('name', '')} makes this object: put the"
        " change where that reads from"
    )


def _revision(secret: Object) -> int:
    text = str((secret["metadata"].get("labels") or {}).get("version", ""))
    return int(text) if text.isdecimal() else 0


_SOURCES: Final[dict[Tool, Callable[[Cluster, Object], str]]] = {
    Tool.HELM: _helm,
    Tool.ARGO: _argo,
    Tool.FLUX: _flux,
    Tool.TRUST_MANAGER: _trust_manager,
    Tool.CERT_MANAGER: _cert_manager,
    Tool.EXTERNAL_SECRETS: _controller,
    Tool.SEALED_SECRETS: _controller,
    Tool.SECRETS_STORE: _controller,
    Tool.VAULT_OPERATOR: _controller,
    Tool.CONTROLLER: _controller,
}


def remedy(item: Object, tool: Tool, roots: Bundle) -> str:
    """The roots as the tool's source wants them: the chart's value, or, for trust-manager, a source of its Bundle."""
    if tool is Tool.TRUST_MANAGER:
        lines = "\n".join(f"        {line}" for line in roots.pem().splitlines())
        return f"spec:\n  sources:\n    - inLine: |\n{lines}"
    lines = "\n".join(f"  {line}" for line in roots.pem().splitlines())
    helm = f"{ANCHORS}: |-\n{lines}"
    if item["metadata"]["name"] == TRUST_ROOTS and tool in (Tool.ARGO, Tool.FLUX):
        return f"{helm}\n(a source without the chart has it as {TRUST_ROOTS_KEY} of ConfigMap {TRUST_ROOTS})"
    return helm
