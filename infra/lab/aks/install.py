"""The Istio add-on in the cluster: namespace, SecretProviderClasses, one control plane for each revision."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.lab.aks import crds, validator
from infra.lab.aks.hierarchy import FILES
from infra.lab.istio import gateway, manifests
from infra.lab.istio import install as istio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.lab.client import KubeClient
    from infra.lab.services import ServiceAddresses

JSON = dict[str, Any]

NAMESPACE = "aks-istio-system"
DELIVERIES = ("csi", "cacerts", "cronjob")
INGRESS_NAMESPACE = "aks-istio-ingress"
INGRESS = "aks-istio-ingressgateway-external"
CA_MOUNT = "/mnt/secrets-store"
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


def images(revision: str) -> tuple[str, str]:
    """Hub and tag of a revision's images, as the add-on's pods name them: another path and form since 1.26."""
    version = version_of(revision)
    if int(version.split(".")[1]) < FIRST_V2_IMAGES:
        return IMAGES, f"{version}-distroless"
    return IMAGES_V2, f"v{version}-1"


def istiod_name(revision: str) -> str:
    """Deployment, Service and ServiceAccount of a revision's control plane."""
    return f"istiod-{revision}"


def class_name(revision: str) -> str:
    """The SecretProviderClass that the add-on makes for a revision (Azure/AKS issue 5171 shows one)."""
    return f"istiod-spc-{revision}"


@dataclass(frozen=True)
class CaObjects:
    """What the profile's plug-in CA names.

    Attributes:
        vault: Name of the Key Vault.
        tenant: Its tenant's id.
        names: File name in /etc/cacerts -> name of the Key Vault secret.
    """

    vault: str
    tenant: str
    names: Mapping[str, str]


def manifest_options(options: AksOptions, revision: str) -> manifests.Options:
    """A revision's control plane in the terms of the upstream chart, from which the add-on's is made."""
    hub, tag = images(revision)
    environment = {} if options.ca_delivery == "csi" else {"AUTO_RELOAD_PLUGIN_CERTS": "true"}
    return manifests.Options(
        namespace=NAMESPACE,
        version=tag,
        revision=revision,
        hub=hub,
        multiroot=options.has_multiroot(),
        xds_agent=options.xds_agent,
        leaf_seconds=options.leaf_seconds,
        replicas=options.replicas,
        gateway=False,
        identifiers=options.identifiers,
        environment=environment,
        ca_volume=csi_volume(revision) if options.ca_delivery == "csi" else None,
    )


def csi_volume(revision: str) -> JSON:
    """The volume source that shows a revision's SecretProviderClass."""
    attributes = {"secretProviderClass": class_name(revision)}
    return {"csi": {"driver": crds.DRIVER, "readOnly": True, "volumeAttributes": attributes}}


def provider_class(options: AksOptions, revision: str, ca: CaObjects) -> JSON:
    """A revision's SecretProviderClass; before the direct mount it also asks for the Secret `cacerts`."""
    objects = "array:\n" + "".join(
        f"  - |\n    objectName: {ca.names[file]}\n    objectType: secret\n    objectAlias: {file}\n" for file in FILES
    )
    spec: JSON = {
        "provider": "azure",
        "parameters": {
            "cloudName": "AzurePublicCloud",
            "keyvaultName": ca.vault,
            "objects": objects,
            "tenantId": ca.tenant,
            "usePodIdentity": "false",
            "useVMManagedIdentity": "true",
        },
    }
    if options.ca_delivery != "csi":
        data = [{"key": file, "objectName": file} for file in FILES]
        spec["secretObjects"] = [{"data": data, "secretName": "cacerts", "type": "opaque"}]
    return {
        "apiVersion": crds.API_VERSION,
        "kind": "SecretProviderClass",
        "metadata": {
            "name": class_name(revision),
            "namespace": NAMESPACE,
            "labels": {"app.kubernetes.io/managed-by": "Helm", "istio.io/rev": revision},
        },
        "spec": spec,
    }


def deployment(options: AksOptions, revision: str) -> JSON:
    """The Deployment of a revision's istiod."""
    found = manifests.deployment(manifest_options(options, revision))
    managed = {"kubernetes.azure.com/managedby": "aks"}
    found["metadata"]["labels"] |= managed
    template = found["spec"]["template"]
    template["metadata"]["labels"] |= managed
    if options.ca_delivery != "csi":
        # Somebody has to mount the class for the Secret to be synced; it comes first, for the Secret to exist.
        for volume in template["spec"]["volumes"]:
            if volume["name"] == "cacerts":
                volume["secret"]["optional"] = False
        template["spec"]["volumes"].insert(0, {"name": "secrets-store", **csi_volume(revision)})
        (container,) = template["spec"]["containers"]
        container["volumeMounts"].append({"mountPath": CA_MOUNT, "name": "secrets-store", "readOnly": True})
    return found


async def install(client: KubeClient, options: AksOptions, ca: CaObjects, addresses: ServiceAddresses) -> None:
    """Create the add-on, one revision after the other, and wait until all of it serves.

    Raises:
        ApiError: The cluster refuses an object.
        TimeoutError: A control plane does not become ready (an unreadable Key Vault shows like this).
    """
    await crds.install(client)
    first = manifest_options(options, options.revisions[0])
    await istio.create_all(client, [manifests.namespace(first)])
    for revision in options.revisions:
        await client.create(crds.classes(NAMESPACE), provider_class(options, revision, ca))
        await add_revision(client, options, revision, addresses)
    if options.ca_delivery == "cronjob":
        await istio.create_all(client, validator.objects(options.validator_seconds))
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": INGRESS_NAMESPACE}}
    name = f"{INGRESS}-{options.revisions[0]}"
    found = gateway.objects(first, namespace=INGRESS_NAMESPACE, name=name, account=name)
    await istio.create_all(client, [namespace, *found])


async def add_revision(client: KubeClient, options: AksOptions, revision: str, addresses: ServiceAddresses) -> None:
    """One revision's control plane; raises as `install`."""
    chosen = manifest_options(options, revision)
    objects = [
        *manifests.configuration(chosen),
        *manifests.rbac(chosen),
        manifests.service(chosen, addresses.take()),
        manifests.disruption_budget(chosen),
        deployment(options, revision),
    ]
    await istio.control_plane(client, chosen, objects)
