"""The choices of an Istio installation in the lab, and what follows from them for its proxies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.lab.istio.agent import FIRST_RENEWAL
from infra.lab.istio.sidecar import AGENT_SINCE, NATIVE_SINCE, Settings, minor

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON = dict[str, Any]

DEFAULT_VERSION = "1.30.1"
DEFAULT_CITADEL_VERSION = "1.4.3"
DEFAULT_LEAF_SECONDS = 40
DEFAULT_CITADEL_LEAF_SECONDS = 3600  # of the 90 days of a real one; its RSA keys cost time
HUB = "docker.io/istio"
PLUGIN, SELF_SIGNED, CITADEL = "plugin", "self-signed", "citadel"
CA_MODES = (PLUGIN, SELF_SIGNED, CITADEL)


@dataclass(frozen=True)
class Options:
    """Choices of an installation.

    Attributes:
        namespace: Of the control plane.
        version: Of istiod and of the proxies.
        hub: Registry and folder of the images.
        tag: Of the images; "" is the version.
        revision: `default`, or the name of a revision (objects are then called istiod-REVISION and so on).
        ca: plugin (an offline root, an intermediate in Secret cacerts), self-signed, or citadel (before 1.5).
        tls_secret: The Secret cacerts has the keys of kubernetes.io/tls (tls.crt, tls.key, ca.crt).
        identifiers: Whether CA certificates carry subject and authority key identifiers.
        multiroot: ISTIO_MULTIROOT_MESH of istiod.
        xds_agent: PROXY_CONFIG_XDS_AGENT of every proxy: trust bundles are pushed to them.
        leaf_seconds: SECRET_TTL of the agents; a real installation has 24 h.
        replicas: Of istiod.
        gateway: Whether there is an istio-ingressgateway.
        ambient: Whether there is a ztunnel on every node, and a namespace it serves.
        envoys: How many pods run a real Envoy.
        environment: More variables for istiod.
        ca_volume: The source of the volume at /etc/cacerts in place of the optional Secret cacerts.
    """

    namespace: str = "istio-system"
    version: str = DEFAULT_VERSION
    hub: str = HUB
    tag: str = ""
    revision: str = "default"
    trust_domain: str = "cluster.local"
    ca: str = PLUGIN
    tls_secret: bool = False
    identifiers: bool = True
    multiroot: bool = False
    xds_agent: bool = False
    leaf_seconds: int = DEFAULT_LEAF_SECONDS
    replicas: int = 2
    gateway: bool = True
    ambient: bool = False
    envoys: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    ca_volume: JSON | None = None

    def __post_init__(self) -> None:
        """Check what the parts depend on; raises ValueError."""
        if self.ca not in CA_MODES:
            raise ValueError(f"ca is one of {', '.join(CA_MODES)}, not {self.ca!r}")
        before_istiod = minor(self.version) < AGENT_SINCE
        if before_istiod != (self.ca == CITADEL):
            kind = "comes with Citadel" if before_istiod else "has no Citadel"
            raise ValueError(f"Istio {self.version} {kind}: --ca {self.ca} does not go with it")

    @property
    def settings(self) -> Settings:
        """What the proxies get of it."""
        return Settings(
            namespace=self.namespace,
            version=self.image_tag,
            revision=self.revision,
            hub=self.hub,
            trust_domain=self.trust_domain,
            native=minor(self.image_tag) >= NATIVE_SINCE,
            metadata=self.proxy_metadata,
            citadel=self.ca == CITADEL,
        )

    @property
    def image_tag(self) -> str:
        """Of all images."""
        return self.tag or self.version

    @property
    def proxy_metadata(self) -> dict[str, str]:
        """`meshConfig.defaultConfig.proxyMetadata`. Keys are elliptic: RSA keys cost a small machine its CPU time.

        All pods of a lab start at once; in a living mesh they renew at all times, which the last variable stands for.
        """
        if self.ca == CITADEL:
            return {"LAB_CERT_WATCH_SECONDS": "1"}
        found = {"SECRET_TTL": f"{self.leaf_seconds}s", "ECC_SIGNATURE_ALGORITHM": "ECDSA", FIRST_RENEWAL: "random"}
        return found | ({"PROXY_CONFIG_XDS_AGENT": "true"} if self.xds_agent else {})

    @property
    def istiod(self) -> str:
        """Name of the Deployment, of its Service and of its service account."""
        return self.settings.service

    @property
    def suffix(self) -> str:
        """`-REVISION` where object names carry it; "" for the default revision."""
        return "" if self.revision == "default" else f"-{self.revision}"


def default_version(ca: str) -> str:
    """The version to behave as, where none is asked for."""
    return DEFAULT_CITADEL_VERSION if ca == CITADEL else DEFAULT_VERSION


def default_leaf_seconds(ca: str) -> int:
    """Life of leaves, where none is asked for."""
    return DEFAULT_CITADEL_LEAF_SECONDS if ca == CITADEL else DEFAULT_LEAF_SECONDS
