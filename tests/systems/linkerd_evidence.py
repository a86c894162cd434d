"""A healthy Linkerd as the checks read it, made of real certificates; tests break one thing of it at a time."""

from __future__ import annotations

import base64
import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cryptography import x509

from capstan.cluster.workloads import PodRef
from capstan.pki.bundle import Bundle
from capstan.pki.keys import PrivateKey
from capstan.systems.linkerd.checks import judge
from capstan.systems.linkerd.checks_evidence import Answer, Evidence, Replica
from capstan.systems.linkerd.checks_hooks import HOOKS, VIZ_HOOKS, HookReading, Served
from capstan.systems.linkerd.layout import Layout, Scheme
from capstan.systems.linkerd.observe import Proxy, View
from capstan.trust.observation import ClusterObservation, Issuer, Leaf, Owner, Peer, Role
from tests.pki.ca import CLIENT, DAY, NOW, SERVER, Pair, make

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable

    from capstan.pki.inspect import Certificate
    from capstan.systems.base import CheckResult

VERSION = "edge-26.8.3"
YEAR = 365 * DAY
ROOT = make("root.linkerd.cluster.local", end=NOW + 10 * YEAR)
OTHER = make("other.linkerd.cluster.local", end=NOW + 10 * YEAR)
EXPIRED = make("old.linkerd.cluster.local", start=NOW - YEAR, end=NOW - DAY)
ISSUER = make("identity.linkerd.cluster.local", ROOT, path_length=0, end=NOW + YEAR)
BUNDLE = Bundle.of(ROOT.certificate)


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def key_pem(pair: Pair) -> str:
    return PrivateKey(pair.key).pem().decode()


def serving(
    name: str, *, start: dt.datetime = NOW - DAY, end: dt.datetime = NOW + YEAR, parent: Pair | None = None
) -> Pair:
    """A server's certificate as the charts make it: self-signed, no CA (sprig's genSelfSignedCert)."""
    return make(
        name, parent, ca=False, aki=parent is not None, start=start, end=end, eku=[SERVER, CLIENT],
        san=[x509.DNSName(name)],
    )  # fmt: skip


def secret(pair: Pair, *, scheme: Scheme = Scheme.LINKERD, **annotations: str) -> dict[str, Any]:
    certificate, key = scheme.keys
    return {
        "metadata": {"name": "linkerd-identity-issuer", "namespace": "linkerd", "annotations": annotations},
        "data": {certificate: encoded(pair.certificate.pem() + "\n"), key: encoded(key_pem(pair))},
    }


def pod(
    namespace: str, name: str, *, component: str = "", text: str | None = None, containers: tuple[str, ...] = ("app",)
) -> dict[str, Any]:
    """A running pod with a native sidecar; in the control plane it takes the roots by reference."""
    entry: dict[str, Any] = {"name": "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS"}
    if component:
        entry["valueFrom"] = {"configMapKeyRef": {"name": "linkerd-identity-trust-roots", "key": "ca-bundle.crt"}}
    else:
        entry["value"] = BUNDLE.pem() if text is None else text
    labels = {"linkerd.io/control-plane-ns": "linkerd"}
    if component:
        labels["linkerd.io/control-plane-component"] = component
    running = {"ready": True, "state": {"running": {}}}
    return {
        "metadata": {
            "name": name, "namespace": namespace, "labels": labels,
            "annotations": {"linkerd.io/proxy-version": VERSION},
        },
        "spec": {
            "initContainers": [{"name": "linkerd-proxy", "env": [entry], "restartPolicy": "Always"}],
            "containers": [{"name": item} for item in containers],
        },
        "status": {
            "phase": "Running",
            "initContainerStatuses": [{"name": "linkerd-proxy", **running}],
            "containerStatuses": [{"name": item, **running} for item in containers],
        },
    }  # fmt: skip


def pods() -> tuple[dict[str, Any], ...]:
    return (
        pod("linkerd", "linkerd-identity-1", component="identity", containers=("identity",)),
        pod("linkerd", "linkerd-destination-1", component="destination", containers=("destination", "policy")),
        pod("linkerd", "linkerd-proxy-injector-1", component="proxy-injector", containers=("proxy-injector",)),
        pod("shop", "web-1"),
        pod("shop", "db-0"),
    )


def leaf(issuer: Certificate = ISSUER.certificate, *, start: dt.datetime = NOW, life: dt.timedelta = DAY) -> Leaf:
    return Leaf(
        "f" * 64, "x.shop.serviceaccount.identity.linkerd.cluster.local", issuer.fingerprint,
        frozenset({ROOT.certificate.fingerprint}), start, start + life,
    )  # fmt: skip


def proxies(items: tuple[dict[str, Any], ...]) -> tuple[Proxy, ...]:
    found = []
    for item in items:
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        role = Role.CONTROL_PLANE if namespace == "linkerd" else Role.WORKLOAD
        owner = Owner("Deployment", namespace, name.rpartition("-")[0])
        peer = Peer("east", namespace, name, role, owner, BUNDLE.fingerprints, leaf())
        found.append(Proxy(peer, PodRef(namespace, name, "u"), "", "sni", 4191, leaving=False))
    return tuple(found)


