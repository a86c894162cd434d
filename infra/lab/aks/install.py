"""The Istio add-on in the cluster: namespace, SecretProviderClasses, one control plane for each revision."""

from __future__ import annotations

import re
from dataclasses import dataclass

NAMESPACE = "aks-istio-system"
DELIVERIES = ("csi", "cacerts", "cronjob")
DEFAULT_REVISIONS = ("asm-1-30",)
CRONJOB_REVISIONS = ("asm-1-17",)
IMAGES, IMAGES_V2 = "mcr.microsoft.com/oss/istio", "mcr.microsoft.com/oss/v2/istio"
FIRST_V2_IMAGES = 26
_REVISION = re.compile(r"asm-(\d+)-(\d+)")


@dataclass(frozen=True)
class AksOptions:
    """Choices of an add-on.

    Attributes:
        revisions: `serviceMeshProfile.istio.revisions`: one, or two during a canary upgrade; the sample workloads are
            spread over them.
        ca_delivery: How the four Key Vault secrets come to istiod:
            csi: mounted straight into it (since March 2025);
            cacerts: synced into the Secret `cacerts`, which is mounted;
            cronjob: as cacerts, and root changes need the restart that the cert-validator CronJob makes (until 2025).
        multiroot: ISTIO_MULTIROOT_MESH; None: on, unless a CronJob restarts (inferred from the expected log lines of
            Microsoft's pages).
        xds_agent: PROXY_CONFIG_XDS_AGENT in the mesh's proxyMetadata; the add-on does not set it.
        leaf_seconds: Life of workload certificates; 24 h in a real one.
        replicas: Of each control plane.
        rotation: `enableSecretRotation` of the secrets-provider add-on.
        poll_seconds: `rotationPollInterval` in the lab's time; 2 min in a real one.
        between_objects: Seconds between the provider's reads of two Key Vault secrets.
        validator_seconds: Between two runs of the CronJob; 10 min in a real one.
        identifiers: Whether the first root and intermediate carry SKI and AKI.
    """

    revisions: tuple[str, ...] = ()
    ca_delivery: str = "csi"
    multiroot: bool | None = None
    xds_agent: bool = False
    leaf_seconds: int = 40
    replicas: int = 2
    rotation: bool = True
    poll_seconds: float = 2.0
    between_objects: float = 0.0
    validator_seconds: float = 10.0
    identifiers: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for a revision or delivery that does not exist."""
        if self.ca_delivery not in DELIVERIES:
            raise ValueError(f"CA delivery {self.ca_delivery!r} is none of {', '.join(DELIVERIES)}")
        if not self.revisions:
            default = CRONJOB_REVISIONS if self.ca_delivery == "cronjob" else DEFAULT_REVISIONS
            object.__setattr__(self, "revisions", default)
        for revision in self.revisions:
            version_of(revision)
        if not 1 <= len(set(self.revisions)) == len(self.revisions) <= 2:
            raise ValueError(f"an add-on has one revision, or two during an upgrade: {self.revisions}")

    def has_multiroot(self) -> bool:
        """The flag that the control planes run with."""
        return self.ca_delivery != "cronjob" if self.multiroot is None else self.multiroot


def version_of(revision: str) -> str:
    """The Istio version behind a revision: asm-1-30 is some 1.30. Raises ValueError."""
    if (match := _REVISION.fullmatch(revision)) is None:
        raise ValueError(f"revision {revision!r} is not of the form asm-1-30")
    return f"{match[1]}.{match[2]}.2"


def image(name: str, revision: str) -> str:
    """`pilot` or `proxyv2` of a revision, as the add-on's pods name it: another registry path and tag since 1.26."""
    version = version_of(revision)
    if int(version.split(".")[1]) < FIRST_V2_IMAGES:
        return f"{IMAGES}/{name}:{version}-distroless"
    return f"{IMAGES_V2}/{name}:v{version}-1"


def istiod_name(revision: str) -> str:
    """Deployment, Service and ServiceAccount of a revision's control plane."""
    return f"istiod-{revision}"


def class_name(revision: str) -> str:
    """The SecretProviderClass that the add-on makes for a revision (Azure/AKS issue 5171 shows one)."""
    return f"istiod-spc-{revision}"
