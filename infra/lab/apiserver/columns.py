"""The columns each kind shows in a Table, as ``kubectl get`` of Kubernetes v1.36 prints them.

A kind without columns of its own shows name and age; a custom resource shows its ``additionalPrinterColumns``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .cells import (
    age,
    claimed_duration,
    container_images,
    container_names,
    count,
    created_at,
    csr_condition,
    event_object,
    event_source,
    event_subobject,
    external_ips,
    internal_ip,
    job_duration,
    job_status,
    last_seen,
    name,
    node_roles,
    node_status,
    pod_ready,
    pod_restarts,
    pod_status,
    ports,
    role_ref,
    selector_text,
    service_type_ip,
    subjects,
    text,
)
from .table import Column, since

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from .kinds import KindInfo
    from .table import Cell

NAME = Column("Name", name, format="name", description="Name, unique within a namespace; it cannot be updated.")
AGE = Column("Age", age, description="Time since the creationTimestamp.")
CONTAINERS = Column("Containers", container_names, description="Names of each container in the template.", priority=1)
IMAGES = Column("Images", container_images, description="Images of each container in the template.", priority=1)
SELECTOR = Column("Selector", selector_text, description="Label selector for pods.", priority=1)
CREATED = Column("Created At", created_at, type="date", description="The creationTimestamp.")


def _integer(title: str, path: str) -> Column:
    return Column(title, count(path), type="integer")


def _ready_of(ready: str, wanted: str) -> Callable[[dict[str, Any], datetime], Cell]:
    def cell(obj: dict[str, Any], now: datetime) -> Cell:
        return f"{count(ready)(obj, now)}/{count(wanted)(obj, now)}"

    return cell


COLUMNS: dict[str, list[Column]] = {
    "pods": [
        NAME,
        Column("Ready", pod_ready, description="Number of the containers with ready state."),
        Column("Status", pod_status, description="The state of the pod, with the reason when there is one."),
        Column("Restarts", pod_restarts, description="Number of times the containers have been restarted."),
        AGE,
        Column("IP", text("status.podIP", "<none>"), priority=1),
        Column("Node", text("spec.nodeName", "<none>"), priority=1),
        Column("Nominated Node", text("status.nominatedNodeName", "<none>"), priority=1),
        Column("Readiness Gates", lambda _obj, _now: "<none>", priority=1),
    ],
    "deployments.apps": [
        NAME,
        Column("Ready", _ready_of("status.readyReplicas", "spec.replicas"), description="Pods with ready state."),
        Column("Up-to-date", count("status.updatedReplicas"), description="Pods of the desired template."),
        Column("Available", count("status.availableReplicas"), description="Pods ready for at least minReadySeconds."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    "replicasets.apps": [
        NAME,
        _integer("Desired", "spec.replicas"),
        _integer("Current", "status.replicas"),
        _integer("Ready", "status.readyReplicas"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    "replicationcontrollers": [
        NAME,
        _integer("Desired", "spec.replicas"),
        _integer("Current", "status.replicas"),
        _integer("Ready", "status.readyReplicas"),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    "daemonsets.apps": [
        NAME,
        _integer("Desired", "status.desiredNumberScheduled"),
        _integer("Current", "status.currentNumberScheduled"),
        _integer("Ready", "status.numberReady"),
        _integer("Up-to-date", "status.updatedNumberScheduled"),
        _integer("Available", "status.numberAvailable"),
        Column("Node Selector", text("spec.template.spec.nodeSelector", "<none>")),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    "statefulsets.apps": [
        NAME,
        Column("Ready", _ready_of("status.readyReplicas", "spec.replicas"), description="Pods with ready state."),
        AGE,
        CONTAINERS,
        IMAGES,
    ],
    "jobs.batch": [
        NAME,
        Column("Status", job_status),
        Column("Completions", _ready_of("status.succeeded", "spec.completions")),
        Column("Duration", job_duration),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    "cronjobs.batch": [
        NAME,
        Column("Schedule", text("spec.schedule")),
        Column("Timezone", text("spec.timeZone", "<none>")),
        Column("Suspend", lambda obj, _now: str(bool((obj.get("spec") or {}).get("suspend")))),
        Column("Active", lambda obj, _now: len((obj.get("status") or {}).get("active") or []), type="integer"),
        Column(
            "Last Schedule",
            lambda obj, now: since((obj.get("status") or {}).get("lastScheduleTime"), now, "<none>"),
        ),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    "controllerrevisions.apps": [
        NAME,
        Column(
            "Controller",
            lambda obj, _now: next(
                (
                    f"{owner['kind'].lower()}.{owner['apiVersion'].partition('/')[0]}/{owner['name']}"
                    for owner in obj["metadata"].get("ownerReferences") or []
                    if owner.get("controller")
                ),
                "<none>",
            ),
        ),
        Column("Revision", lambda obj, _now: obj.get("revision", 0), type="integer"),
        AGE,
    ],
    "services": [
        NAME,
        Column("Type", text("spec.type")),
        Column("Cluster-IP", service_type_ip),
        Column("External-IP", external_ips),
        Column("Port(s)", ports),
        AGE,
        Column("Selector", selector_text, priority=1),
    ],
    "secrets": [
        NAME,
        Column("Type", text("type"), description="Facilitates programmatic handling of secret data."),
        Column("Data", lambda obj, _now: len(obj.get("data") or {}), description="Number of entries."),
        AGE,
    ],
    "configmaps": [
        NAME,
        Column("Data", lambda obj, _now: len(obj.get("data") or {}) + len(obj.get("binaryData") or {})),
        AGE,
    ],
    "serviceaccounts": [NAME, Column("Secrets", lambda obj, _now: len(obj.get("secrets") or [])), AGE],
    "namespaces": [NAME, Column("Status", text("status.phase")), AGE],
    "nodes": [
        NAME,
        Column("Status", node_status),
        Column("Roles", node_roles),
        AGE,
        Column("Version", text("status.nodeInfo.kubeletVersion")),
        Column("Internal-IP", internal_ip, priority=1),
        Column("External-IP", lambda _obj, _now: "<none>", priority=1),
        Column("OS-Image", text("status.nodeInfo.osImage", "<unknown>"), priority=1),
        Column("Kernel-Version", text("status.nodeInfo.kernelVersion", "<unknown>"), priority=1),
        Column("Container-Runtime", text("status.nodeInfo.containerRuntimeVersion", "<unknown>"), priority=1),
    ],
    "events": [
        Column("Last Seen", last_seen),
        Column("Type", text("type")),
        Column("Reason", text("reason")),
        Column("Object", event_object),
        Column("Subobject", event_subobject, priority=1),
        Column("Source", event_source, priority=1),
        Column("Message", lambda obj, _now: str(obj.get("message", obj.get("note", ""))).strip()),
        Column(
            "First Seen", lambda obj, now: since(obj.get("firstTimestamp") or obj.get("eventTime"), now), priority=1
        ),
        Column("Count", lambda obj, _now: obj.get("count") or 1, priority=1),
        Column("Name", name, format="name", priority=1),
    ],
    "leases.coordination.k8s.io": [NAME, Column("Holder", text("spec.holderIdentity")), AGE],
    "poddisruptionbudgets.policy": [
        NAME,
        Column("Min Available", text("spec.minAvailable", "N/A")),
        Column("Max Unavailable", text("spec.maxUnavailable", "N/A")),
        _integer("Allowed Disruptions", "status.disruptionsAllowed"),
        AGE,
    ],
    "certificatesigningrequests.certificates.k8s.io": [
        NAME,
        AGE,
        Column("SignerName", text("spec.signerName")),
        Column("Requestor", text("spec.username")),
        Column("RequestedDuration", claimed_duration),
        Column("Condition", csr_condition),
    ],
    "customresourcedefinitions.apiextensions.k8s.io": [NAME, CREATED],
    "roles.rbac.authorization.k8s.io": [NAME, CREATED],
    "clusterroles.rbac.authorization.k8s.io": [NAME, CREATED],
    "rolebindings.rbac.authorization.k8s.io": [
        NAME,
        Column("Role", role_ref),
        AGE,
        Column("Users", subjects("User"), priority=1),
        Column("Groups", subjects("Group"), priority=1),
        Column("ServiceAccounts", subjects("ServiceAccount"), priority=1),
    ],
    "mutatingwebhookconfigurations.admissionregistration.k8s.io": [
        NAME,
        Column("Webhooks", lambda obj, _now: len(obj.get("webhooks") or []), type="integer"),
        AGE,
    ],
    "priorityclasses.scheduling.k8s.io": [
        NAME,
        Column("Value", lambda obj, _now: obj.get("value", 0), type="integer"),
        Column("Global-Default", lambda obj, _now: bool(obj.get("globalDefault")), type="boolean"),
        AGE,
        Column("PreemptionPolicy", text("preemptionPolicy")),
    ],
    "apiservices.apiregistration.k8s.io": [
        NAME,
        Column(
            "Service",
            lambda obj, _now: (
                "{namespace}/{name}".format(**obj["spec"]["service"]) if obj["spec"].get("service") else "Local"
            ),
        ),
        Column(
            "Available",
            lambda obj, _now: next(
                (
                    c["status"] if c["status"] == "True" else f"{c['status']} ({c.get('reason')})"
                    for c in (obj.get("status") or {}).get("conditions") or []
                    if c["type"] == "Available"
                ),
                "Unknown",
            ),
        ),
        AGE,
    ],
}
for _same, _as in (
    ("clusterrolebindings.rbac.authorization.k8s.io", "rolebindings.rbac.authorization.k8s.io"),
    (
        "validatingwebhookconfigurations.admissionregistration.k8s.io",
        "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    ),
    ("events.events.k8s.io", "events"),
):
    COLUMNS[_same] = COLUMNS[_as]


def columns_of(kind: KindInfo) -> list[Column]:
    """The columns of a kind, in order."""
    if kind.custom and kind.printer_columns:
        return [NAME, *(_printer_column(dict(column)) for column in kind.printer_columns)]
    return COLUMNS.get(kind.resource, [NAME, AGE])


def _printer_column(column: dict[str, Any]) -> Column:
    path, kind = column["jsonPath"], column.get("type", "string")

    def cell(obj: dict[str, Any], now: datetime) -> Cell:
        found = json_path(obj, path)
        if not found:
            return None if kind != "string" else ""
        if kind == "date":
            return since(found[0], now)
        if kind in ("integer", "number", "boolean"):
            return found[0]  # type: ignore[no-any-return]  # a JSON scalar, as the schema has it
        return ",".join(str(value) for value in found)

    return Column(
        column["name"],
        cell,
        type=kind,
        format=column.get("format", ""),
        description=column.get("description") or f"Custom resource definition column (in JSONPath format): {path}",
        priority=column.get("priority", 0),
    )


_STEP = re.compile(
    r"""\.(?P<key>[\w$-]+) | \[(?P<index>-?\d+|\*)\] | \['(?P<quoted>[^']*)'\]
      | \[\?\(@\.(?P<field>[\w.-]+)\s*==\s*["'](?P<value>[^"']*)["']\)\]""",
    re.VERBOSE,
)


def json_path(obj: Any, path: str) -> list[Any]:
    """Values at a JSONPath of the kind printer columns use: keys, indexes, ``[*]`` and equality filters."""
    found: list[Any] = [obj]
    for step in _STEP.finditer(path.replace("\\.", "\0")):
        key = step["key"] or step["quoted"]
        if key is not None:
            key = key.replace("\0", ".")
            found = [value[key] for value in found if isinstance(value, dict) and key in value]
        elif step["index"] == "*":
            found = [item for value in found if isinstance(value, list) for item in value]
        elif step["index"] is not None:
            at = int(step["index"])
            found = [value[at] for value in found if isinstance(value, list) and -len(value) <= at < len(value)]
        else:
            found = [
                item
                for value in found
                if isinstance(value, list)
                for item in value
                if isinstance(item, dict) and str(item.get(step["field"])) == step["value"]
            ]
    return [value for value in found if value is not None]
