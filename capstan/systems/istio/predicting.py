"""What the running istiods of a revision will make of what is at the CA's source now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.cluster.resources import CONFIG_MAPS, SECRETS
from capstan.systems.istio.layout import CITADEL_CONTAINER, ROOT_CERT_KEY
from capstan.systems.istio.versions import CaChange, Prediction, Taken, how_taken

if TYPE_CHECKING:
    from capstan.cluster.client import Cluster
    from capstan.systems.istio.layout import Revision
    from capstan.systems.istio.observe import View
    from capstan.systems.istio.source import CaSource


def predict(cluster: Cluster, source: CaSource, view: View, revision: Revision) -> Prediction:
    """What this revision's running replicas make of what is at the source now."""
    if revision.container == CITADEL_CONTAINER:
        return Prediction(Taken.RESTART, "Citadel reads its CA at its start only")
    files = source.read()
    ours = [istiod for istiod in view.istiods if istiod.revision == revision.name and not istiod.leaving]
    before = _text_before(cluster, view)
    if _older_than_source(cluster, view, revision):
        before = ""
    oldest = min((istiod.version for istiod in ours if istiod.version), default=revision.version)
    env = ours[0].env if ours else revision.env
    signer = view.issuer is not None and any(each.signer.issuer != view.issuer.fingerprint for each in ours)
    return how_taken(oldest, env, CaChange(before, files.root_cert, signer=signer))


def _text_before(cluster: Cluster, view: View) -> str:
    """The text of the roots that istiod works with: it writes it into its ConfigMap byte for byte."""
    item = cluster.find(CONFIG_MAPS, view.layout.config_map, view.layout.namespace)
    return str(((item or {}).get("data") or {}).get(ROOT_CERT_KEY, ""))


def _older_than_source(cluster: Cluster, view: View, revision: Revision) -> bool:
    """Whether a replica started before the Secret was there: it has no watcher on files that did not exist."""
    volume = revision.ca_volume
    if volume is None or volume.kind != "secret":
        return False
    secret = cluster.find(SECRETS, volume.name, view.layout.namespace)
    created = str(((secret or {}).get("metadata") or {}).get("creationTimestamp", ""))
    # The container's start and not the pod's: a Secret that the CSI driver makes for a pod comes between the two.
    started = [
        str(((status.get("state") or {}).get("running") or {}).get("startedAt", ""))
        for pod in revision.pods
        for status in pod.get("status", {}).get("containerStatuses") or []
        if status.get("name") == revision.container
    ]
    # RFC 3339 in UTC with whole seconds: their order is that of the texts. Within one second nobody knows; a reload
    # that does not come is noticed.
    return bool(created) and any(each and each < created for each in started)
