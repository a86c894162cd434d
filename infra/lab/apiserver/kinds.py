"""The resources the server knows: built-in kinds and those added by CustomResourceDefinitions."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
STATUS_VERBS = ("get", "patch", "update")


SCALE_PATHS = {"spec": "spec.replicas", "status": "status.replicas", "selector": "spec.selector"}


@dataclass(frozen=True)
class Subresource:
    """``pods/log``: `group`, `version` and `kind` describe the object sent or answered."""

    name: str
    kind: str
    verbs: tuple[str, ...]
    group: str = ""
    version: str = ""


@dataclass(frozen=True)
class KindInfo:
    """One resource. Names as in discovery; `group` is empty for the core group."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: tuple[Subresource, ...] = ()
    list_kind: str = ""
    # metadata.generation counts changes of the specification
    generation: bool = False
    # a PUT without resourceVersion overwrites whatever is there
    unconditional_update: bool = True
    # a PUT on a missing name creates it
    create_on_update: bool = False
    # DELETE answers the object instead of a Status
    delete_returns_object: bool = False
    # field selectors beside metadata.name and metadata.namespace: label -> path in the object
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)
    # served but never stored (reviews)
    virtual: bool = False
    # from a CustomResourceDefinition: no strategic merge patch, items of lists carry kind and apiVersion
    custom: bool = False
    # storage key when it is not this resource's own: events.k8s.io/events are the core events in other words
    stored_as: str = ""
    # custom resources: the version objects are stored in, the schema, the columns of tables
    storage_version: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    printer_columns: tuple[Mapping[str, Any], ...] = field(default=(), hash=False, repr=False)
    # where the scale subresource finds replicas and selector ("spec", "status", "selector" -> dotted path)
    scale_paths: Mapping[str, str] = field(default_factory=lambda: SCALE_PATHS, hash=False)

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """Qualified name: ``deployments.apps``, ``pods``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def storage(self) -> str:
        """Key under which the store keeps the objects."""
        return self.stored_as or self.resource

    @property
    def group_kind(self) -> str:
        return f"{self.kind}.{self.group}" if self.group else self.kind

    @property
    def listed_as(self) -> str:
        return self.list_kind or f"{self.kind}List"

    @property
    def singular_name(self) -> str:
        return self.singular or self.kind.lower()

    @property
    def has_status(self) -> bool:
        return self.subresource("status") is not None

    def subresource(self, name: str) -> Subresource | None:
        return next((sub for sub in self.subresources if sub.name == name), None)

    @property
    def storage_hash(self) -> str:
        """``storageVersionHash`` of discovery: the first 8 bytes of SHA-256 over group, version and kind."""
        digest = hashlib.sha256(f"{self.group}/{self.version}/{self.kind}".encode()).digest()
        return base64.b64encode(digest[:8]).decode()


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
    yield kind("ComponentStatus", "componentstatuses", False, short_names=("cs",), verbs=("get", "list"), virtual=True)
    yield kind("ConfigMap", "configmaps", short_names=("cm",))
    yield kind("Endpoints", "endpoints", short_names=("ep",), create_on_update=True, list_kind="EndpointsList")
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


class Registry:
    """All kinds served, in discovery order (built-in groups first, custom ones by the time they were added)."""

    def __init__(self) -> None:
        self._by_path: dict[tuple[str, str, str], KindInfo] = {}
        for kind in (*_core(), *_apps(), *_reviews(), *_others()):
            self.add(kind)

    def __iter__(self) -> Iterator[KindInfo]:
        return iter(self._by_path.values())

    def add(self, kind: KindInfo) -> None:
        self._by_path[(kind.group, kind.version, kind.plural)] = kind

    def remove(self, group: str, version: str, plural: str) -> None:
        self._by_path.pop((group, version, plural), None)

    def find(self, group: str, version: str, plural: str) -> KindInfo | None:
        """The resource at ``/apis/GROUP/VERSION/.../PLURAL``."""
        return self._by_path.get((group, version, plural))

    def by_kind(self, group: str, kind: str, version: str = "") -> KindInfo | None:
        """The first resource of that Kind (any version when `version` is empty)."""
        return next(
            (k for k in self if k.group == group and k.kind == kind and version in ("", k.version)),
            None,
        )

    def by_resource(self, resource: str) -> KindInfo | None:
        """By storage key: ``deployments.apps``."""
        return next((k for k in self if k.resource == resource), None)

    def groups(self) -> list[str]:
        """Group names in order, the core group ("") first."""
        return list(dict.fromkeys(kind.group for kind in self))

    def versions(self, group: str) -> list[str]:
        """Versions of a group; GA first, then by the rules of Kubernetes version priority."""
        versions = dict.fromkeys(kind.version for kind in self if kind.group == group)
        return sorted(versions, key=version_priority, reverse=True)


def version_priority(version: str) -> tuple[int, int, int]:
    """Sort key of API versions: v2 > v1 > v1beta2 > v1beta1 > v1alpha1 (Kubernetes docs, CRD versioning)."""
    rest = version[1:]
    for rank, stage in ((2, "beta"), (1, "alpha")):
        if stage in rest:
            major, _, minor = rest.partition(stage)
            return (rank, int(major or 0), int(minor or 0)) if major.isdigit() else (0, 0, 0)
    return (3, int(rest), 0) if rest.isdigit() else (0, 0, 0)
