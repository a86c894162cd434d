"""The roles and bindings every cluster starts with, and the aggregation of ClusterRoles.

Names and contents follow the Kubernetes documentation ("Using RBAC Authorization", default roles). Controllers that run
in the lab log in as cluster administrators; the per-controller roles of a real controller manager are not made.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .authz import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, GROUP, ROLE_BINDINGS, ROLES
from .selectors import from_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rbac import Rule
    from .store import Store

API_VERSION = f"{GROUP}/v1"
_BOOTSTRAPPING = {"kubernetes.io/bootstrapping": "rbac-defaults"}
_UPDATED = {"rbac.authorization.kubernetes.io/autoupdate": "true"}
READ = ["get", "list", "watch"]
WRITE = ["create", "delete", "deletecollection", "patch", "update"]


def rule(groups: str, resources: str, verbs: Sequence[str], names: Sequence[str] = ()) -> Rule:
    """A rule from words: `groups` and `resources` separated by blanks, the core group written ``core``."""
    out: Rule = {
        "verbs": list(verbs),
        "apiGroups": ["" if g == "core" else g for g in groups.split()],
        "resources": resources.split(),
    }
    return {**out, "resourceNames": list(names)} if names else out


def paths(urls: str, verbs: Sequence[str] = ("get",)) -> Rule:
    return {"verbs": list(verbs), "nonResourceURLs": urls.split()}


_EVERYTHING = [rule("*", "*", ["*"]), paths("*", ["*"])]
_DISCOVERY = "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/"
_OPENID = "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/"

_PODS_READ = "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status "
_PODS_READ += "resourcequotas resourcequotas/status"
_CORE_READ = "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers "
_CORE_READ += "replicationcontrollers/scale serviceaccounts services services/status"
_APPS = "controllerrevisions daemonsets deployments deployments/scale replicasets replicasets/scale statefulsets "
_APPS += "statefulsets/scale"
_APPS_STATUS = "daemonsets/status deployments/status replicasets/status statefulsets/status"

_VIEW: list[Rule] = [
    rule("core", _CORE_READ, READ),
    rule("core", _PODS_READ, READ),
    rule("core", "namespaces", READ),
    rule("discovery.k8s.io", "endpointslices", READ),
    rule("apps", f"{_APPS} {_APPS_STATUS}", READ),
    rule("autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status", READ),
    rule("batch", "cronjobs cronjobs/status jobs jobs/status", READ),
    rule("policy", "poddisruptionbudgets poddisruptionbudgets/status", READ),
    rule("networking.k8s.io", "ingresses ingresses/status networkpolicies", READ),
]
_EDIT: list[Rule] = [
    rule("core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy", READ),
    rule("core", "serviceaccounts", ["impersonate"]),
    rule("core", "pods pods/attach pods/exec pods/portforward pods/proxy", WRITE),
    rule("core", "pods/eviction", ["create"]),
    rule("core", "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale", WRITE),
    rule("core", "secrets serviceaccounts services services/proxy", WRITE),
    rule("core", "serviceaccounts/token", ["create"]),
    rule("apps", "daemonsets deployments deployments/rollback deployments/scale replicasets", WRITE),
    rule("apps", "replicasets/scale statefulsets statefulsets/scale", WRITE),
    rule("autoscaling", "horizontalpodautoscalers", WRITE),
    rule("batch", "cronjobs jobs", WRITE),
    rule("policy", "poddisruptionbudgets", WRITE),
    rule("networking.k8s.io", "ingresses networkpolicies", WRITE),
    rule("coordination.k8s.io", "leases", [*READ, *WRITE]),
]
_ADMIN: list[Rule] = [
    rule("authorization.k8s.io", "localsubjectaccessreviews", ["create"]),
    rule(GROUP, "rolebindings roles", [*READ, *WRITE]),
]
_NODE: list[Rule] = [
    rule("authentication.k8s.io", "tokenreviews", ["create"]),
    rule("authorization.k8s.io", "localsubjectaccessreviews subjectaccessreviews", ["create"]),
    rule("core", "services", READ),
    rule("core", "nodes", ["create", *READ]),
    rule("core", "nodes/status", ["patch", "update"]),
    rule("core", "nodes", ["patch", "update"]),
    rule("core events.k8s.io", "events", ["create", "patch", "update"]),
    rule("core", "pods", READ),
    rule("core", "pods", ["create", "delete"]),
    rule("core", "pods/status", ["patch", "update"]),
    rule("core", "pods/eviction", ["create"]),
    rule("core", "configmaps secrets", READ),
    rule("core", "persistentvolumeclaims persistentvolumes", ["get"]),
    rule("core", "endpoints", ["get"]),
    rule("certificates.k8s.io", "certificatesigningrequests", ["create", *READ]),
    rule("coordination.k8s.io", "leases", ["create", "delete", "get", "patch", "update"]),
    rule("core", "serviceaccounts/token", ["create"]),
    rule("storage.k8s.io", "csidrivers", READ),
    rule("node.k8s.io", "runtimeclasses", READ),
]
_SIGNERS = ("kube-apiserver-client", "kube-apiserver-client-kubelet", "kubelet-serving", "legacy-unknown")

PLAIN_ROLES: dict[str, list[Rule]] = {
    "cluster-admin": _EVERYTHING,
    "system:discovery": [paths(_DISCOVERY)],
    "system:public-info-viewer": [paths("/healthz /livez /readyz /version /version/")],
    "system:monitoring": [paths("/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*")],
    "system:basic-user": [
        rule("authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews", ["create"]),
        rule("authentication.k8s.io", "selfsubjectreviews", ["create"]),
    ],
    "system:service-account-issuer-discovery": [paths(_OPENID)],
    "system:auth-delegator": [
        rule("authentication.k8s.io", "tokenreviews", ["create"]),
        rule("authorization.k8s.io", "subjectaccessreviews", ["create"]),
    ],
    "system:node": _NODE,
    "system:kubelet-api-admin": [
        rule("core", "nodes", ["get", "list", "watch"]),
        rule("core", "nodes", ["proxy"]),
        rule("core", "nodes/log nodes/metrics nodes/proxy nodes/stats", ["*"]),
    ],
    "system:node-bootstrapper": [rule("certificates.k8s.io", "certificatesigningrequests", ["create", *READ])],
    **{
        f"system:certificates.k8s.io:{signer}-approver": [
            rule("certificates.k8s.io", "signers", ["approve"], [f"kubernetes.io/{signer}"])
        ]
        for signer in _SIGNERS
    },
}
# ClusterRole -> the role it is a part of, and the rules it adds
AGGREGATED: dict[str, tuple[str, list[Rule]]] = {
    "view": ("edit", _VIEW),
    "edit": ("admin", _EDIT),
    "admin": ("", _ADMIN),
}

GROUP_BINDINGS: dict[str, tuple[str, Sequence[str]]] = {
    "cluster-admin": ("cluster-admin", ["system:masters"]),
    "kubeadm:cluster-admins": ("cluster-admin", ["kubeadm:cluster-admins"]),
    "system:basic-user": ("system:basic-user", ["system:authenticated"]),
    "system:discovery": ("system:discovery", ["system:authenticated"]),
    "system:monitoring": ("system:monitoring", ["system:monitoring"]),
    "system:public-info-viewer": ("system:public-info-viewer", ["system:authenticated", "system:unauthenticated"]),
    "system:service-account-issuer-discovery": ("system:service-account-issuer-discovery", ["system:serviceaccounts"]),
    "system:node": ("system:node", ["system:nodes"]),
}
_READER = "extension-apiserver-authentication-reader"


def bootstrap(store: Store) -> None:
    """Create what is missing, and keep aggregated roles up to date from now on. kube-system may not exist yet."""
    store.on_commit([CLUSTER_ROLES], lambda _resource, _event: aggregate(store))
    for name, rules in PLAIN_ROLES.items():
        _ensure(store, CLUSTER_ROLES, "", name, {"kind": "ClusterRole", "rules": rules})
    for name, (within, rules) in AGGREGATED.items():
        own = {"kind": "ClusterRole", "rules": rules}
        _ensure(store, CLUSTER_ROLES, "", f"system:aggregate-to-{name}", own, _aggregates_to(name))
        selector = {"matchLabels": _aggregates_to(name)}
        body: dict[str, Any] = {
            "kind": "ClusterRole",
            "aggregationRule": {"clusterRoleSelectors": [selector]},
            "rules": [],
        }
        _ensure(store, CLUSTER_ROLES, "", name, body, _aggregates_to(within) if within else {})
    for name, (role, groups) in GROUP_BINDINGS.items():
        subjects = [{"kind": "Group", "apiGroup": GROUP, "name": group} for group in groups]
        reference = {"apiGroup": GROUP, "kind": "ClusterRole", "name": role}
        body = {"kind": "ClusterRoleBinding", "subjects": subjects, "roleRef": reference}
        _ensure(store, CLUSTER_ROLE_BINDINGS, "", name, body)
    reading = [rule("core", "configmaps", READ, ["extension-apiserver-authentication"])]
    _ensure(store, ROLES, "kube-system", _READER, {"kind": "Role", "rules": reading})
    subjects = [
        {"kind": "User", "apiGroup": GROUP, "name": user}
        for user in ("system:kube-controller-manager", "system:kube-scheduler")
    ]
    reference = {"apiGroup": GROUP, "kind": "Role", "name": _READER}
    body = {"kind": "RoleBinding", "subjects": subjects, "roleRef": reference}
    _ensure(store, ROLE_BINDINGS, "kube-system", f"system::{_READER}", body)


def _aggregates_to(name: str) -> dict[str, str]:
    return {f"rbac.authorization.k8s.io/aggregate-to-{name}": "true"}


def _ensure(
    store: Store, resource: str, namespace: str, name: str, body: dict[str, Any], labels: dict[str, str] | None = None
) -> None:
    if store.get(resource, namespace, name) is not None:
        return
    metadata: dict[str, Any] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    metadata |= {
        "uid": str(uuid.uuid4()),
        "creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "labels": {**_BOOTSTRAPPING, **(labels or {})},
        "annotations": dict(_UPDATED),
    }
    rest = {key: value for key, value in body.items() if key != "kind"}
    store.create(
        resource, (namespace, name), {"kind": body["kind"], "apiVersion": API_VERSION, "metadata": metadata, **rest}
    )


def aggregate(store: Store) -> None:
    """Write the union of the selected roles' rules into every ClusterRole with an aggregationRule."""
    roles = store.objects(CLUSTER_ROLES)
    for role in roles:
        selectors = (role.obj.get("aggregationRule") or {}).get("clusterRoleSelectors")
        if not selectors:
            continue
        rules: list[Rule] = []
        for other in roles:
            if other.key != role.key and any(from_object(s).matches(other.labels) for s in selectors):
                rules += [r for r in other.obj.get("rules") or [] if r not in rules]
        if rules != (role.obj.get("rules") or []):
            # One change at a time: the commit calls this function again for the next one.
            store.update(
                CLUSTER_ROLES, role.key, {**role.obj, "metadata": dict(role.obj["metadata"]), "rules": rules}, role.rv
            )
            return
