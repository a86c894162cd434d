"""How this Istio is installed: its revisions, their versions and environment, and where the CA comes from.

Names and rules: istio/istio charts and pilot/pkg/bootstrap (1.5 to 1.31); the AKS add-on's objects as its documentation
names them. Before 1.5 the CA was a Deployment of its own, istio-citadel.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import DEPLOYMENTS, PODS, SECRETS
from capstan.cluster.rollout import Rollout, judge
from capstan.cluster.workloads import controller
from capstan.errors import InvalidInput, NotFound
from capstan.pki.bundle import Bundle
from capstan.systems.istio.mesh_config import read_mesh_config
from capstan.systems.istio.source import Mode
from capstan.systems.istio.versions import Version, flag, image_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object

ISTIOD: Final = "istiod"
DISCOVERY: Final = "discovery"
CITADEL: Final = "istio-citadel"
CITADEL_CONTAINER: Final = "citadel"
REVISION_LABEL: Final = "istio.io/rev"
DEFAULT_REVISION: Final = "default"
PROXY: Final = "istio-proxy"
ZTUNNEL: Final = "ztunnel"

CACERTS: Final = "cacerts"
SELF_SIGNED: Final = "istio-ca-secret"
CA_DIRECTORY: Final = "/etc/cacerts"
CA_CERT_KEY: Final = "ca-cert.pem"
CA_KEY_KEY: Final = "ca-key.pem"
CERT_CHAIN_KEY: Final = "cert-chain.pem"
ROOT_CERT_KEY: Final = "root-cert.pem"
TLS_CERT_KEY: Final = "tls.crt"
ISTIO_GENERATED: Final = "istio-generated"
CONFIG_MAP: Final = "istio-ca-root-cert"
CSI_DRIVER: Final = "secrets-store.csi.k8s.io"
AKS_NAMESPACE: Final = "aks-istio-system"

GRPC_TLS_PORT: Final = 15012
WEBHOOK_PORT: Final = 15017
MONITORING_PORT: Final = 15014


@dataclass(frozen=True, slots=True)
class CaVolume:
    """The volume behind istiod's CA directory.

    Attributes:
        kind: `secret` or `csi`.
        name: The Secret, or the SecretProviderClass.
    """

    kind: str
    name: str


@dataclass(frozen=True)
class Revision:
    """One control plane: a Deployment of istiod (or Citadel) and its pods.

    Attributes:
        name: Value of `istio.io/rev`: `default`, `asm-1-30`.
        deployment: The Deployment as it was read.
        container: Name of the container that is the CA.
        pods: Its pods, ended ones left out.
    """

    name: str
    deployment: Object
    container: str
    pods: tuple[Object, ...]

    @property
    def deployment_name(self) -> str:
        """`istiod`, `istiod-asm-1-30`."""
        return str(self.deployment["metadata"]["name"])

    @cached_property
    def version(self) -> Version | None:
        """As the image's tag in the Deployment says; None where the tag says nothing."""
        return image_version(str(self._spec.get("image", "")))

    @cached_property
    def env(self) -> dict[str, str]:
        """Literal environment of the container, as the Deployment wants it."""
        return literal_env(self._spec)

    @cached_property
    def ca_volume(self) -> CaVolume | None:
        """What is mounted as its CA directory; None if nothing is."""
        return _ca_volume(self.deployment["spec"]["template"]["spec"], self._spec, self.env)

    @cached_property
    def rollout(self) -> Rollout:
        """How far its Deployment's rollout is."""
        return judge("Deployment", self.deployment)

    @cached_property
    def _spec(self) -> Object:
        return find_container(self.deployment["spec"]["template"]["spec"], self.container) or {}


@dataclass(frozen=True, slots=True)
class Layout:
    """One installation.

    Attributes:
        namespace: The control plane's.
        mode: Where the CA comes from, as the Deployments and the Secrets of the namespace say.
        revisions: Every control plane there is; two during a canary upgrade.
        trust_domain: Of the mesh configuration, `cluster.local` unless set.
        ca_secret: Name of the Secret that holds the CA; empty where none does (Key Vault by CSI).
        config_map: Name of the ConfigMap in every namespace that holds the roots.
        added_roots: Roots of other CAs that the mesh configuration has proxies trust besides.
    """

    namespace: str
    mode: Mode
    revisions: tuple[Revision, ...]
    trust_domain: str
    ca_secret: str
    config_map: str = CONFIG_MAP
    added_roots: Bundle = field(default_factory=Bundle)

    @property
    def pods(self) -> tuple[Object, ...]:
        """The pods of all revisions."""
        return tuple(pod for revision in self.revisions for pod in revision.pods)

    def revision(self, name: str) -> Revision | None:
        """The revision of this name; the empty name is the default revision."""
        wanted = name or DEFAULT_REVISION
        return next((revision for revision in self.revisions if revision.name == wanted), None)


