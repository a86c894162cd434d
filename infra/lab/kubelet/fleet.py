"""All nodes of a lab in one process: N kubelets that share watches, addresses and a directory."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Self

from infra.lab.kubelet.addresses import KUBELET_PORT, AddressPool
from infra.lab.kubelet.kubelet import Kubelet, KubeletConfig, Reference
from infra.lab.kubelet.runtime import PROGRAMS, Programs
from infra.lab.kubelet.server import KubeletServer

if TYPE_CHECKING:
    from pathlib import Path

    from infra.lab.client import SharedInformers
    from infra.lab.kubelet.pod import PodWorker

JSON = dict[str, Any]

log = logging.getLogger(__name__)


class Fleet:
    """Start with `await Fleet(...).start()`; `stop()` kills all containers and leaves the objects as they are."""

    def __init__(
        self,
        informers: SharedInformers,
        directory: Path,
        *,
        nodes: int = 3,
        config: KubeletConfig | None = None,
        programs: Programs = PROGRAMS,
        prefix: str = "node-",
    ) -> None:
        self.client = informers.client
        self.addresses = AddressPool()
        self._pods = informers.of("/api/v1/pods")
        self._sources = {
            "configmaps": informers.of("/api/v1/configmaps"),
            "secrets": informers.of("/api/v1/secrets"),
        }
        self._references: dict[Reference, set[PodWorker]] = {}
        self.kubelets = {
            name: Kubelet(
                name,
                self.addresses.node(index),
                self.client,
                self.addresses,
                directory / "nodes" / name,
                self._find,
                self._references,
                config or KubeletConfig(),
                programs,
            )
            for index, name in enumerate(f"{prefix}{number}" for number in range(1, nodes + 1))
        }
        self._servers: list[KubeletServer] = []

    async def start(self) -> Self:
        """Serve, register the nodes, then take up the pods. Raises ApiError when the API server refuses a Node."""
        for informer in (self._pods, *self._sources.values()):
            await informer.synced()
        for kubelet in self.kubelets.values():
            server = KubeletServer(kubelet, self._sources["configmaps"])
            await server.start(kubelet.address, KUBELET_PORT)
            self._servers.append(server)
            await kubelet.register(KUBELET_PORT)
        for plural, informer in self._sources.items():
            # a default argument binds the loop variable
            informer.on_change(lambda _, old, new, plural=plural: self._source_changed(plural, old, new))  # type: ignore[misc]
        self._pods.on_change(self._pod_changed)
        return self

    async def stop(self) -> None:
        """Stop serving and kill every container."""
        await asyncio.gather(*(kubelet.stop() for kubelet in self.kubelets.values()))
        await asyncio.gather(*(server.stop() for server in self._servers))
        self.addresses.close()

    def workers(self) -> list[PodWorker]:
        """The workers of all pods that are on some node now."""
        return [worker for kubelet in self.kubelets.values() for worker in kubelet.workers.values()]

    def _find(self, plural: str, namespace: str, name: str) -> JSON | None:
        return self._sources[plural].get(namespace, name)

    def _source_changed(self, plural: str, old: JSON | None, new: JSON) -> None:
        same = old is not None and all(old.get(k) == new.get(k) for k in ("data", "binaryData"))
        if not same:
            metadata = new["metadata"]
            for worker in self._references.get((plural, metadata["namespace"], metadata["name"]), ()):
                worker.refresh_later()

    def _pod_changed(self, kind: str, _: JSON | None, pod: JSON) -> None:
        kubelet = self.kubelets.get(pod["spec"].get("nodeName") or "")
        if kubelet is None:
            return
        if kind == "DELETED":
            kubelet.pod_deleted(pod)
        else:
            kubelet.pod_changed(pod)
