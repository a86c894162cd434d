"""An API server, all controllers and two kubelets on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Self

from infra.lab.apiserver import ApiServer, Faults
from infra.lab.client import ApiError, Informer, KubeClient
from infra.lab.controllers import Cluster, start_cluster
from infra.lab.kubelet.container import Backoff
from infra.lab.kubelet.kubelet import KubeletConfig
from infra.lab.kubelet.runtime import Container, Programs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

JSON = dict[str, Any]
PODS = "/api/v1/namespaces/default/pods"


class ClusterLab:
    """Context manager. `programs` may be added to at any time; `containers` has every instance of image "watched"."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.programs = Programs()
        self.containers: list[Container] = []
        self.faults = Faults()
        self.programs.register("watched", self._watched)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lab", daemon=True)
        self.server: ApiServer
        self.cluster: Cluster
        self.client: KubeClient

    def run(self, work: Coroutine[Any, Any, Any], timeout: float = 50) -> Any:
        """Run a coroutine on the lab's loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._start())
        return self

    def __exit__(self, *_exc: object) -> None:
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        self.server = ApiServer(self.directory / "api", faults=self.faults)
        await self.server.start()
        config = KubeletConfig(refresh_seconds=(0.05, 0.1), backoff=Backoff(first=0.2, limit=1.0))
        pki = self.server.pki
        self.cluster = await start_cluster(
            self.server.kubeconfig,
            nodes=2,
            config=config,
            programs=self.programs,
            ca_files=(pki.ca_certificate, pki.ca_key),
        )
        self.client = KubeClient.from_kubeconfig(self.server.kubeconfig, user_agent="test")

    async def _stop(self) -> None:
        await self.client.close()
        await self.cluster.stop()
        await self.server.stop()

    async def _watched(self, container: Container) -> int:
        self.containers.append(container)
        container.set_ready(True)
        await container.stopping.wait()
        return 0

    # Steps of tests ------------------------------------------------------------------------------------------------

    async def until(
        self, path: str, condition: Callable[[dict[tuple[str, str], JSON]], bool], seconds: float = 20
    ) -> dict[tuple[str, str], JSON]:
        """Watch a collection until a condition on its objects holds. Raises TimeoutError."""
        informer = Informer(self.client, path)
        try:
            await informer.wait_for(condition, seconds)
            return dict(informer.objects)
        finally:
            await informer.stop()

    async def pod(self, name: str, condition: Callable[[JSON], bool], seconds: float = 20) -> JSON:
        """Wait until a pod of the default namespace satisfies a condition."""
        found = await self.until(PODS, lambda o: ("default", name) in o and condition(o["default", name]), seconds)
        return found["default", name]

    async def gone(self, path: str, seconds: float = 20) -> None:
        """Wait until a GET of `path` is 404."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await self.client.get(path)
                except ApiError as error:
                    if error.status == 404:
                        return
                    raise
                await asyncio.sleep(0.02)

    async def instance(self, pod: str, number: int = 1, seconds: float = 10) -> Container:
        """The n-th instance of the watched container of a pod."""
        async with asyncio.timeout(seconds):
            while True:
                found = [c for c in self.containers if c.pod_name == pod]
                if len(found) >= number:
                    return found[number - 1]
                await asyncio.sleep(0.01)


def pod(name: str, *containers: JSON, annotations: JSON | None = None, **spec: Any) -> JSON:
    """A Pod body; without containers it has one of image "watched"."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {"containers": [*containers] or [{"name": "main", "image": "watched"}], **spec},
    }


def workload(kind: str, name: str, replicas: int | None = None, annotations: JSON | None = None, **spec: Any) -> JSON:
    """A Deployment, StatefulSet, ReplicaSet or DaemonSet body with image "watched"."""
    template = {
        "metadata": {"labels": {"app": name}, "annotations": annotations or {}},
        "spec": {"containers": [{"name": "main", "image": "watched"}]},
    }
    body: JSON = {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template, **spec},
    }
    if replicas is not None:
        body["spec"]["replicas"] = replicas
    return body


def ready(item: JSON) -> bool:
    """The pod's Ready condition is True."""
    conditions = (item.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