def read_layout(cluster: Cluster, namespace: str) -> Layout:
    """Read how Istio is installed in `namespace`.

    Raises:
        NotFound: There is no istiod (nor Citadel) there.
        InvalidInput: Its workloads get their certificates from something else than istiod.
    """
    deployments = cluster.list(DEPLOYMENTS, namespace).items
    control_planes = _control_planes(deployments)
    if not control_planes:
        raise NotFound(
            "there is no Istio control plane", where=f"namespace {namespace} of cluster {cluster.name}",
            observed=f"{len(deployments)} Deployments, none with a container {DISCOVERY} or {CITADEL_CONTAINER}",
            expected=f"a Deployment {ISTIOD}, {ISTIOD}-REVISION or {CITADEL}",
            next_command="kubectl get deployments --all-namespaces -l app=istiod",
        )  # fmt: skip
    by_owner = _pods_by_replica_set(cluster.list(PODS, namespace).items)
    revisions = tuple(
        Revision(_revision_name(item), item, container, _pods_of(item, by_owner)) for item, container in control_planes
    )
    _require_own_ca(revisions, namespace)
    mode, secret = _mode(cluster, namespace, revisions)
    mesh = read_mesh_config(cluster, namespace, ((item.name, item.env) for item in revisions))
    return Layout(
        namespace=namespace,
        mode=mode,
        revisions=tuple(sorted(revisions, key=lambda revision: revision.name)),
        trust_domain=mesh.trust_domain,
        ca_secret=secret,
        config_map=_config_map(revisions),
        added_roots=mesh.added_roots,
    )


def find_container(pod_spec: Mapping[str, object], name: str) -> Object | None:
    """A container or native sidecar of this name in a pod's or a template's spec."""
    for group in ("containers", "initContainers"):
        found = pod_spec.get(group)
        for container in found if isinstance(found, list) else ():
            if container.get("name") == name:
                return dict(container)
    return None


def literal_env(container: Mapping[str, object]) -> dict[str, str]:
    """The variables of a container that have their value written down."""
    entries = container.get("env")
    return {
        str(entry["name"]): str(entry["value"])
        for entry in (entries if isinstance(entries, list) else ())
        if "value" in entry
    }


def has_ended(pod: Object) -> bool:
    """Completed, failed or evicted: no process of it is left, however long the object stays."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def short(fingerprints: Iterable[str]) -> str:
    """`{1a2b3c4d, 5e6f7a8b}`, for messages."""
    return "{" + ", ".join(sorted(fingerprint[:8] for fingerprint in fingerprints)) + "}"


def _control_planes(deployments: Iterable[Object]) -> list[tuple[Object, str]]:
    """Deployments with the CA's container: istiod's `discovery`; Citadel's where there is one, which is then the CA."""
    found: dict[str, list[tuple[Object, str]]] = {DISCOVERY: [], CITADEL_CONTAINER: []}
    for item in deployments:
        spec = item["spec"]["template"]["spec"]
        for container, those in found.items():
            if find_container(spec, container) is not None:
                those.append((item, container))
    return found[CITADEL_CONTAINER] or found[DISCOVERY]


def _revision_name(item: Object) -> str:
    template = item["spec"]["template"].get("metadata") or {}
    labels = {**(template.get("labels") or {}), **(item["metadata"].get("labels") or {})}
    return str(labels.get(REVISION_LABEL) or DEFAULT_REVISION)


def _pods_by_replica_set(pods: Iterable[Object]) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for pod in pods:
        reference = controller(pod)
        if reference is not None and reference.get("kind") == "ReplicaSet" and not has_ended(pod):
            found.setdefault(str(reference["name"]), []).append(pod)
    return found


