"""What the cells of tables say about an object. Every function takes the object and the present time."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from .selectors import format_selector
from .table import human_duration, since

if TYPE_CHECKING:
    from collections.abc import Callable

    from .table import Cell

JSON = dict[str, Any]


def _at(obj: JSON, path: str) -> Any:
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def text(path: str, absent: str = "") -> Callable[[JSON, datetime], Cell]:
    """The value at a dotted path; maps as ``a=b,c=d``."""

    def cell(obj: JSON, _now: datetime) -> Cell:
        value = _at(obj, path)
        if value in (None, "", {}, []):
            return absent
        if isinstance(value, dict):
            return ",".join(f"{key}={value[key]}" for key in sorted(value))
        return str(value)

    return cell


def count(path: str) -> Callable[[JSON, datetime], Cell]:
    """The number at a dotted path, 0 when absent."""

    def cell(obj: JSON, _now: datetime) -> Cell:
        found: int = _at(obj, path) or 0
        return found

    return cell


def name(obj: JSON, _now: datetime) -> Cell:
    found: str = obj["metadata"]["name"]
    return found


def age(obj: JSON, now: datetime) -> Cell:
    return since(obj["metadata"].get("creationTimestamp"), now)


def created_at(obj: JSON, _now: datetime) -> Cell:
    found: str = obj["metadata"].get("creationTimestamp", "")
    return found


def _containers(obj: JSON) -> list[JSON]:
    spec = obj.get("spec") or {}
    template = (spec.get("jobTemplate") or {}).get("spec", {}).get("template") or spec.get("template") or {}
    found: list[JSON] = (template.get("spec") or {}).get("containers") or []
    return found


def container_names(obj: JSON, _now: datetime) -> Cell:
    return ",".join(container["name"] for container in _containers(obj))


def container_images(obj: JSON, _now: datetime) -> Cell:
    return ",".join(container.get("image", "") for container in _containers(obj))


def selector_text(obj: JSON, _now: datetime) -> Cell:
    selector = (obj.get("spec") or {}).get("selector")
    if not selector:
        return "<none>"
    if {"matchLabels", "matchExpressions"} & set(selector):
        return format_selector(selector)
    return ",".join(f"{key}={selector[key]}" for key in sorted(selector))


def pod_ready(obj: JSON, _now: datetime) -> Cell:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    sidecars = [c["name"] for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"]
    ready = sum(bool(state.get("ready")) for state in status.get("containerStatuses") or [])
    states = status.get("initContainerStatuses") or []
    ready += sum(bool(state.get("ready")) for state in states if state["name"] in sidecars)
    return f"{ready}/{len(spec.get('containers') or []) + len(sidecars)}"


def pod_status(obj: JSON, _now: datetime) -> Cell:
    """The phase, or why a container is not running, or Terminating; as kubectl shows it."""
    status = obj.get("status") or {}
    reason: str = status.get("reason") or status.get("phase") or ""
    initializing = _init_reason(obj, status)
    if initializing:
        reason = initializing
    else:
        running = False
        for state in reversed(status.get("containerStatuses") or []):
            current = state.get("state") or {}
            waiting, ended = current.get("waiting") or {}, current.get("terminated") or {}
            if waiting.get("reason"):
                reason = waiting["reason"]
            elif ended:
                code, signal = ended.get("exitCode", 0), ended.get("signal")
                reason = ended.get("reason") or (f"Signal:{signal}" if signal else f"ExitCode:{code}")
            elif current.get("running") and state.get("ready"):
                running = True
        if reason == "Completed" and running:
            reason = "Running"
    return "Terminating" if obj["metadata"].get("deletionTimestamp") else reason


def _init_reason(obj: JSON, status: JSON) -> str:
    specs = {c["name"]: c for c in (obj.get("spec") or {}).get("initContainers") or []}
    states = status.get("initContainerStatuses") or []
    for index, state in enumerate(states):
        current = state.get("state") or {}
        ended = current.get("terminated")
        if ended and ended.get("exitCode", 0) == 0:
            continue
        if specs.get(state["name"], {}).get("restartPolicy") == "Always" and state.get("started"):
            continue
        if ended:
            return f"Init:{ended.get('reason') or 'ExitCode:' + str(ended.get('exitCode'))}"
        waiting = (current.get("waiting") or {}).get("reason")
        if waiting and waiting != "PodInitializing":
            return f"Init:{waiting}"
        return f"Init:{index}/{len(specs)}"
    return ""


def pod_restarts(obj: JSON, now: datetime) -> Cell:
    states = (obj.get("status") or {}).get("containerStatuses") or []
    restarts = sum(state.get("restartCount", 0) for state in states)
    ended = [((state.get("lastState") or {}).get("terminated") or {}).get("finishedAt") for state in states]
    last = max((moment for moment in ended if moment), default=None)
    return f"{restarts} ({since(last, now)} ago)" if restarts and last else str(restarts)


def job_status(obj: JSON, _now: datetime) -> Cell:
    true = {c["type"] for c in (obj.get("status") or {}).get("conditions") or [] if c["status"] == "True"}
    for kind in ("Complete", "Failed"):
        if kind in true:
            return kind
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    return "Suspended" if "Suspended" in true else "FailureTarget" if "FailureTarget" in true else "Running"


def job_duration(obj: JSON, now: datetime) -> Cell:
    status = obj.get("status") or {}
    start, end = status.get("startTime"), status.get("completionTime")
    if not start:
        return ""
    return since(start, _moment(end) if end else now)


def _moment(value: str) -> datetime:
    return datetime.fromisoformat(value.replace("Z", "+00:00"))


def service_type_ip(obj: JSON, _now: datetime) -> Cell:
    found: str = (obj.get("spec") or {}).get("clusterIP") or "<none>"
    return found


def external_ips(obj: JSON, _now: datetime) -> Cell:
    spec = obj.get("spec") or {}
    if spec.get("type") == "ExternalName":
        external: str = spec.get("externalName", "")
        return external
    given = list(spec.get("externalIPs") or [])
    if spec.get("type") == "LoadBalancer":
        ingress = _at(obj, "status.loadBalancer.ingress") or []
        given += [entry.get("ip") or entry.get("hostname") for entry in ingress]
        return ",".join(given) or "<pending>"
    return ",".join(given) or "<none>"


def ports(obj: JSON, _now: datetime) -> Cell:
    found = []
    for port in (obj.get("spec") or {}).get("ports") or []:
        node = f":{port['nodePort']}" if port.get("nodePort") else ""
        found.append(f"{port['port']}{node}/{port.get('protocol', 'TCP')}")
    return ",".join(found) or "<none>"


def node_status(obj: JSON, _now: datetime) -> Cell:
    conditions = {c["type"]: c["status"] for c in (obj.get("status") or {}).get("conditions") or []}
    words = ["Unknown" if "Ready" not in conditions else "Ready" if conditions["Ready"] == "True" else "NotReady"]
    if (obj.get("spec") or {}).get("unschedulable"):
        words.append("SchedulingDisabled")
    return ",".join(words)


def node_roles(obj: JSON, _now: datetime) -> Cell:
    prefix = "node-role.kubernetes.io/"
    labels = obj["metadata"].get("labels") or {}
    roles = sorted(label.removeprefix(prefix) for label in labels if label.startswith(prefix))
    return ",".join(role for role in roles if role) or "<none>"


def internal_ip(obj: JSON, _now: datetime) -> Cell:
    addresses = (obj.get("status") or {}).get("addresses") or []
    return next((entry["address"] for entry in addresses if entry["type"] == "InternalIP"), "<none>")


def last_seen(obj: JSON, now: datetime) -> Cell:
    series = (obj.get("series") or {}).get("lastObservedTime")
    moment = series or obj.get("lastTimestamp") or obj.get("deprecatedLastTimestamp") or obj.get("eventTime")
    return since(moment or obj.get("firstTimestamp"), now)


def _regarding(obj: JSON) -> JSON:
    found: JSON = obj.get("involvedObject") or obj.get("regarding") or {}
    return found


def event_object(obj: JSON, _now: datetime) -> Cell:
    about = _regarding(obj)
    return f"{about.get('kind', '').lower()}/{about.get('name', '')}"


def event_subobject(obj: JSON, _now: datetime) -> Cell:
    found: str = _regarding(obj).get("fieldPath", "")
    return found


def event_source(obj: JSON, _now: datetime) -> Cell:
    source = obj.get("source") or obj.get("deprecatedSource") or {}
    component = source.get("component") or obj.get("reportingComponent") or obj.get("reportingController") or ""
    return ", ".join(part for part in (component, source.get("host")) if part)


def claimed_duration(obj: JSON, _now: datetime) -> Cell:
    seconds = (obj.get("spec") or {}).get("expirationSeconds")
    return human_duration(seconds) if seconds is not None else "<none>"


def csr_condition(obj: JSON, _now: datetime) -> Cell:
    status = obj.get("status") or {}
    types = [condition["type"] for condition in status.get("conditions") or []]
    words = [kind for kind in ("Approved", "Denied", "Failed") if kind in types]
    if status.get("certificate"):
        words.append("Issued")
    return ",".join(words) or "Pending"


def role_ref(obj: JSON, _now: datetime) -> Cell:
    reference = obj.get("roleRef") or {}
    return f"{reference.get('kind')}/{reference.get('name')}"


def subjects(kind: str) -> Callable[[JSON, datetime], Cell]:
    """Names of the subjects of one kind; service accounts with their namespace."""

    def cell(obj: JSON, _now: datetime) -> Cell:
        found = [subject for subject in obj.get("subjects") or [] if subject.get("kind") == kind]
        if kind == "ServiceAccount":
            return ", ".join(f"{subject.get('namespace', '')}/{subject['name']}" for subject in found)
        return ", ".join(subject["name"] for subject in found)

    return cell
