"""What the server fills in when a client leaves it out (Kubernetes v1.36 API reference), kind by kind.

Defaults are applied whenever an object is read in, not only at creation: a patch that removes a defaulted field gets
the default back.
"""

from __future__ import annotations

import base64
import copy
from typing import TYPE_CHECKING, Any

from infra.lab.apiserver import schema, schema_codec
from infra.lab.apiserver.defaults_pod import (
    child,
    default,
    default_unset,
    items,
    pod,
    pod_spec,
    pod_template,
)
from infra.lab.apiserver.status import internal_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.apiserver.kinds import KindInfo

Object = dict[str, Any]

RBAC = "rbac.authorization.k8s.io"
_MAX_INT32 = 2**31 - 1


def apply_defaults(kind: KindInfo, obj: Object) -> None:
    """Fill in the defaults of a built-in kind and bring the object into the form the server answers. In place.

    The form: fields in the order of the API's types, empty optional ones left out, others spelled out (``status: {}``).
    Custom resources are left alone; their defaults are in their CustomResourceDefinition (`custom_schema`). Raises
    ApiStatusError 500 for an object that does not fit its type.
    """
    struct = None if kind.custom else schema.find_struct(kind.group, kind.version, kind.kind)
    if struct is None:
        return
    rule = _RULES.get((kind.group, kind.kind))
    if rule is not None:
        rule(obj)
    try:
        tidy = schema_codec.normalise(struct, obj)
    except schema_codec.DecodeError as error:
        # only a webhook's patch can bring an object of the wrong shape this far
        raise internal_error(str(error)) from None
    obj.clear()
    obj.update(tidy)


def _pod(obj: Object) -> None:
    spec = child(obj, "spec")
    pod_spec(spec)
    pod(spec)
    default(child(obj, "status"), "phase", "Pending")