def _pods_of(item: Object, by_owner: Mapping[str, list[Object]]) -> tuple[Object, ...]:
    """Pods of a Deployment: of a ReplicaSet named after it and the template's hash, that the pod carries as label."""
    name = item["metadata"]["name"]
    found = []
    for owner, pods in by_owner.items():
        for pod in pods:
            template_hash = (pod["metadata"].get("labels") or {}).get("pod-template-hash", "")
            if owner == f"{name}-{template_hash}":
                found.append(pod)
    return tuple(sorted(found, key=lambda pod: str(pod["metadata"]["name"])))


def _require_own_ca(revisions: Iterable[Revision], namespace: str) -> None:
    for revision in revisions:
        outside = revision.env.get("EXTERNAL_CA") or revision.env.get("CA_PROVIDER", "")
        if outside == "Citadel":
            outside = ""
        if outside or not flag(revision.env, "ENABLE_CA_SERVER", True):
            raise InvalidInput(
                "this istiod is not the CA of its mesh", where=f"deployment {namespace}/{revision.deployment_name}",
                observed=outside or "ENABLE_CA_SERVER=false", expected="istiod's own CA: plug-in or self-signed",
                next_command="rotate the CA where it is kept (cert-manager's istio-csr, a Kubernetes signer, ...)",
            )  # fmt: skip


def _mode(cluster: Cluster, namespace: str, revisions: Iterable[Revision]) -> tuple[Mode, str]:
    """A complete plug-in CA wins over the self-signed one (pilot/pkg/bootstrap/istio_ca.go, createIstioCA)."""
    revisions = tuple(revisions)
    if any(revision.container == CITADEL_CONTAINER for revision in revisions):
        plugged = cluster.find(SECRETS, CACERTS, namespace)
        return (Mode.PLUG_IN, CACERTS) if plugged else (Mode.CITADEL, SELF_SIGNED)
    volumes = [volume for revision in revisions if (volume := revision.ca_volume) is not None]
    if any(volume.kind == "csi" for volume in volumes):
        return Mode.KEY_VAULT, ""
    name = next((volume.name for volume in volumes), CACERTS)
    secret = cluster.find(SECRETS, name, namespace) if volumes else None
    data = (secret or {}).get("data") or {}
    if ISTIO_GENERATED in data:
        return Mode.SELF_SIGNED, name
    if CA_CERT_KEY in data or TLS_CERT_KEY in data:
        return (Mode.KEY_VAULT if namespace == AKS_NAMESPACE else Mode.PLUG_IN), name
    return Mode.SELF_SIGNED, SELF_SIGNED


def _ca_volume(pod_spec: Object, container: Object, env: Mapping[str, str]) -> CaVolume | None:
    directory = _absolute(env.get("ROOT_CA_DIR") or CA_DIRECTORY)
    mounted = {
        str(mount["name"]): _absolute(str(mount.get("mountPath", ""))) for mount in container.get("volumeMounts") or []
    }
    for volume in pod_spec.get("volumes") or []:
        if mounted.get(str(volume.get("name"))) != directory:
            continue
        csi, secret = volume.get("csi") or {}, volume.get("secret") or {}
        if csi.get("driver") == CSI_DRIVER:
            provider = (csi.get("volumeAttributes") or {}).get("secretProviderClass", "")
            return CaVolume("csi", str(provider))
        if secret:
            return CaVolume("secret", str(secret.get("secretName", CACERTS)))
    return None


def _absolute(path: str) -> str:
    """istiod's default is `./etc/cacerts`, and its working directory is the root."""
    return "/" + path.removeprefix(".").strip("/")


def _config_map(revisions: Iterable[Revision]) -> str:
    """`PILOT_CA_CERT_CONFIGMAP` (Helm: global.trustBundleName) upstream; OpenShift's istiod has a name of its own."""
    variables = ("PILOT_CA_CERT_CONFIGMAP", "PILOT_CA_CERT_CONFIG_MAP_NAME")
    names = {revision.env.get(name, "") for revision in revisions for name in variables} - {""}
    return names.pop() if len(names) == 1 else CONFIG_MAP


def proxy_config(env: Mapping[str, str]) -> dict[str, object]:
    """The ProxyConfig that a proxy was injected with (variable PROXY_CONFIG, JSON); empty if there is none."""
    try:
        value = json.loads(env.get("PROXY_CONFIG") or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
