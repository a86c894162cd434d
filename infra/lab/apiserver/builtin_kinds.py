"""The built-in resources of Kubernetes v1.36 which the server knows, with their names and habits in discovery order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .kinds import STATUS_VERBS, KindInfo, Subresource

if TYPE_CHECKING:
    from collections.abc import Iterator


def _status(kind: str) -> Subresource:
    return Subresource("status", kind, STATUS_VERBS)


_SCALE = Subresource("scale", "Scale", STATUS_VERBS, "autoscaling", "v1")
_PROXY_VERBS = ("create", "delete", "get", "patch", "update")

_POD_SUBRESOURCES = (
    Subresource("attach", "PodAttachOptions", ("create", "get")),
    Subresource("binding", "Binding", ("create",)),
    Subresource("ephemeralcontainers", "Pod", STATUS_VERBS),
    Subresource("eviction", "Eviction", ("create",), "policy", "v1"),
    Subresource("exec", "PodExecOptions", ("create", "get")),
    Subresource("log", "Pod", ("get",)),
    Subresource("portforward", "PodPortForwardOptions", ("create", "get")),
    Subresource("proxy", "PodProxyOptions", _PROXY_VERBS),
    Subresource("resize", "Pod", STATUS_VERBS),
    _status("Pod"),
)
_POD_FIELDS = {
    "spec.nodeName": "spec.nodeName",
    "spec.restartPolicy": "spec.restartPolicy",
    "spec.schedulerName": "spec.schedulerName",
    "spec.serviceAccountName": "spec.serviceAccountName",
    "spec.hostNetwork": "spec.hostNetwork",
    "status.phase": "status.phase",
    "status.podIP": "status.podIP",
    "status.podIPs": "status.podIPs",
    "status.nominatedNodeName": "status.nominatedNodeName",
}
_CORE_EVENT_FIELDS = {
    **{
        f"involvedObject.{name}": f"involvedObject.{name}"
        for name in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
    },
    "reason": "reason",
    "reportingComponent": "reportingComponent",
    "source": "source.component",
    "type": "type",
}


def _core() -> Iterator[KindInfo]:
    def kind(kind: str, plural: str, namespaced: bool = True, **more: object) -> KindInfo:
        return KindInfo("", "v1", kind, plural, namespaced, **more)  # type: ignore[arg-type]  # one table, many columns

    yield KindInfo("", "v1", "Binding", "bindings", True, verbs=("create",), virtual=True)
    yield kind(
        "ComponentStatus",
        "componentstatuses",
        False,
        short_names=("cs",),
        verbs=("get", "list"),
        virtual=True,
        deprecation="v1 ComponentStatus is deprecated in v1.19+",
    )
    yield kind("ConfigMap", "configmaps", short_names=("cm",))
    yield kind(
        "Endpoints",
        "endpoints",
        short_names=("ep",),
        create_on_update=True,
        list_kind="EndpointsList",
        deprecation="v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
    )
    yield kind(
        "Event",
        "events",
        short_names=("ev",),
        fields=_CORE_EVENT_FIELDS,
        create_on_update=True,
    )
    yield kind("LimitRange", "limitranges", short_names=("limits",), create_on_update=True)
    yield kind(
        "Namespace",
        "namespaces",
        False,
        short_names=("ns",),
        verbs=("create", "delete", "get", "list", "patch", "update", "watch"),
        subresources=(Subresource("finalize", "Namespace", ("update",)), _status("Namespace")),
        fields={"status.phase": "status.phase"},
        delete_returns_object=True,
    )
    yield kind(
        "Node",
        "nodes",
        False,
        short_names=("no",),
        subresources=(Subresource("proxy", "NodeProxyOptions", _PROXY_VERBS), _status("Node")),
        fields={"spec.unschedulable": "spec.unschedulable"},
    )
    yield kind(
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        short_names=("pvc",),
        subresources=(_status("PersistentVolumeClaim"),),
        delete_returns_object=True,
    )
    yield kind(
        "PersistentVolume",
        "persistentvolumes",
        False,
        short_names=("pv",),
        subresources=(_status("PersistentVolume"),),
        delete_returns_object=True,
    )
    yield kind(
        "Pod",
        "pods",
        short_names=("po",),
        categories=("all",),
        subresources=_POD_SUBRESOURCES,
        fields=_POD_FIELDS,
        generation=True,
        delete_returns_object=True,
    )
    yield kind("PodTemplate", "podtemplates", delete_returns_object=True, generation=True)
    yield kind(
        "ReplicationController",
        "replicationcontrollers",
        short_names=("rc",),
        subresources=(_SCALE, _status("ReplicationController")),
        fields={"status.replicas": "status.replicas"},
        generation=True,
        categories=("all",),
    )
    yield kind(
        "ResourceQuota",
        "resourcequotas",
        short_names=("quota",),
        subresources=(_status("ResourceQuota"),),
        delete_returns_object=True,
    )
    yield kind("Secret", "secrets", fields={"type": "type"})
    yield kind(
        "ServiceAccount",
        "serviceaccounts",
        short_names=("sa",),
        subresources=(Subresource("token", "TokenRequest", ("create",), "authentication.k8s.io", "v1"),),
        delete_returns_object=True,
    )
    yield kind(
        "Service",
        "services",
        short_names=("svc",),
        categories=("all",),
        subresources=(Subresource("proxy", "ServiceProxyOptions", _PROXY_VERBS), _status("Service")),
        fields={"spec.clusterIP": "spec.clusterIP", "spec.type": "spec.type"},
        create_on_update=True,
        delete_returns_object=True,
    )


def _apps() -> Iterator[KindInfo]:
    def workload(kind: str, plural: str, short: str, scale: bool = True, **more: object) -> KindInfo:
        subresources = (_SCALE, _status(kind)) if scale else (_status(kind),)
        return KindInfo(
            "apps",
            "v1",
            kind,
            plural,
            True,
            short_names=(short,),
            subresources=subresources,
            generation=True,
            categories=("all",),
            **more,  # type: ignore[arg-type]  # one table, many columns
        )

    yield KindInfo("apps", "v1", "ControllerRevision", "controllerrevisions", True)
    yield workload("DaemonSet", "daemonsets", "ds", scale=False)
    yield workload("Deployment", "deployments", "deploy")
    yield workload("ReplicaSet", "replicasets", "rs", fields={"status.replicas": "status.replicas"})
    yield workload("StatefulSet", "statefulsets", "sts")


def _reviews() -> Iterator[KindInfo]:
    authn, authz = "authentication.k8s.io", "authorization.k8s.io"
    for group, kind, plural, namespaced in (
        (authn, "SelfSubjectReview", "selfsubjectreviews", False),
        (authn, "TokenReview", "tokenreviews", False),
        (authz, "LocalSubjectAccessReview", "localsubjectaccessreviews", True),
        (authz, "SelfSubjectAccessReview", "selfsubjectaccessreviews", False),
        (authz, "SelfSubjectRulesReview", "selfsubjectrulesreviews", False),
        (authz, "SubjectAccessReview", "subjectaccessreviews", False),
    ):
        yield KindInfo(group, "v1", kind, plural, namespaced, verbs=("create",), virtual=True)


def _others() -> Iterator[KindInfo]:
    yield KindInfo(
        "events.k8s.io",
        "v1",
        "Event",
        "events",
        True,
        short_names=("ev",),
        create_on_update=True,
        stored_as="events",
        fields={
            **{name.replace("involvedObject", "regarding"): path for name, path in _CORE_EVENT_FIELDS.items()},
            "reportingController": "reportingComponent",
        },
    )
    yield KindInfo(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        True,
        short_names=("hpa",),
        categories=("all",),
        subresources=(_status("HorizontalPodAutoscaler"),),
        generation=True,
    )
    yield KindInfo(
        "batch",
        "v1",
        "CronJob",
        "cronjobs",
        True,
        short_names=("cj",),
        categories=("all",),
        subresources=(_status("CronJob"),),
        generation=True,
    )
    yield KindInfo(
        "batch",
        "v1",
        "Job",
        "jobs",
        True,
        categories=("all",),
        subresources=(_status("Job"),),
        generation=True,
        fields={"status.successful": "status.succeeded"},
    )
    yield KindInfo(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        False,
        short_names=("csr",),
        subresources=(
            Subresource("approval", "CertificateSigningRequest", STATUS_VERBS),
            _status("CertificateSigningRequest"),
        ),
        fields={"spec.signerName": "spec.signerName"},
    )
    net = "networking.k8s.io"
    yield KindInfo(net, "v1", "IngressClass", "ingressclasses", False, generation=True)
    yield KindInfo(
        net,
        "v1",
        "Ingress",
        "ingresses",
        True,
        short_names=("ing",),
        subresources=(_status("Ingress"),),
        generation=True,
    )
    yield KindInfo(net, "v1", "NetworkPolicy", "networkpolicies", True, short_names=("netpol",), generation=True)
    yield KindInfo(
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        True,
        short_names=("pdb",),
        subresources=(_status("PodDisruptionBudget"),),
        generation=True,
        # strategy.AllowUnconditionalUpdate is false for budgets
        unconditional_update=False,
    )
    rbac = "rbac.authorization.k8s.io"
    for kind, plural, namespaced in (
        ("ClusterRoleBinding", "clusterrolebindings", False),
        ("ClusterRole", "clusterroles", False),
        ("RoleBinding", "rolebindings", True),
        ("Role", "roles", True),
    ):
        yield KindInfo(rbac, "v1", kind, plural, namespaced, create_on_update=True)
    storage = "storage.k8s.io"
    yield KindInfo(storage, "v1", "CSIDriver", "csidrivers", False)
    yield KindInfo(
        storage, "v1", "StorageClass", "storageclasses", False, short_names=("sc",), delete_returns_object=True
    )
    admission = "admissionregistration.k8s.io"
    for kind, plural in (
        ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
        ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
    ):
        yield KindInfo(admission, "v1", kind, plural, False, categories=("api-extensions",), generation=True)
    yield KindInfo(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        False,
        short_names=("crd", "crds"),
        categories=("api-extensions",),
        subresources=(_status("CustomResourceDefinition"),),
        generation=True,
        unconditional_update=False,
        delete_returns_object=False,
    )
    yield KindInfo(
        "apiregistration.k8s.io",
        "v1",
        "APIService",
        "apiservices",
        False,
        categories=("api-extensions",),
        subresources=(_status("APIService"),),
        unconditional_update=False,
    )
    yield KindInfo(
        "scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", False, short_names=("pc",), generation=True
    )
    yield KindInfo(
        "coordination.k8s.io", "v1", "Lease", "leases", True, unconditional_update=False, create_on_update=True
    )
    yield KindInfo("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", False)
    yield KindInfo("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", True, generation=True)


def builtin_kinds() -> Iterator[KindInfo]:
    """Every built-in resource, group by group in discovery order."""
    yield from _core()
    yield from _apps()
    yield from _reviews()
    yield from _others()
