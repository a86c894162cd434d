"""The places that repeat the roots, each of which istiod writes by itself and at its own time.

    ConfigMap istio-ca-root-cert     in every namespace that has it: what a proxy trusts its istiod by
    webhook configurations           caBundle of every entry: what the API server trusts the istiod of that revision by
    ClusterTrustBundle               where ENABLE_CLUSTER_TRUST_BUNDLE_API is on (1.26 and later)

`root-cert.pem` inside `istio-ca-secret` is no such place: istiod writes it once and never reads it (1.14 leaves it
empty). Source: pilot/pkg/serviceregistry/kube/controller/namespacecontroller.go, pkg/webhooks/webhookpatch.go.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from capstan.cluster.resources import (
    CLUSTER_TRUST_BUNDLES,
    CONFIG_MAPS,
    MUTATING_WEBHOOKS,
    VALIDATING_WEBHOOKS,
    Resource,
)
from capstan.errors import CapstanError, NotFound
from capstan.pki.bundle import Bundle
from capstan.systems.istio.layout import DEFAULT_REVISION, REVISION_LABEL, ROOT_CERT_KEY
from capstan.systems.istio.versions import flag

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.systems.istio.layout import Layout
    from capstan.trust.observation import Fingerprint

TRUST_BUNDLE_FLAG: Final = "ENABLE_CLUSTER_TRUST_BUNDLE_API"
TRUST_BUNDLE: Final = "istio.io:istiod-ca:root-cert"


@dataclass(frozen=True, slots=True)
class Place:
    """One object that repeats the roots.

    Attributes:
        name: `configmap default/istio-ca-root-cert`, `mutatingwebhookconfiguration/istio-sidecar-injector`.
        namespace: Of a ConfigMap; empty for what has none.
        roots: What stands there; None if nothing readable does.
        problem: Why it could not be read; empty if it was.
        revision: Of a webhook configuration: whose istiod the API server calls by it; empty for the others.
    """

    name: str
    namespace: str
    roots: Bundle | None
    problem: str = ""
    revision: str = ""

    @property
    def fingerprints(self) -> frozenset[Fingerprint]:
        """The roots as a set; empty if they cannot be read."""
        return self.roots.fingerprints if self.roots is not None else frozenset()


@dataclass(frozen=True, slots=True)
class Places:
    """All of them.

    Attributes:
        config_maps: One per namespace that has it.
        others: Webhook configurations and ClusterTrustBundle.
        troubles: What a live istiod serves and none keeps up to date, for a person: in the way of a change of roots.
        abandoned: Webhook configurations of revisions that are not there, for a person. Whatever they hold, a call by
            them finds no istiod; a change of roots neither breaks nor mends that.
    """

    config_maps: tuple[Place, ...]
    others: tuple[Place, ...]
    troubles: tuple[str, ...] = ()
    abandoned: tuple[str, ...] = ()

    def all(self) -> tuple[Place, ...]:
        """ConfigMaps first."""
        return (*self.config_maps, *self.others)

    def of_namespace(self, namespace: str) -> Place | None:
        """The ConfigMap of one namespace."""
        return next((place for place in self.config_maps if place.namespace == namespace), None)

    def declared(self, config_map: str, bundle: Bundle) -> tuple[tuple[str, frozenset[Fingerprint]], ...]:
        """As an observation has them: the ConfigMaps that agree as one entry, the others by name."""
        sets = [place.fingerprints for place in self.config_maps]
        entries: list[tuple[str, frozenset[Fingerprint]]] = []
        if sets:
            common = bundle.fingerprints if bundle.fingerprints in sets else Counter(sets).most_common(1)[0][0]
            entries.append((f"configmaps {config_map}", common))
            entries += [(item.name, item.fingerprints) for item in self.config_maps if item.fingerprints != common]
        return (*entries, *((item.name, item.fingerprints) for item in self.others))


def read_places(cluster: Cluster, layout: Layout) -> Places:
    """Read every place; what one holds and cannot be read is said in it.

    Raises:
        CapstanError: A kind of object cannot be listed at all.
    """
    troubles: list[str] = []
    abandoned: list[str] = []
    named = f"metadata.name={layout.config_map}"
    config_maps = tuple(_config_map(item) for item in cluster.list(CONFIG_MAPS, field_selector=named).items)
    others = [
        *_webhooks(cluster, layout, MUTATING_WEBHOOKS, troubles, abandoned),
        *_webhooks(cluster, layout, VALIDATING_WEBHOOKS, troubles, abandoned),
        *_trust_bundles(cluster, layout),
    ]
    return Places(config_maps, tuple(others), tuple(troubles), tuple(abandoned))


def _config_map(item: Object) -> Place:
    metadata = item["metadata"]
    name = f"configmap {metadata['namespace']}/{metadata['name']}"
    text = str((item.get("data") or {}).get(ROOT_CERT_KEY, ""))
    return _place(name, text.encode(), str(metadata["namespace"]))


def _place(name: str, text: bytes, namespace: str = "") -> Place:
    try:
        return Place(name, namespace, Bundle.parse_lenient(text, name))
    except CapstanError as error:
        return Place(name, namespace, None, f"{error.what}: {error.observed or error.expected}")


def _webhooks(
    cluster: Cluster, layout: Layout, resource: Resource, troubles: list[str], abandoned: list[str]
) -> Iterable[Place]:
    """Those that call a Service of this control plane, by the revision whose istiod patches them.

    Others are left over from a revision that was removed, or wait for one to come: the base chart makes
    `istiod-default-validator` for the revision `default`, also where every control plane has a name.
    """
    live = {revision.name for revision in layout.revisions}
    answering = {
        revision.deployment_name for revision in layout.revisions
    }  # the chart names Service and Deployment alike
    for item in cluster.list(resource).items:
        hooks = [hook for hook in item.get("webhooks") or [] if _is_ours(hook, layout.namespace)]
        if not hooks:
            continue
        metadata = item["metadata"]
        name = f"{resource.kind.lower()}/{metadata['name']}"
        revision = str((metadata.get("labels") or {}).get(REVISION_LABEL) or DEFAULT_REVISION)
        if revision not in live:
            told = f"{name} belongs to revision {revision}, which has no istiod: nobody keeps its caBundle"
            served = sorted({_service(hook) for hook in hooks} & answering)
            if served:
                troubles.append(f"{told}, and it calls {', '.join(served)}")
            else:
                abandoned.append(told)
            continue
        yield replace(_hooked(name, hooks), revision=revision)


def _is_ours(hook: Mapping[str, object], namespace: str) -> bool:
    config = hook.get("clientConfig")
    service = config.get("service") if isinstance(config, dict) else None
    if not isinstance(service, dict) or service.get("namespace") != namespace:
        return False
    return _service(hook).startswith(("istiod", "istio-sidecar-injector", "istio-galley", "istio-pilot"))


def _service(hook: Mapping[str, Any]) -> str:
    """The name of the Service that a webhook calls; empty where it calls a URL."""
    return str(((hook.get("clientConfig") or {}).get("service") or {}).get("name", ""))


def _hooked(name: str, hooks: list[Object]) -> Place:
    """One place for a configuration: all its entries must hold the same."""
    found: set[str] = {str((hook.get("clientConfig") or {}).get("caBundle") or "") for hook in hooks}
    if len(found) > 1:
        return Place(name, "", None, "its entries hold different caBundles")
    try:
        return _place(name, base64.b64decode(found.pop(), validate=True))
    except binascii.Error as error:
        return Place(name, "", None, f"caBundle is not base64: {error}")


def _trust_bundles(cluster: Cluster, layout: Layout) -> Iterable[Place]:
    if not any(flag(revision.env, TRUST_BUNDLE_FLAG, False) for revision in layout.revisions):
        return
    name = f"clustertrustbundle/{TRUST_BUNDLE}"
    try:
        item = cluster.get(CLUSTER_TRUST_BUNDLES, TRUST_BUNDLE)
    except NotFound as error:
        yield Place(name, "", None, error.observed or error.what)
        return
    yield _place(name, str((item.get("spec") or {}).get("trustBundle", "")).encode())
