"""One pod on one node: volumes, init containers, containers, status, graceful end."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError
from infra.lab.kubelet import status
from infra.lab.kubelet.container import Knobs, RunningContainer
from infra.lab.kubelet.environment import ConfigError, environment, expand
from infra.lab.kubelet.programs import generic
from infra.lab.kubelet.runtime import Container
from infra.lab.kubelet.volumes import PodVolumes

if TYPE_CHECKING:
    from pathlib import Path

    from infra.lab.kubelet.kubelet import Kubelet
    from infra.lab.kubelet.logs import ContainerLog

JSON = dict[str, Any]
STATUS_DELAY = 0.01  # changes within this time share one status write
VOLUME_RETRY_SECONDS = 2.0

log = logging.getLogger(__name__)
_RANDOM = random.Random()  # own state: a caller's seed of the global one is left alone


class PodWorker:
    """Brings one pod (one uid) to life, keeps its status written, and takes it down when it is deleted."""

    def __init__(self, kubelet: Kubelet, pod: JSON) -> None:
        self.kubelet = kubelet
        self.pod = pod
        metadata = pod["metadata"]
        self.uid: str = metadata["uid"]
        self.namespace: str = metadata["namespace"]
        self.name: str = metadata["name"]
        self.path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"
        self._host_network = bool(pod["spec"].get("hostNetwork"))
        self.ip = kubelet.address if self._host_network else kubelet.addresses.take()
        self.directory: Path = kubelet.directory / "pods" / self.uid
        self.volumes = PodVolumes(
            self.directory / "volumes",
            kubelet.directory,
            self._lookup,
            kubelet.token_source,
            kubelet.programs.drivers,
        )
        self._started_at = status.timestamp()
        self._sandbox = False
        self._gone = False  # the object no longer exists: nothing may be written any more
        self._leaving = False  # the final delete is under way: status no longer interests anybody
        self._ended = asyncio.Event()  # graceful end asked for
        self._appeared = asyncio.Event()  # an object that a volume waits for may be there now
        self._kill_timer: asyncio.TimerHandle | None = None
        self._kill_at = float("inf")
        self._knobs = Knobs.of(pod, kubelet.config.start_seconds)
        self.containers: dict[str, RunningContainer] = {}
        self._init = [self._container(spec) for spec in pod["spec"].get("initContainers") or []]
        self._main = [self._container(spec) for spec in pod["spec"]["containers"]]
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._dirty = False
        self._writing = asyncio.Lock()
        self._written: JSON | None = None
        self._conditions: list[JSON] = list((pod.get("status") or {}).get("conditions") or [])
        self._refresh_timer: asyncio.TimerHandle | None = None
        self._token_timer: asyncio.TimerHandle | None = None
        self._complained: tuple[str, str] = ("", "")
        self.task = asyncio.create_task(self._live(), name=f"pod {self.namespace}/{self.name}")
        self.update(pod)

    # What the kubelet tells us -------------------------------------------------------------------------------------

    def update(self, pod: JSON) -> None:
        """A newer version of the object: a deletion, a shorter grace, or new labels for the downward API."""
        old, self.pod = self.pod, pod
        metadata = pod["metadata"]
        if "deletionTimestamp" in metadata:
            self.end(float(metadata.get("deletionGracePeriodSeconds") or 0))
        elif any(old["metadata"].get(k) != metadata.get(k) for k in ("labels", "annotations")):
            self.refresh_later()
        elif old["metadata"].get("generation") != metadata.get("generation"):
            self.mark()

    def end(self, grace: float) -> None:
        """End gracefully within `grace` seconds from now; a later call can only shorten it."""
        loop = asyncio.get_running_loop()
        kill_at = loop.time() + grace
        if kill_at < self._kill_at:
            self._kill_at = kill_at
            if self._kill_timer is not None:
                self._kill_timer.cancel()
            self._kill_timer = loop.call_at(kill_at, self._kill)
        self._ended.set()

    def vanish(self) -> None:
        """The object was removed from the API (forced deletion): stop at once, write nothing."""
        self._gone = True
        self._ended.set()
        self._kill()

    def refresh_later(self) -> None:
        """Something our volumes show has changed: rewrite them after the kubelet's usual delay."""
        self._appeared.set()  # a pod that still waits for its first mount does not wait longer
        if self._refresh_timer is None:
            delay = _RANDOM.uniform(*self.kubelet.config.refresh_seconds)
            self._refresh_timer = asyncio.get_running_loop().call_later(delay, self._spawn_refresh)

    def remove_files(self) -> None:
        """Delete what the pod had on the node's disk, except what outlives it."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def mark(self) -> None:
        """The status may have changed: write it soon."""
        if not self._dirty and not self._gone and not self._leaving:
            self._dirty = True
            asyncio.get_running_loop().call_later(STATUS_DELAY, self._spawn_write)

    # Life ----------------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        try:
            await self._start()
            await self._finished()
            await self._stop()
            if not self._gone:
                await self._ended.wait()
                self._leaving = True
                await self._delete_object()
        except Exception:
            log.exception("pod %s/%s: its worker failed", self.namespace, self.name)
        finally:
            self._clean_up()

    async def _start(self) -> None:
        if self._ended.is_set():
            return
        if not await self._mount():
            return
        self._sandbox = True
        for container in self._init:
            self._launch(container)
            await self._first(container.up if container.state.sidecar else container.done)
            if self._ended.is_set() or (not container.state.sidecar and container.state.exit_code != 0):
                return
        for container in self._main:
            self._launch(container)
            hook = (container.state.spec.get("lifecycle") or {}).get("postStart")
            if hook:  # containers start in order, and a postStart hook holds up the next one
                await self._first(container.up)
            if self._ended.is_set():
                return

    async def _mount(self) -> bool:
        """Fill the volumes, waiting for what is missing; False when the pod is ended meanwhile."""
        self.kubelet.watch_references(self, self.volumes.references(self.pod))
        while not self._ended.is_set():
            self._appeared.clear()
            try:
                await self.volumes.write(self.pod_with_addresses())
            except (ConfigError, ApiError) as error:
                self.mark()
                self.warn("FailedMount", f"MountVolume.SetUp failed: {error}")
                retry = asyncio.get_running_loop().call_later(VOLUME_RETRY_SECONDS, self._appeared.set)
                await self._first(self._appeared)
                retry.cancel()
            else:
                self._plan_token_renewal()
                return True
        return False

    async def _finished(self) -> None:
        """Until the pod is to end, or its work is over by itself."""
        if self._ended.is_set():
            return
        failed_init = any(c.done.is_set() and c.state.exit_code != 0 for c in self._init if not c.state.sidecar)
        if not failed_init:
            all_done = asyncio.Event()

            async def watch() -> None:
                for container in self._main:
                    await container.done.wait()
                all_done.set()

            watching = asyncio.create_task(watch())
            await self._first(all_done)
            watching.cancel()

    async def _stop(self) -> None:
        """SIGTERM to the main containers, then to sidecars in reverse order (KEP-753); `_kill` cuts it short."""
        for group in [self._main, *([container] for container in reversed(self._init))]:
            for container in group:
                container.stop()
            running = [self._runs[container.state.name] for container in group if container.state.name in self._runs]
            if running:
                await asyncio.wait(running)

    def _kill(self) -> None:
        for container in self.containers.values():
            container.kill()

    async def _delete_object(self) -> None:
        """The kubelet's last word: delete with grace 0, only this uid."""
        metadata = self.pod["metadata"]
        owners = metadata.get("ownerReferences") or []
        if metadata.get("finalizers") or any(owner["kind"] == "Job" for owner in owners):
            # Somebody keeps the object to read how it ended; for all others this write would be gone with the next one.
            await self._write()
        body = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": self.uid},
        }
        await self.kubelet.insist(lambda: self.kubelet.client.delete(self.path, body), lambda: self._gone)
        self._gone = True

    def _clean_up(self) -> None:
        for timer in (self._kill_timer, self._refresh_timer, self._token_timer):
            if timer is not None:
                timer.cancel()
        self.kubelet.spawn(self.volumes.unpublish(self.uid))
        self.kubelet.forget(self)
        if not self._host_network:
            self.kubelet.addresses.free(self.ip)

    # Containers ----------------------------------------------------------------------------------------------------

    def _container(self, spec: JSON) -> RunningContainer:
        init = spec in (self.pod["spec"].get("initContainers") or [])
        state = status.ContainerState(spec)
        if self.pod["spec"].get("initContainers"):
            state.state = {"waiting": {"reason": "PodInitializing"}}
        policy = self.pod["spec"].get("restartPolicy", "Always")
        first = spec is self.pod["spec"]["containers"][0]
        knobs = Knobs(
            start_seconds=self._knobs.start_seconds if first else 0.0,
            stop_seconds=self._knobs.stop_seconds,
            never_ready=self._knobs.never_ready and not init,
            crash=self._knobs.crash if first else None,
        )
        container = RunningContainer(
            state,
            f"{self.name}_{self.namespace}({self.uid})",
            "OnFailure" if init and policy == "Always" else policy,
            self._make,
            lambda c: self.kubelet.programs.lookup(c.image, c.name, c.args) or generic,
            self.mark,
            self.kubelet.config.backoff,
            knobs,
            self.warn,
        )
        self.containers[state.name] = container
        return container

    def _make(self, state: status.ContainerState, container_log: ContainerLog) -> Container:
        """The program's view of a new instance. Raises ConfigError."""
        pod = self.pod_with_addresses()
        spec = state.spec
        base = self.kubelet.base_environment | {"HOSTNAME": pod["spec"].get("hostname") or self.name}
        env = environment(pod, spec, self._lookup, base)
        root = self.directory / "containers" / state.name
        root.mkdir(parents=True, exist_ok=True)
        mounts: dict[str, Path] = {}
        for mount in spec.get("volumeMounts") or []:
            sub = mount.get("subPath") or expand(mount.get("subPathExpr") or "", env)
            place = self.directory / "subpaths" / state.name / str(len(mounts))
            path = (
                self.volumes.subpath(pod, mount["name"], sub, place) if sub else self.volumes.path(pod, mount["name"])
            )
            mounts[mount["mountPath"].rstrip("/") or "/"] = path
        return Container(
            pod=pod,
            name=state.name,
            image=spec.get("image", ""),
            root=root,
            args=[expand(word, env) for word in spec.get("args") or []],
            command=[expand(word, env) for word in spec.get("command") or []],
            env=env,
            ip=self.ip,
            node=self.kubelet.name,
            api=self.kubelet.client.endpoint.server,
            mounts=mounts,
            logs=container_log,
        )

    def pod_with_addresses(self) -> JSON:
        """The pod with the addresses this node gave it, which the API server may not have heard of yet."""
        known = {"hostIP": self.kubelet.address, "hostIPs": [{"ip": self.kubelet.address}]}
        known |= {"podIP": self.ip, "podIPs": [{"ip": self.ip}]}
        return {**self.pod, "status": {**(self.pod.get("status") or {}), **known}}

    def _lookup(self, plural: str, name: str) -> JSON | None:
        return self.kubelet.lookup(plural, self.namespace, name)

    # Status --------------------------------------------------------------------------------------------------------

    def render(self) -> JSON:
        """The status this node stands for."""
        init, main = [c.state for c in self._init], [c.state for c in self._main]
        the_phase = status.phase(self.pod["spec"].get("restartPolicy", "Always"), init, main)
        generation = self.pod["metadata"].get("generation", 1)
        fresh = status.conditions(self.pod, the_phase, init, main, self._sandbox)
        if not any(c["type"] == "PodScheduled" for c in (self.pod.get("status") or {}).get("conditions") or []):
            fresh.append({"type": "PodScheduled", "status": "True"})
        self._conditions = status.with_times(fresh, self._conditions, status.timestamp(), generation)
        rendered: JSON = {
            "phase": the_phase,
            "observedGeneration": generation,
            "conditions": self._conditions,
            "hostIP": self.kubelet.address,
            "hostIPs": [{"ip": self.kubelet.address}],
            "startTime": self._started_at,
            "containerStatuses": [s.render() for s in sorted(main, key=lambda s: s.name)],
        }
        if init:
            rendered["initContainerStatuses"] = [state.render() for state in init]
        if self._sandbox:
            rendered |= {"podIP": self.ip, "podIPs": [{"ip": self.ip}]}
        return rendered

    def _spawn_write(self) -> None:
        self._dirty = False
        if not self._gone and not self._leaving:
            self.kubelet.spawn(self._write())

    async def _write(self) -> None:
        async with self._writing:
            fresh = self.render()
            if self._gone or fresh == self._written:
                return
            body = {"metadata": {"uid": self.uid}, "status": fresh}
            path = f"{self.path}/status"
            if await self.kubelet.insist(
                lambda: self.kubelet.client.patch(path, body, "strategic"), lambda: self._gone
            ):
                self._written = fresh

    def warn(self, reason: str, message: str) -> None:
        """A Warning event about this pod; the same one is not repeated."""
        if (reason, message) != self._complained:
            self._complained = (reason, message)
            self.kubelet.spawn(self.kubelet.event(self.pod, "Warning", reason, message))

    # Volumes -------------------------------------------------------------------------------------------------------

    def _spawn_refresh(self) -> None:
        self._refresh_timer = None
        if self._sandbox and not self._gone:
            self.kubelet.spawn(self._refresh())

    async def _refresh(self) -> None:
        try:
            await self.volumes.write(self.pod_with_addresses())
        except (ConfigError, ApiError) as error:
            # As in real life: the old content stays, and the next change or token renewal tries again.
            self.warn("FailedMount", f"MountVolume.SetUp failed: {error}")
        self._plan_token_renewal()

    def _plan_token_renewal(self) -> None:
        due = self.volumes.token_due()
        if due is not None and not self._gone:
            if self._token_timer is not None:
                self._token_timer.cancel()
            loop = asyncio.get_running_loop()
            self._token_timer = loop.call_at(max(due, loop.time() + 1.0), self._spawn_refresh)

    # Small tools ---------------------------------------------------------------------------------------------------

    def _launch(self, container: RunningContainer) -> None:
        self._runs[container.state.name] = asyncio.create_task(container.run())

    async def _first(self, event: asyncio.Event) -> None:
        """Until `event`, or until the pod is to end."""
        waits = [asyncio.create_task(event.wait()), asyncio.create_task(self._ended.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