def _deployment(obj: Object) -> None:
    spec = child(obj, "spec")
    default_unset(spec, "replicas", 1)
    strategy = child(spec, "strategy")
    default(strategy, "type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = child(strategy, "rollingUpdate")
        default_unset(rolling, "maxUnavailable", "25%")
        default_unset(rolling, "maxSurge", "25%")
    default_unset(spec, "revisionHistoryLimit", 10)
    default_unset(spec, "progressDeadlineSeconds", 600)
    pod_template(child(spec, "template"))


def _replica_set(obj: Object) -> None:
    spec = child(obj, "spec")
    default_unset(spec, "replicas", 1)
    pod_template(child(spec, "template"))


def _replication_controller(obj: Object) -> None:
    spec = child(obj, "spec")
    default_unset(spec, "replicas", 1)
    template = spec.get("template")
    if isinstance(template, dict):
        pod_template(template)
        labels = (template.get("metadata") or {}).get("labels")
        if labels:
            default_map(spec, "selector", labels)
            default_map(child(obj, "metadata"), "labels", labels)


def default_map(obj: Object, field: str, value: Object) -> None:
    """Copy `value` into a map field that is absent or empty."""
    if not obj.get(field):
        obj[field] = copy.deepcopy(value)


def _daemon_set(obj: Object) -> None:
    spec = child(obj, "spec")
    strategy = child(spec, "updateStrategy")
    default(strategy, "type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = child(strategy, "rollingUpdate")
        default_unset(rolling, "maxUnavailable", 1)
        default_unset(rolling, "maxSurge", 0)
    default_unset(spec, "revisionHistoryLimit", 10)
    pod_template(child(spec, "template"))


def _stateful_set(obj: Object) -> None:
    spec = child(obj, "spec")
    default_unset(spec, "replicas", 1)
    default(spec, "podManagementPolicy", "OrderedReady")
    strategy = child(spec, "updateStrategy")
    if not strategy.get("type"):
        # An explicit type without its parameters stays without them.
        strategy["type"] = "RollingUpdate"
        child(strategy, "rollingUpdate")
    if strategy["type"] == "RollingUpdate" and "rollingUpdate" in strategy:
        default_unset(child(strategy, "rollingUpdate"), "partition", 0)
    default_unset(spec, "revisionHistoryLimit", 10)
    retention = child(spec, "persistentVolumeClaimRetentionPolicy")
    default(retention, "whenDeleted", "Retain")
    default(retention, "whenScaled", "Retain")
    for claim in items(spec, "volumeClaimTemplates"):
        default(claim, "kind", "PersistentVolumeClaim")
        default(claim, "apiVersion", "v1")
        _claim(claim)
    pod_template(child(spec, "template"))


def _claim(obj: Object) -> None:
    default_unset(child(obj, "spec"), "volumeMode", "Filesystem")
    default(child(obj, "status"), "phase", "Pending")


def _volume(obj: Object) -> None:
    default(child(obj, "status"), "phase", "Pending")
    spec = child(obj, "spec")
    default(spec, "persistentVolumeReclaimPolicy", "Retain")
    default_unset(spec, "volumeMode", "Filesystem")
    if isinstance(spec.get("hostPath"), dict):
        default_unset(spec["hostPath"], "type", "")


def _job_spec(spec: Object) -> None:
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = spec["parallelism"] = 1
    default_unset(spec, "parallelism", 1)
    default_unset(spec, "backoffLimit", 6 if spec.get("backoffLimitPerIndex") is None else _MAX_INT32)
    default_unset(spec, "completionMode", "NonIndexed")
    default_unset(spec, "suspend", False)
    default_unset(spec, "manualSelector", False)
    failure = spec.get("podFailurePolicy")
    for rule in items(failure or {}, "rules"):
        for pattern in items(rule, "onPodConditions"):
            default(pattern, "status", "True")
    default_unset(spec, "podReplacementPolicy", "Failed" if failure else "TerminatingOrFailed")


def _job(obj: Object) -> None:
    spec = child(obj, "spec")
    _job_spec(spec)
    template = child(spec, "template")
    labels = (template.get("metadata") or {}).get("labels")
    if labels:
        default_map(child(obj, "metadata"), "labels", labels)
    pod_template(template)


def _cron_job(obj: Object) -> None:
    spec = child(obj, "spec")
    default(spec, "concurrencyPolicy", "Allow")
    default_unset(spec, "suspend", False)
    default_unset(spec, "successfulJobsHistoryLimit", 3)
    default_unset(spec, "failedJobsHistoryLimit", 1)
    pod_template(child(child(child(spec, "jobTemplate"), "spec"), "template"))


_CLIENT_IP_SECONDS = 10800


def _service(obj: Object) -> None:
    spec = child(obj, "spec")
    default(spec, "sessionAffinity", "None")
    if spec["sessionAffinity"] == "None":
        spec.pop("sessionAffinityConfig", None)
    elif spec["sessionAffinity"] == "ClientIP":
        default_unset(child(child(spec, "sessionAffinityConfig"), "clientIP"), "timeoutSeconds", _CLIENT_IP_SECONDS)
    default(spec, "type", "ClusterIP")
    for port in items(spec, "ports"):
        default(port, "protocol", "TCP")
        default(port, "targetPort", port.get("port"))
    external = spec["type"] in ("NodePort", "LoadBalancer")
    if external or (spec["type"] == "ClusterIP" and spec.get("externalIPs")):
        default(spec, "externalTrafficPolicy", "Cluster")
    if external or spec["type"] == "ClusterIP":
        default_unset(spec, "internalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer":
        default_unset(spec, "allocateLoadBalancerNodePorts", True)


def _secret(obj: Object) -> None:
    default(obj, "type", "Opaque")
    plain = obj.pop("stringData", None)
    if plain:
        # write-only: every key replaces the one in data
        data = child(obj, "data")
        for key, value in plain.items():
            data[key] = base64.b64encode(str(value).encode()).decode()


def _namespace(obj: Object) -> None:
    metadata = child(obj, "metadata")
    if metadata.get("name"):
        child(metadata, "labels")["kubernetes.io/metadata.name"] = metadata["name"]
    default(child(obj, "status"), "phase", "Active")


def _node(obj: Object) -> None:
    status = child(obj, "status")
    if status.get("capacity"):
        default_map(status, "allocatable", status["capacity"])


def _endpoints(obj: Object) -> None:
    for subset in items(obj, "subsets"):
        for port in items(subset, "ports"):
            default(port, "protocol", "TCP")


def _endpoint_slice(obj: Object) -> None:
    for port in items(obj, "ports"):
        default_unset(port, "name", "")
        default_unset(port, "protocol", "TCP")


def _limit_range(obj: Object) -> None:
    for item in items(child(obj, "spec"), "limits"):
        if item.get("type") == "Container":
            limits, requests = child(item, "default"), child(item, "defaultRequest")
            for source, target in ((item.get("max"), limits), (limits, requests), (item.get("min"), requests)):
                for name, amount in (source or {}).items():
                    target.setdefault(name, amount)


def _binding(obj: Object) -> None:
    default(child(obj, "roleRef"), "apiGroup", RBAC)
    for subject in items(obj, "subjects"):
        if subject.get("kind") in ("User", "Group"):
            default(subject, "apiGroup", RBAC)


def _webhooks(*, mutating: bool) -> Callable[[Object], None]:
    def rule(obj: Object) -> None:
        for webhook in items(obj, "webhooks"):
            service = child(webhook, "clientConfig").get("service")
            if isinstance(service, dict):
                default_unset(service, "port", 443)
            for match in items(webhook, "rules"):
                default_unset(match, "scope", "*")
            default_unset(webhook, "failurePolicy", "Fail")
            default_unset(webhook, "matchPolicy", "Equivalent")
            default_unset(webhook, "namespaceSelector", {})
            default_unset(webhook, "objectSelector", {})
            default_unset(webhook, "timeoutSeconds", 10)
            if mutating:
                default_unset(webhook, "reinvocationPolicy", "Never")

    return rule


def _custom_resource_definition(obj: Object) -> None:
    spec = child(obj, "spec")
    names = child(spec, "names")
    kind = names.get("kind") or ""
    if kind:
        default(names, "singular", kind.lower())
        default(names, "listKind", f"{kind}List")
    conversion = child(spec, "conversion")
    default(conversion, "strategy", "None")
    service = ((conversion.get("webhook") or {}).get("clientConfig") or {}).get("service")
    if isinstance(service, dict):
        default_unset(service, "port", 443)


def _api_service(obj: Object) -> None:
    service = child(obj, "spec").get("service")
    if isinstance(service, dict):
        default_unset(service, "port", 443)


def _network_policy(obj: Object) -> None:
    spec = child(obj, "spec")
    default_unset(spec, "policyTypes", ["Ingress", *(["Egress"] if spec.get("egress") else [])])
    for direction in ("ingress", "egress"):
        for rule in items(spec, direction):
            for port in items(rule, "ports"):
                default_unset(port, "protocol", "TCP")


def _storage_class(obj: Object) -> None:
    default_unset(obj, "reclaimPolicy", "Delete")
    default_unset(obj, "volumeBindingMode", "Immediate")


def _priority_class(obj: Object) -> None:
    default_unset(obj, "preemptionPolicy", "PreemptLowerPriority")


def _token_request(obj: Object) -> None:
    default_unset(child(obj, "spec"), "expirationSeconds", 3600)


def _autoscaler(obj: Object) -> None:
    spec = child(obj, "spec")
    default_unset(spec, "minReplicas", 1)
    if not spec.get("metrics"):
        target = {"type": "Utilization", "averageUtilization": 80}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]


def _csi_driver(obj: Object) -> None:
    spec = child(obj, "spec")
    default_unset(spec, "attachRequired", True)
    for field in ("podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"):
        default_unset(spec, field, False)
    default_unset(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType")
    default_unset(spec, "volumeLifecycleModes", ["Persistent"])


_RULES: dict[tuple[str, str], Callable[[Object], None]] = {
    ("", "Pod"): _pod,
    ("", "PodTemplate"): lambda obj: pod_template(child(obj, "template")),
    ("", "ReplicationController"): _replication_controller,
    ("", "Service"): _service,
    ("", "Secret"): _secret,
    ("", "Namespace"): _namespace,
    ("", "Node"): _node,
    ("", "Endpoints"): _endpoints,
    ("", "LimitRange"): _limit_range,
    ("", "PersistentVolumeClaim"): _claim,
    ("", "PersistentVolume"): _volume,
    ("apps", "Deployment"): _deployment,
    ("apps", "ReplicaSet"): _replica_set,
    ("apps", "DaemonSet"): _daemon_set,
    ("apps", "StatefulSet"): _stateful_set,
    ("batch", "Job"): _job,
    ("batch", "CronJob"): _cron_job,
    ("discovery.k8s.io", "EndpointSlice"): _endpoint_slice,
    (RBAC, "RoleBinding"): _binding,
    (RBAC, "ClusterRoleBinding"): _binding,
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"): _webhooks(mutating=True),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"): _webhooks(mutating=False),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _custom_resource_definition,
    ("apiregistration.k8s.io", "APIService"): _api_service,
    ("networking.k8s.io", "NetworkPolicy"): _network_policy,
    ("storage.k8s.io", "StorageClass"): _storage_class,
    ("storage.k8s.io", "CSIDriver"): _csi_driver,
    ("scheduling.k8s.io", "PriorityClass"): _priority_class,
    ("authentication.k8s.io", "TokenRequest"): _token_request,
    ("autoscaling", "HorizontalPodAutoscaler"): _autoscaler,
}