def hook(reading_of: Any, namespace: str = "linkerd", **changes: Any) -> HookReading:
    name = f"{reading_of.service}.{namespace}.svc"
    certificate = serving(name).certificate
    reading = HookReading(
        reading_of, namespace, anchors=Bundle.of(certificate), chain=(certificate,),
        served=(Served(f"{reading_of.service}-1", (certificate,)),),
    )  # fmt: skip
    return replace(reading, **changes)


_HOOKS = tuple(hook(item) for item in HOOKS) + tuple(hook(item, "linkerd-viz") for item in VIZ_HOOKS)


def viz() -> tuple[dict[str, Any], ...]:
    found = []
    for component in ("web", "tap", "metrics-api", "tap-injector"):
        item = pod("linkerd-viz", f"{component}-v1", containers=(component,))
        item["metadata"]["labels"]["component"] = component
        found.append(item)
    return tuple(found)


def namespace(name: str, extension: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"linkerd.io/extension": extension}}}


def node(name: str, *, heartbeat: dt.datetime = NOW) -> dict[str, Any]:
    condition = {"type": "Ready", "status": "True", "lastHeartbeatTime": f"{heartbeat:%FT%TZ}"}
    return {"metadata": {"name": name}, "status": {"conditions": [condition]}}


def lease(name: str, renewed: dt.datetime) -> dict[str, Any]:
    spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": f"{renewed:%FT%T.%fZ}"}
    return {"metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": spec}


def healthy(
    *, bundle: Bundle = BUNDLE, issuer: Pair = ISSUER, scheme: Scheme = Scheme.LINKERD, **changes: Any
) -> Evidence:
    """Evidence without a fault, with viz and multicluster installed and two replicas of everything."""
    everything = (*pods(), *viz(), pod("linkerd-multicluster", "linkerd-gateway-1"))
    doubled = list(everything)
    for item in everything[:3]:
        second = copy.deepcopy(item)
        second["metadata"]["name"] = item["metadata"]["name"][:-1] + "2"
        doubled.append(second)
    layout = Layout("linkerd", scheme, 86400.0, 20.0, "cluster.local", VERSION, external_ca=False)
    declared = (("linkerd-config", bundle.fingerprints), ("linkerd-config-overrides", bundle.fingerprints))
    live = proxies(tuple(doubled))
    configured = Issuer(issuer.certificate.fingerprint, bundle.fingerprints, issuer.certificate.not_after)
    observation = ClusterObservation(
        "east", bundle.fingerprints, declared, configured, tuple(item.peer for item in live), layout.leaf_lifetime
    )
    certificates = {item.fingerprint: item for item in (*bundle, issuer.certificate)}
    view = View(layout, bundle, issuer.certificate, live, certificates, observation)
    evidence = Evidence(
        now=NOW,
        clocks_read=NOW,
        view=view,
        values={
            "highAvailability": True,
            "identityTrustAnchorsPEM": bundle.pem() + "\n",
            "identity": {"issuer": {"scheme": str(scheme)}},
        },
        bundle_text=bundle.pem(),
        issuer_secret=Answer(secret(issuer, scheme=scheme)),
        pods=tuple(doubled),
        replica_sets=Answer(()),
        nodes=Answer((node("a"), node("b"))),
        leases=Answer((lease("a", NOW), lease("b", NOW))),
        events=Answer(()),
        extensions=Answer((namespace("linkerd-viz", "viz"), namespace("linkerd-multicluster", "multicluster"))),
        extension_pods=Answer((*viz(), pod("linkerd-multicluster", "linkerd-gateway-1"))),
        replicas=(
            Replica("linkerd-identity-1", issuer.certificate.not_after),
            Replica("linkerd-identity-2", issuer.certificate.not_after),
        ),
        hooks=_HOOKS,
    )
    return replace(evidence, **changes)


def with_view(evidence: Evidence, **changes: Any) -> Evidence:
    return replace(evidence, view=replace(evidence.view, **changes))


def with_peer(evidence: Evidence, name: str, **changes: Any) -> Evidence:
    """One proxy, by pod name, read otherwise."""
    changed = tuple(
        replace(item, peer=replace(item.peer, **changes)) if item.peer.pod == name else item
        for item in evidence.view.proxies
    )
    return with_view(evidence, proxies=changed)


def with_pod(evidence: Evidence, name: str, change: Callable[[dict[str, Any]], object]) -> Evidence:
    """One pod, by name, changed in place; of the extensions too."""

    def changed(items: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        found = copy.deepcopy(items)
        for item in found:
            if item["metadata"]["name"] == name:
                change(item)
        return found

    return replace(evidence, pods=changed(evidence.pods), extension_pods=Answer(changed(evidence.extension_pods.value)))


def with_hook(evidence: Evidence, name: str, **changes: Any) -> Evidence:
    changed = tuple(replace(item, **changes) if item.hook.name == name else item for item in evidence.hooks)
    return replace(evidence, hooks=changed)


def with_secret(evidence: Evidence, change: Callable[[dict[str, Any]], object]) -> Evidence:
    item = copy.deepcopy(evidence.issuer_secret.value)
    change(item)
    return replace(evidence, issuer_secret=Answer(item))


def check(evidence: Evidence, description: str) -> CheckResult:
    """The one check of this description."""
    (found,) = [item for item in judge(evidence) if item.description == description]
    return found
