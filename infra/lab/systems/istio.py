"""Istio: upstream, with a plug-in CA, a self-signed root, or Citadel."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.lab import workloads
from infra.lab.istio import envoy, install, manifests
from infra.lab.istio.mesh import IstioMesh

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.client import KubeClient
    from infra.lab.kubelet.runtime import Programs
    from infra.lab.pki import KeyPair
    from infra.lab.services import ServiceAddresses
    from infra.lab.workloads import Estate, Injection

JSON = dict[str, Any]

OFFLINE = "offline-ca"
"""Folder of the lab's directory with the root's certificate and key: they are nowhere in the cluster."""
AMBIENT_NAMESPACE = "ambient"


class Istio:
    """An Istio whose keys the lab makes."""

    def __init__(self, options: manifests.Options, resolve: Callable[[str], str]) -> None:
        self.mesh = IstioMesh(resolve)
        self._options = options
        self._directory = Path()

    @property
    def leaf_seconds(self) -> int:
        """Life of its leaves."""
        return self._options.leaf_seconds

    async def start(self, client: KubeClient, programs: Programs, directory: Path) -> None:
        """Its images; raises OSError if real Envoys are asked for and there is none."""
        del client
        if self._options.envoys:
            envoy.program()
        self._directory = directory / OFFLINE
        shutil.rmtree(self._directory, ignore_errors=True)
        self.mesh.register(programs)

    async def install(self, client: KubeClient, addresses: ServiceAddresses) -> bool:
        """The control plane; see `System.install`."""
        if await install.is_installed(client, self._options):
            return False
        material = install.mint(addresses, self._options)
        if material.root is not None:
            keep_offline(self._directory, material.root)
        await install.install(client, self._options, material)
        return True

    async def deploy(self, client: KubeClient, size: str, nodes: int) -> str:
        """The sample workloads; see `System.deploy`."""
        options = self._options
        estate = estate_of(size, envoys=options.envoys, ambient=options.ambient)
        citadel = options.ca == manifests.CITADEL
        injection = workloads.IstioInjection((options.revision,), annotated=citadel)
        return await deploy(client, injection, estate.marked_everywhere() if citadel else estate, nodes)

    async def stop(self) -> None:
        """Nothing runs outside the cluster."""

    def describe(self) -> JSON:
        """What was installed, and where the offline root is."""
        options = self._options
        found: JSON = {
            "namespace": options.namespace,
            "istio_version": options.version,
            "revision": options.revision,
            "ca": options.ca,
            "multiroot": options.multiroot,
            "xds_agent": options.xds_agent,
            "envoys": options.envoys,
            "ambient": options.ambient,
        }
        if options.ca == manifests.PLUGIN:
            found["offline_ca"] = str(self._directory.resolve())
        return found

    def __str__(self) -> str:
        return f"Istio {self._options.version} ({self._options.ca})"


async def deploy(client: KubeClient, injection: Injection, estate: Estate, nodes: int) -> str:
    """Sample workloads in an Istio; what they are, in words.

    Raises:
        ApiError: The cluster refuses an object.
        TimeoutError: They are not available in time.
    """
    await workloads.deploy(client, estate, injection)
    text = f"{estate.meshed_pods(nodes)} meshed pods in {len(estate.namespaces)} namespaces"
    note = (envoy.ANNOTATION, "true")
    envoys = sum(workload.replicas for workload in estate.workloads if note in workload.annotations)
    return f"{text}, {envoys} of them with a real Envoy" if envoys else text


def estate_of(size: str, *, envoys: int = 0, ambient: bool = False) -> Estate:
    """The sample workloads of a size; `envoys` more pods run a real Envoy, an ambient namespace is added."""
    estate = workloads.SIZES[size]
    if envoys:
        namespace = next(name for name, is_marked in estate.namespaces if is_marked)
        note = ((envoy.ANNOTATION, "true"),)
        estate = estate.with_workload(
            workloads.Workload("Deployment", namespace, "recommendations", envoys, annotations=note)
        )
    if ambient:
        kinds = (("Deployment", "telemetry"), ("DaemonSet", "collector"))
        estate = estate.with_ambient(
            AMBIENT_NAMESPACE, *(workloads.Workload(kind, AMBIENT_NAMESPACE, name, 2) for kind, name in kinds)
        )
    return estate


def keep_offline(directory: Path, root: KeyPair) -> None:
    """Write the root's certificate and key where only the lab's owner reads them."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in (("root-cert.pem", root.certificate_pem), ("root-key.pem", root.key_pem)):
        handle = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(text)
