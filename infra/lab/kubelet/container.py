"""One container of a pod over all its instances: start, run, restart with back-off, stop."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infra.lab.kubelet.environment import ConfigError
from infra.lab.kubelet.logs import ContainerLog
from infra.lab.kubelet.status import ContainerState, image_digest, timestamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.kubelet.runtime import Container, Program

JSON = dict[str, Any]
KILLED = 137  # 128 + SIGKILL
CONFIG_RETRY_SECONDS = 0.5


@dataclass(frozen=True)
class Knobs:
    """What an annotation of the pod (lab.capstan.dev/NAME) makes of its containers, so that any API server carries
    faults.

    Attributes:
        start_seconds: Time between "creating" and "running" of the first main container ("start-seconds").
        stop_seconds: Time each container goes on after SIGTERM before its program hears of it ("stop-seconds").
        never_ready: Main containers never become ready ("never-ready": "true").
        crash: Seconds after which the first main container exits with code 1 ("crash": seconds, or "true" for at once).
    """

    start_seconds: float = 0.0
    stop_seconds: float = 0.0
    never_ready: bool = False
    crash: float | None = None

    @classmethod
    def of(cls, pod: JSON, default_start: float = 0.0) -> Knobs:
        """Read a pod's annotations; a value that is no number counts as absent."""
        notes = pod["metadata"].get("annotations") or {}

        def seconds(name: str) -> float | None:
            text = notes.get(f"lab.capstan.dev/{name}")
            if text is None or text == "false":
                return None
            with contextlib.suppress(ValueError):
                return float(text)
            return 0.0 if text == "true" else None

        return cls(
            start_seconds=seconds("start-seconds") or default_start,
            stop_seconds=seconds("stop-seconds") or 0.0,
            never_ready=notes.get("lab.capstan.dev/never-ready") == "true",
            crash=seconds("crash"),
        )


@dataclass(frozen=True)
class Backoff:
    """Pauses between restarts: none before the first, then `first` seconds doubling up to `limit`; forgotten after
    `reset` seconds of running.

    A real kubelet has 10 s, 300 s and 600 s.
    """

    first: float = 1.0
    limit: float = 30.0
    reset: float = 60.0

    def seconds(self, crashes: int) -> float:
        """The pause after this many crashes in a row (1 = the first)."""
        return 0.0 if crashes <= 1 else min(self.first * 2.0 ** (crashes - 2), self.limit)


