"""Whether an object may be stored, and if not, why: the causes of a 422 in the order and words of a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.apiserver import validation_containers as containers
from infra.lab.apiserver import validation_core as core
from infra.lab.apiserver import validation_crd as crd
from infra.lab.apiserver import validation_extensions as extensions
from infra.lab.apiserver import validation_meta as meta
from infra.lab.apiserver import validation_network as network
from infra.lab.apiserver import validation_pods as pods
from infra.lab.apiserver import validation_small as small
from infra.lab.apiserver import validation_status
from infra.lab.apiserver import validation_workloads as workloads
from infra.lab.apiserver.status import Cause, invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.apiserver.kinds import KindInfo

Object = dict[str, Any]


def _pod(new: Object, old: Object | None) -> list[Cause]:
    return pods.pod_spec(new.get("spec") or {}, "spec") if old is None else pods.pod_update(new, old)


# (group, kind) -> rule for what is particular to it
_RULES: dict[tuple[str, str], Callable[[Object, Object | None], list[Cause]]] = {
    ("", "ConfigMap"): core.config_map,
    ("", "Event"): core.core_event,
    ("", "Pod"): _pod,
    ("", "Secret"): core.secret,
    ("", "Service"): core.service,
    ("", "Endpoints"): network.endpoints,
    ("", "Node"): small.node,
    ("", "PersistentVolume"): small.volume,
    ("", "PersistentVolumeClaim"): small.claim,
    ("", "PodTemplate"): small.pod_template_kind,
    ("", "ReplicationController"): small.replication_controller,
    ("events.k8s.io", "Event"): core.event,
    ("coordination.k8s.io", "Lease"): core.lease,
    ("apps", "ControllerRevision"): small.controller_revision,
    ("apps", "DaemonSet"): workloads.daemon_set,
    ("apps", "Deployment"): workloads.deployment,
    ("apps", "ReplicaSet"): workloads.replica_set,
    ("apps", "StatefulSet"): workloads.stateful_set,
    ("autoscaling", "HorizontalPodAutoscaler"): small.autoscaler,
    ("batch", "CronJob"): workloads.cron_job,
    ("batch", "Job"): workloads.job,
    ("discovery.k8s.io", "EndpointSlice"): network.endpoint_slice,
    ("networking.k8s.io", "Ingress"): network.ingress,
    ("networking.k8s.io", "NetworkPolicy"): network.network_policy,
    ("scheduling.k8s.io", "PriorityClass"): small.priority_class,
    ("storage.k8s.io", "StorageClass"): small.storage_class,
    ("policy", "PodDisruptionBudget"): workloads.pod_disruption_budget,
    (core.RBAC, "ClusterRole"): core.cluster_role,
    (core.RBAC, "ClusterRoleBinding"): core.cluster_role_binding,
    (core.RBAC, "Role"): core.role,
    (core.RBAC, "RoleBinding"): core.role_binding,
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"): extensions.webhooks,
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"): extensions.webhooks,
    ("apiregistration.k8s.io", "APIService"): extensions.api_service,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): crd.custom_resource_definition,
}

# Names are DNS subdomains, but for these
_NAME_RULES: dict[tuple[str, str], meta.NameRule] = {
    ("", "Namespace"): meta.name_is_label,
    ("", "Service"): meta.name_is_label_1035,
    ("apiregistration.k8s.io", "APIService"): meta.path_segment,
    ("certificates.k8s.io", "CertificateSigningRequest"): meta.path_segment,
    **dict.fromkeys(
        ((core.RBAC, kind) for kind in ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")), meta.path_segment
    ),
}

# How often an update makes the real server look at metadata, as a whole and for changes: a fault is found each time
_CHECKS_OF_UPDATE: dict[tuple[str, str], tuple[int, int]] = {
    ("apps", "Deployment"): (1, 2),
    ("apps", "StatefulSet"): (1, 2),
    ("batch", "CronJob"): (1, 2),
    ("batch", "Job"): (1, 2),
    ("policy", "PodDisruptionBudget"): (1, 1),
    ("coordination.k8s.io", "Lease"): (1, 2),
}


def validate(kind: KindInfo, new: Object, old: Object | None = None, subresource: str = "") -> None:
    """Raise ApiStatusError 422 with all causes when `new` may not be stored (in place of `old`, for an update)."""
    if found := causes(kind, new, old, subresource):
        # events of either group are validated as core events, and say so
        group = "" if kind.stored_as == "events" else kind.group
        raise invalid(kind.kind, (new.get("metadata") or {}).get("name") or "", found, group)


def causes(kind: KindInfo, new: Object, old: Object | None = None, subresource: str = "") -> list[Cause]:
    """What is wrong with an object, apart from what a custom resource's schema says of it.

    A subresource only changes part of the object, so only metadata is looked at there.
    """
    metadata = new.get("metadata") or {}
    key = (kind.group, kind.kind)
    rule = _RULES.get(key)
    name_rule = _NAME_RULES.get(key, meta.name_is_subdomain)
    out: list[Cause] = []
    if old is None:
        out += meta.object_meta(metadata, namespaced=kind.namespaced, name_rule=name_rule, core=not kind.custom)
        out += rule(new, None) if rule else []
    else:
        whole, changes = _CHECKS_OF_UPDATE.get(key, (2, 2))
        checked = meta.object_meta(metadata, namespaced=kind.namespaced, name_rule=meta.path_segment, core=False)
        out += checked
        out += meta.object_meta_update(metadata, old.get("metadata") or {}) * changes
        if whole > 1:
            out += checked
        if rule and not subresource:
            out += rule(new, old)
        if subresource == "status" and key in validation_status.RULES:
            out += validation_status.RULES[key](new)
        if subresource == "ephemeralcontainers":
            out += containers.debugging_update(new, old)
        if key == ("", "Namespace") and subresource == "finalize":
            out += core.namespace_finalizers(new)
    return out
