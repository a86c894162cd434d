"""Start controllers and kubelets on a kubeconfig.

Against the lab's own API server everything runs. Against a real one, whose controller-manager and scheduler do their
work, only kubelets are started: whether they are alive is read from their leader-election Leases in kube-system.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, KubeClient, SharedInformers
from infra.lab.controllers.accounts import DefaultAccounts, RootCaPublisher, TokenSecrets
from infra.lab.controllers.autoscaler import Autoscaler
from infra.lab.controllers.cronjob import CronJobController
from infra.lab.controllers.daemonset import DaemonSetController
from infra.lab.controllers.deployment import DeploymentController
from infra.lab.controllers.disruption import DisruptionController
from infra.lab.controllers.framework import Context, Controller
from infra.lab.controllers.garbage import GarbageCollector
from infra.lab.controllers.job import JobController
from infra.lab.controllers.namespace import NamespaceController
from infra.lab.controllers.nodes import NodeLifecycle
from infra.lab.controllers.pods import now, parse_time
from infra.lab.controllers.replicaset import ReplicaController
from infra.lab.controllers.scheduler import Scheduler
from infra.lab.controllers.signing import CsrApprover, CsrSigner
from infra.lab.controllers.statefulset import StatefulSetController
from infra.lab.kubelet.fleet import Fleet
from infra.lab.kubelet.runtime import PROGRAMS, Programs

if TYPE_CHECKING:
    from infra.lab.kubelet.kubelet import KubeletConfig

JSON = dict[str, Any]
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
FRESH_SECONDS = 30.0  # a leader renews its Lease every 2 s by default, and holds it for 15 s

log = logging.getLogger(__name__)


@dataclass
class Cluster:
    """What runs; `stop()` ends it and leaves the objects in the API as they are."""

    client: KubeClient
    informers: SharedInformers
    context: Context
    controllers: dict[str, Controller] = field(default_factory=dict)
    fleet: Fleet | None = None
    root_ca: RootCaPublisher | None = None
    _directory: tempfile.TemporaryDirectory[str] | None = None
    _clients: list[KubeClient] = field(default_factory=list)
    _informers: list[SharedInformers] = field(default_factory=list)

    async def stop(self) -> None:
        """End controllers, kubelets, watches and connections, in this order."""
        await asyncio.gather(*(controller.stop() for controller in self.controllers.values()))
        if self.fleet is not None:
            await self.fleet.stop()
        for informers in self._informers:
            await informers.stop()
        for client in self._clients:
            await client.close()
        if self._directory is not None:
            self._directory.cleanup()


async def alive(client: KubeClient, name: str) -> bool:
    """Whether a component holds its leader-election Lease in kube-system and has renewed it lately. Raises ApiError."""
    try:
        spec = (await client.get(f"{LEASES}/{name}"))["spec"]
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    renewed = spec.get("renewTime")
    return bool(renewed) and (now() - parse_time(renewed)).total_seconds() < FRESH_SECONDS


async def start_cluster(
    kubeconfig: Path | str,
    *,
    nodes: int = 3,
    directory: Path | None = None,
    config: KubeletConfig | None = None,
    programs: Programs = PROGRAMS,
    controllers: bool | None = None,
    scheduler: bool | None = None,
    ca_files: tuple[Path, Path] | None = None,
    ca_pem: str | None = None,
) -> Cluster:
    """Controllers, scheduler and `nodes` kubelets on the cluster of `kubeconfig` (which must be of an administrator).

    Args:
        kubeconfig: The identity everything uses. nodes: Number of kubelets; 0 for none. directory: For volumes and
        container layers; a temporary one if None. config: The kubelets' settings. programs: What containers run.
        controllers: Run the workload controllers: True, False, or None for "unless a kube-controller-manager is
        alive". scheduler: The same for the scheduler. ca_files: Certificate and key of the cluster's CA, where the
        lab owns it; without them no signing request is signed. ca_pem: What kube-root-ca.crt shall hold; the
        kubeconfig's certificate authority if None.

    Raises ApiError when the API server does not answer or refuses.
    """
    client = KubeClient.from_kubeconfig(kubeconfig, user_agent="kube-controller-manager")
    informers = SharedInformers(client)
    cluster = Cluster(client, informers, Context(client, informers), _clients=[client], _informers=[informers])
    try:
        if controllers is None:
            controllers = not await alive(client, "kube-controller-manager")
        if scheduler is None:
            scheduler = not await alive(client, "kube-scheduler")
        bundle = ca_pem or client.endpoint.ca_pem or ""
        if controllers:
            _start_controllers(cluster, bundle, ca_files)
        if scheduler:
            cluster.controllers["scheduler"] = Scheduler(cluster.context).start()
        if nodes:
            if directory is None:
                cluster._directory = tempfile.TemporaryDirectory(prefix="lab-nodes-")
                directory = Path(cluster._directory.name)
            kubelet_client = KubeClient.from_kubeconfig(kubeconfig, user_agent="kubelet")
            shared = SharedInformers(kubelet_client)
            cluster._clients.append(kubelet_client)
            cluster._informers.append(shared)
            cluster.fleet = Fleet(shared, directory, nodes=nodes, config=config, programs=programs)
            await cluster.fleet.start()
    except BaseException:
        with contextlib.suppress(Exception):
            await cluster.stop()
        raise
    return cluster


def _start_controllers(cluster: Cluster, bundle: str, ca_files: tuple[Path, Path] | None) -> None:
    context = cluster.context
    cluster.root_ca = RootCaPublisher(context, bundle)
    parts: dict[str, Any] = {
        "deployment": DeploymentController(context),
        "replicaset": ReplicaController(context, "/apis/apps/v1/replicasets", "apps/v1", "ReplicaSet"),
        "replicationcontroller": ReplicaController(
            context, "/api/v1/replicationcontrollers", "v1", "ReplicationController"
        ),
        "statefulset": StatefulSetController(context),
        "daemonset": DaemonSetController(context),
        "job": JobController(context),
        "cronjob": CronJobController(context),
        "disruption": DisruptionController(context),
        "horizontal-pod-autoscaler": Autoscaler(context),
        "nodelifecycle": NodeLifecycle(context),
        "namespace": NamespaceController(context),
        "garbagecollector": GarbageCollector(context),
        "serviceaccount": DefaultAccounts(context),
        "serviceaccount-token": TokenSecrets(context, bundle),
        "root-ca-certificate-publisher": cluster.root_ca,
        "csrapproving": CsrApprover(context),
    }
    if ca_files is not None:
        parts["csrsigning"] = CsrSigner(context, *ca_files)
    for name, part in parts.items():
        cluster.controllers[name] = part.start()