class RunningContainer:
    """Runs one container of the spec. `changed` is called whenever its state is another.

    `make` builds the program's view (a Container) anew for every instance, so that environment and arguments are
    those of that start.
    """

    def __init__(
        self,
        state: ContainerState,
        pod_name: str,
        restart: str,
        make: Callable[[ContainerState, ContainerLog], Container],
        program: Callable[[Container], Program],
        changed: Callable[[], None],
        backoff: Backoff,
        knobs: Knobs,
        warn: Callable[[str, str], None],
    ) -> None:
        self.state = state
        self.log: ContainerLog | None = None
        self.previous_log: ContainerLog | None = None
        self.instance: Container | None = None
        self.done = asyncio.Event()  # it has ended and will not run again
        self.up = asyncio.Event()  # it has started: the next one may
        self._pod_name = pod_name
        self._restart = restart
        self._make = make
        self._program = program
        self._changed = changed
        self._backoff = backoff
        self._knobs = knobs
        self._warn = warn
        self._stopping = asyncio.Event()
        self._program_task: asyncio.Task[int] | None = None
        self._killed = False
        probed = state.spec.get("startupProbe") or (state.spec.get("lifecycle") or {}).get("postStart")
        self._starts_when_ready = bool(probed)

    async def run(self) -> None:
        """Run to the end: until stopped, or until it has exited for good."""
        crashes = 0
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                code = await self._one_instance()
                if code is None or not self._again(code):
                    return
                crashes = 1 if time.monotonic() - began > self._backoff.reset else crashes + 1
                pause = self._backoff.seconds(crashes)
                if pause:
                    message = f"back-off {pause:g}s restarting failed container={self.state.name} pod={self._pod_name}"
                    self.state.last = self.state.state
                    self.state.state = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
                    self._changed()
                    self._warn(
                        "BackOff", f"Back-off restarting failed container {self.state.name} in pod {self._pod_name}"
                    )
                    await self._rest(pause)
        finally:
            self.done.set()
            self.up.set()

    def stop(self) -> None:
        """Begin a graceful end: the program sees SIGTERM after its preStop hook; nothing restarts."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self.instance is not None:
            pause = self._knobs.stop_seconds + _pre_stop_seconds(self.state.spec)
            loop = asyncio.get_running_loop()
            if pause:
                loop.call_later(pause, self.instance.stopping.set)
            else:
                self.instance.stopping.set()

    def kill(self) -> None:
        """SIGKILL: the program is cancelled where it is."""
        self._stopping.set()
        self._killed = True
        if self._program_task is not None:
            self._program_task.cancel()

    def _again(self, code: int) -> bool:
        if self._stopping.is_set():
            return False
        policy = "Always" if self.state.sidecar else self._restart
        return policy == "Always" or (policy == "OnFailure" and code != 0)

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _one_instance(self) -> int | None:
        """Start, run, and record the end. None when it was stopped before it ran."""
        container = await self._create()
        if container is None:
            return None
        state, started = self.state, datetime.now(UTC)
        if "terminated" in state.state:
            state.last = state.state
        if state.last:
            state.restarts += 1
        state.container_id = f"lab://{secrets.token_hex(32)}"
        state.image_id = image_digest(container.image)
        state.state = {"running": {"startedAt": timestamp(started)}}
        self.instance = container
        container.on_ready = self._on_ready
        if not self._starts_when_ready:
            self._has_started()
        self._changed()
        self._program_task = asyncio.create_task(self._guarded(container), name=f"{self._pod_name}/{state.name}")
        if self._killed:
            self._program_task.cancel()
        await asyncio.wait([self._program_task])
        code = KILLED if self._program_task.cancelled() else self._program_task.result()
        self._program_task = None
        self.instance = None
        state.ready = state.started = False
        state.state = {
            "terminated": {
                "exitCode": code,
                "reason": "Completed" if code == 0 else "Error",
                "startedAt": timestamp(started),
                "finishedAt": timestamp(),
                "containerID": state.container_id,
            }
        }
        container.logs.close()
        await container.close()
        self._changed()
        return code

    async def _create(self) -> Container | None:
        """Resolve the configuration; what is missing is waited for, as a kubelet does. None when stopped meanwhile."""
        if self._knobs.start_seconds and not self.state.last and "terminated" not in self.state.state:
            await self._rest(self._knobs.start_seconds)
        if not await self._pull():
            return None
        while not self._stopping.is_set():
            log = ContainerLog()
            try:
                container = self._make(self.state, log)
            except ConfigError as error:
                waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": str(error)}}
                if self.state.state != waiting:
                    if "terminated" in self.state.state:
                        self.state.last = self.state.state
                    self.state.state = waiting
                    self._changed()
                    self._warn("Failed", f"Error: {error}")
                await self._rest(CONFIG_RETRY_SECONDS)
                continue
            if self.log is not None:
                self.previous_log = self.log
            self.log = log
            return container
        return None

    async def _pull(self) -> bool:
        """Images are there, but for those of a registry that cannot exist (RFC 2606: `.invalid`): tried again and
        again, as a kubelet does. False when stopped meanwhile.
        """
        image = str(self.state.spec.get("image", ""))
        registry, _, rest = image.partition("/")
        if not registry.endswith(".invalid"):
            return True
        name, _, tag = rest.partition(":")
        cause = (
            f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": failed to do request: '
            f'Head "https://{registry}/v2/{name}/manifests/{tag or "latest"}": '
            f"dial tcp: lookup {registry}: no such host"
        )
        failures = 0
        while not self._stopping.is_set():
            failures += 1
            self.state.state = {"waiting": {"reason": "ErrImagePull", "message": cause}}
            self._changed()
            self._warn("Failed", f'Failed to pull image "{image}": {cause}')
            await self._rest(0.5)
            text = f'Back-off pulling image "{image}": ErrImagePull: {cause}'
            self.state.state = {"waiting": {"reason": "ImagePullBackOff", "message": text}}
            self._changed()
            await self._rest(self._backoff.seconds(failures + 1))
        return False

    async def _guarded(self, container: Container) -> int:
        crash = self._knobs.crash
        try:
            if crash is None:
                return int(await self._program(container)(container))
            try:
                async with asyncio.timeout(crash or 0.01):
                    return int(await self._program(container)(container))
            except TimeoutError:
                container.log("exit 1: asked for by the annotation lab.capstan.dev/crash")
                return 1
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 - whatever a program raises is its own crash, as a traceback of a process would be
            container.log(traceback.format_exc().rstrip())
            return 1

    def _on_ready(self, ready: bool) -> None:
        self.state.ready = ready and not self._knobs.never_ready
        if ready and not self.up.is_set():
            self._has_started()
        self._changed()

    def _has_started(self) -> None:
        self.state.started = True
        self.up.set()


def _pre_stop_seconds(spec: JSON) -> float:
    """The time a preStop hook takes: `sleep`, or `exec` of a sleep command; other hooks take none, for they run no
    host process.
    """
    hook = (spec.get("lifecycle") or {}).get("preStop") or {}
    if "sleep" in hook:
        return float(hook["sleep"].get("seconds") or 0)
    words = (hook.get("exec") or {}).get("command") or []
    text = words[-1] if len(words) == 3 and words[1] == "-c" else " ".join(words)
    name, _, seconds = text.strip().rpartition(" ")
    if name.rsplit("/", 1)[-1] == "sleep":
        with contextlib.suppress(ValueError):
            return float(seconds)
    return 0.0
