"""A Pod's status, computed from the states of its containers. Pure.

Rules: https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/ and, for the wording of conditions, what real
kubelets write.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

JSON = dict[str, Any]


def timestamp(moment: datetime | None = None) -> str:
    """RFC 3339 with whole seconds, as metav1.Time is written."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class ContainerState:
    """What is known of one container of the spec, over all its instances.

    `state` and `last` are ContainerState objects of the API: {"waiting"|"running"|"terminated": {...}}.
    """

    spec: JSON
    state: JSON = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last: JSON = field(default_factory=dict)
    restarts: int = 0
    ready: bool = False
    started: bool = False
    container_id: str = ""
    image_id: str = ""

    @property
    def name(self) -> str:
        """The container's name."""
        return str(self.spec["name"])

    @property
    def sidecar(self) -> bool:
        """True for an init container that runs on (restartPolicy: Always)."""
        return self.spec.get("restartPolicy") == "Always"

    @property
    def running(self) -> bool:
        """True while an instance runs."""
        return "running" in self.state

    @property
    def exit_code(self) -> int | None:
        """Of an instance that has ended and has not been followed by another."""
        terminated = self.state.get("terminated")
        return None if terminated is None else int(terminated["exitCode"])

    def render(self) -> JSON:
        """The ContainerStatus object."""
        return {
            "name": self.name,
            "state": self.state,
            "lastState": self.last,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "image": self.spec.get("image", ""),
            "imageID": self.image_id,
            **({"containerID": self.container_id} if self.container_id else {}),
        }


def image_digest(image: str) -> str:
    """A stable stand-in for an image's digest: the lab pulls nothing."""
    return f"{image.split('@')[0]}@sha256:{hashlib.sha256(image.encode()).hexdigest()}"


def phase(restart_policy: str, init: list[ContainerState], main: list[ContainerState]) -> str:
    """Pending, Running, Succeeded or Failed."""
    plain_init = [c for c in init if not c.sidecar]
    if any(c.exit_code not in (None, 0) for c in plain_init) and restart_policy == "Never":
        return "Failed"
    if all("waiting" in c.state and not c.last for c in main):
        return "Pending"
    if all(c.exit_code is not None for c in main) and restart_policy != "Always":
        if all(c.exit_code == 0 for c in main):
            return "Succeeded"
        if restart_policy == "Never":
            return "Failed"
    return "Running"


def conditions(
    pod: JSON, the_phase: str, init: list[ContainerState], main: list[ContainerState], sandbox: bool
) -> list[JSON]:
    """Conditions without times: type, status and, when not True, reason and message."""
    done = the_phase in ("Succeeded", "Failed")
    incomplete = [c.name for c in init if not (c.started if c.sidecar else c.exit_code == 0)]
    unready = [c.name for c in [*(c for c in init if c.sidecar), *main] if not c.ready]
    initialized = _condition("Initialized", not incomplete)
    if incomplete:
        initialized |= {
            "reason": "ContainersNotInitialized",
            "message": f"containers with incomplete status: [{' '.join(incomplete)}]",
        }
    elif the_phase == "Succeeded":
        initialized["reason"] = "PodCompleted"
    ready = _condition("ContainersReady", not unready and not done)
    if done:
        ready["reason"] = "PodCompleted" if the_phase == "Succeeded" else "PodFailed"
    elif unready:
        ready |= {"reason": "ContainersNotReady", "message": f"containers with unready status: [{' '.join(unready)}]"}
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or []]
    known = {c["type"]: c["status"] for c in (pod.get("status") or {}).get("conditions") or []}
    closed = [gate for gate in gates if known.get(gate) != "True"]
    whole = {**ready, "type": "Ready"}
    if ready["status"] == "True" and closed:
        whole = _condition("Ready", False) | {
            "reason": "ReadinessGatesNotReady",
            "message": "\n".join(
                f'corresponding condition of pod readiness gate "{g}" does not exist.' for g in closed
            ),
        }
    return [_condition("PodReadyToStartContainers", sandbox), initialized, whole, ready]


def _condition(kind: str, holds: bool) -> JSON:
    return {"type": kind, "status": "True" if holds else "False"}


def with_times(fresh: list[JSON], before: list[JSON], now: str, generation: int) -> list[JSON]:
    """Add lastProbeTime (always null), observedGeneration and lastTransitionTime, kept where the status did not
    change.
    """
    known = {c["type"]: c for c in before}
    whole = []
    for condition in fresh:
        old = known.get(condition["type"])
        same = old is not None and old["status"] == condition["status"]
        whole.append(
            {
                **condition,
                "observedGeneration": generation,
                "lastProbeTime": None,
                "lastTransitionTime": old["lastTransitionTime"] if same and old else now,
            }
        )
    return whole
