"""A service proxy for loopback: what kube-proxy and the cluster's DNS would do, for the few services that need it.

A Service with the annotation `lab.capstan.dev/loopback: 127.x.y.z` is listened for on that address and its TCP
connections are forwarded to a ready pod of its selector. Ports below 1024 are served at port + 8000, because nobody
here is root. `lab.capstan.dev/target-port` overrides the target port: identity's service goes to the pods' inbound
proxy (4143), as the data plane would take it. It is a client of the API, so it works with any API server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import socket
from typing import TYPE_CHECKING, Any

from infra.lab.linkerd.httpd import Server
from infra.lab.linkerd.listener import relay

if TYPE_CHECKING:
    from infra.lab.client import Informer

LOOPBACK = "lab.capstan.dev/loopback"
TARGET_PORT = "lab.capstan.dev/target-port"
FIRST_UNPRIVILEGED = 1024
PRIVILEGED_OFFSET = 8000

log = logging.getLogger(__name__)

JSON = dict[str, Any]


class ServiceAddresses:
    """A /24 of loopback addresses claimed for one lab's services; the claim ends with the process or `close`."""

    def __init__(self) -> None:
        for second, third in random.sample(list(itertools.product(range(250, 254), range(1, 255))), 64):
            claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                claim.bind((f"127.{second}.{third}.1", 1))
            except PermissionError:
                claim.bind((f"127.{second}.{third}.1", 0))
            except OSError:
                claim.close()
                continue
            self._claim, self._network = claim, f"127.{second}.{third}"
            break
        else:
            raise OSError("no free loopback network for services")
        self._next = itertools.count(10)

    def take(self) -> str:
        """An address nobody else has."""
        return f"{self._network}.{next(self._next)}"

    def close(self) -> None:
        """Give the network back."""
        self._claim.close()


def listening_port(port: int) -> int:
    """Where a service port is listened for."""
    return port if port >= FIRST_UNPRIVILEGED else port + PRIVILEGED_OFFSET


class ServiceProxy:
    """Keeps one listener for each port of each annotated Service."""

    def __init__(self, services: Informer, pods: Informer) -> None:
        self._services = services
        self._pods = pods
        self._listeners: dict[tuple[str, str, int], Server] = {}
        self._turn = itertools.count()

    async def run(self) -> None:
        """Follow the Services until cancelled."""
        await self._services.synced()
        await self._pods.synced()
        try:
            while True:
                await self._reconcile()
                await self._services.changed()
        finally:
            await asyncio.gather(*(server.stop() for server in self._listeners.values()))

    def resolve(self, address: str) -> str:
        """`name.namespace.svc[.domain][.]:port` as `127.x.y.z:port`.

        Raises:
            LookupError: If there is no such annotated Service.
        """
        host, _, port = address.rpartition(":")
        name, namespace, *_ = host.split(".")
        service = self._services.get(namespace, name)
        if service is None or not (loopback := _loopback(service)):
            raise LookupError(f"no service {namespace}/{name} with an address of this lab")
        return f"{loopback}:{listening_port(int(port))}"

    async def _reconcile(self) -> None:
        wanted: dict[tuple[str, str, int], tuple[str, int]] = {}
        for (namespace, name), service in self._services.objects.items():
            if loopback := _loopback(service):
                for port in service["spec"].get("ports") or []:
                    wanted[namespace, name, port["port"]] = (loopback, listening_port(port["port"]))
        for key in [key for key in self._listeners if key not in wanted]:
            await self._listeners.pop(key).stop()
        for key, (host, port) in wanted.items():
            if key in self._listeners:
                continue
            with contextlib.suppress(OSError):  # taken: tried again at the next change
                self._listeners[key] = await self._listen(key, host, port)

    async def _listen(self, key: tuple[str, str, int], host: str, port: int) -> Server:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._forward(key, reader, writer)

        return await Server(connected).start(host, port)

    async def _forward(
        self, key: tuple[str, str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        namespace, name, port = key
        service = self._services.get(namespace, name)
        backends = [] if service is None else self._backends(service, port)
        if not backends:
            return
        start = next(self._turn)
        for attempt in range(len(backends)):
            host, target = backends[(start + attempt) % len(backends)]
            try:
                await relay(reader, writer, host, target)
            except OSError as error:
                log.debug("service %s/%s: %s:%s: %s", namespace, name, host, target, error)
                continue
            return

    def _backends(self, service: JSON, port: int) -> list[tuple[str, int]]:
        """(address, port) of every ready pod; with `publishNotReadyAddresses` of every running one."""
        selector = service["spec"].get("selector") or {}
        namespace = service["metadata"]["namespace"]
        publish_all = bool(service["spec"].get("publishNotReadyAddresses"))
        found = []
        for pod in self._pods.objects.values():
            metadata, status = pod["metadata"], pod.get("status") or {}
            labels = metadata.get("labels") or {}
            if metadata.get("namespace") != namespace or not selector.items() <= labels.items():
                continue
            if status.get("podIP") and (is_ready(pod) or publish_all):
                found.append((status["podIP"], _target_port(service, port, pod)))
        return found


def is_ready(pod: JSON) -> bool:
    """Ready and not being deleted."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _loopback(service: JSON) -> str:
    return str((service["metadata"].get("annotations") or {}).get(LOOPBACK, ""))


def _target_port(service: JSON, port: int, pod: JSON) -> int:
    if override := (service["metadata"].get("annotations") or {}).get(TARGET_PORT):
        return int(override)
    entry = next(p for p in service["spec"]["ports"] if p["port"] == port)
    target = entry.get("targetPort", port)
    if isinstance(target, int):
        return target
    spec = pod["spec"]
    for container in [*spec["containers"], *(spec.get("initContainers") or [])]:
        for candidate in container.get("ports") or []:
            if candidate.get("name") == target:
                return int(candidate["containerPort"])
    return port
