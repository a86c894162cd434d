"""A kubelet: registers its Node, keeps its Lease, runs the pods bound to it, serves logs and port-forwards."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from infra.lab.client import ApiError, KubeClient, key_of
from infra.lab.events import record
from infra.lab.kubelet import node
from infra.lab.kubelet.container import Backoff
from infra.lab.kubelet.pod import PodWorker
from infra.lab.kubelet.runtime import PROGRAMS, Programs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from infra.lab.kubelet.addresses import AddressPool

JSON = dict[str, Any]
Reference = tuple[str, str, str]  # ("configmaps" | "secrets", namespace, name)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KubeletConfig:
    """What an operator may set.

    Attributes:
        refresh_seconds: Bounds of the random delay between a change of a ConfigMap or Secret and the change of a
        mounted volume. A real
            kubelet takes up to a minute and its cache delay; the lab is scaled down.
        backoff: Pauses between restarts of a crashing container.
        start_seconds: Time every pod's first container takes to start, unless its annotation says otherwise.
        heartbeat_seconds: Between renewals of the node's Lease.
    """

    refresh_seconds: tuple[float, float] = (0.5, 1.0)
    backoff: Backoff = field(default_factory=Backoff)
    start_seconds: float = 0.0
    heartbeat_seconds: float = 10.0


class Kubelet:
    """One node. Its pods, ConfigMaps and Secrets come from the fleet's shared informers (see fleet.py)."""

    def __init__(
        self,
        name: str,
        address: str,
        client: KubeClient,
        addresses: AddressPool,
        directory: Path,
        find: Callable[[str, str, str], JSON | None],
        references: dict[Reference, set[PodWorker]],
        config: KubeletConfig,
        programs: Programs = PROGRAMS,
    ) -> None:
        self.name = name
        self.address = address
        self.client = client
        self.addresses = addresses
        self.directory = directory
        self.config = config
        self.programs = programs
        self.workers: dict[str, PodWorker] = {}  # by uid
        self.port = 0
        self._find = find
        self._references = references
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending: set[str] = set()  # uids of finished pods whose last delete is under way
        self._stopping = False
        host = urlsplit(client.endpoint.server)
        port = str(host.port or 443)
        self.base_environment = {
            "KUBERNETES_SERVICE_HOST": host.hostname or "",
            "KUBERNETES_SERVICE_PORT": port,
            "KUBERNETES_SERVICE_PORT_HTTPS": port,
        }

    async def register(self, port: int) -> None:
        """Create or take over the Node and begin the heartbeats."""
        self.port = port
        await node.register(self.client, self.name, self.address, port)
        self.spawn(node.heartbeat(self.client, self.name, self.config.heartbeat_seconds))

    async def stop(self) -> None:
        """Kill what runs, without touching the objects: as when the machine loses power."""
        self._stopping = True
        workers = list(self.workers.values())
        for worker in workers:
            worker.vanish()
        if workers:
            await asyncio.wait([worker.task for worker in workers], timeout=10)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def pod_changed(self, pod: JSON) -> None:
        """A pod bound to this node was added or modified."""
        uid = pod["metadata"]["uid"]
        worker = self.workers.get(uid)
        if worker is not None:
            worker.update(pod)
        elif self._stopping:
            return
        elif (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            metadata = pod["metadata"]
            if "deletionTimestamp" in metadata and not metadata.get("finalizers") and uid not in self._ending:
                self._ending.add(uid)
                self.spawn(self._delete(pod))
        elif pod["metadata"].get("deletionGracePeriodSeconds") != 0:
            # Grace 0 means our final delete has been made, and finalizers hold what is left: nothing of it runs.
            self.workers[uid] = PodWorker(self, pod)

    def pod_deleted(self, pod: JSON) -> None:
        """The object is gone from the API."""
        self._ending.discard(pod["metadata"]["uid"])
        worker = self.workers.get(pod["metadata"]["uid"])
        if worker is not None:
            worker.vanish()

    def worker(self, namespace: str, name: str, uid: str | None = None) -> PodWorker | None:
        """The worker of a pod by name (and uid, where given)."""
        for worker in self.workers.values():
            if (worker.namespace, worker.name) == (namespace, name) and uid in (None, worker.uid):
                return worker
        return None

    # For the pod workers -------------------------------------------------------------------------------------------

    def lookup(self, plural: str, namespace: str, name: str) -> JSON | None:
        """A ConfigMap or Secret, or None."""
        return self._find(plural, namespace, name)

    def watch_references(self, worker: PodWorker, references: set[tuple[str, str]]) -> None:
        """Tell `worker` when one of these objects of its namespace changes."""
        for plural, name in references:
            self._references.setdefault((plural, worker.namespace, name), set()).add(worker)

    def forget(self, worker: PodWorker) -> None:
        """A worker has ended."""
        self.workers.pop(worker.uid, None)
        for plural, name in worker.volumes.references(worker.pod):
            holders = self._references.get((plural, worker.namespace, name))
            if holders is not None:
                holders.discard(worker)
                if not holders:
                    del self._references[plural, worker.namespace, name]
        if not self._stopping:
            self.spawn(asyncio.to_thread(worker.remove_files))

    async def token_source(self, pod: JSON, source: JSON) -> tuple[str, float]:
        """A token bound to the pod (TokenRequest), and its lifetime in seconds. Raises ApiError."""
        metadata = pod["metadata"]
        account = pod["spec"].get("serviceAccountName") or "default"
        audience = source.get("audience")
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": source.get("expirationSeconds", 3600),
                "boundObjectRef": {
                    "kind": "Pod",
                    "apiVersion": "v1",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
            },
        }
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        answer = (await self.client.create(path, body))["status"]
        expiry = datetime.fromisoformat(answer["expirationTimestamp"].replace("Z", "+00:00"))
        return str(answer["token"]), max((expiry - datetime.now(UTC)).total_seconds(), 1.0)

    async def insist(self, request: Callable[[], Awaitable[Any]], over: Callable[[], bool]) -> bool:
        """Repeat a request until the server has taken it; False when its object no longer exists.

        A 409 may be a conflict that passes, or the uid of a successor of the same name: `over` tells from what the
        watch has brought.
        """
        pause = 0.05
        while not self._stopping:
            try:
                await request()
            except ApiError as error:
                if error.status == 404 or over():
                    return False
                if 400 <= error.status < 500 and error.status not in (409, 429):
                    log.warning("node %s: refused: %s", self.name, error)
                    return False
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
            else:
                return True
        return False

    async def event(self, pod: JSON, kind: str, reason: str, message: str) -> None:
        """Record an Event about a pod as kubelet's; a failure to do so is only logged."""
        await record(self.client, pod, kind, reason, message, component="kubelet", host=self.name)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something in the background until the kubelet stops."""
        if self._stopping:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("node %s: a background task failed", self.name, exc_info=task.exception())

    async def _delete(self, pod: JSON) -> None:
        namespace, name = key_of(pod)
        uid = pod["metadata"]["uid"]
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        await self.insist(lambda: self.client.delete(path, body), lambda: uid not in self._ending)
        self._ending.discard(uid)
