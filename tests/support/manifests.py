"""The manifests in infra/kubernetes, as a person applies them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubernetes.client import ApiException
from ruamel.yaml import YAML

if TYPE_CHECKING:
    from tests.support.labs import RunningLab

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
PLURALS = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/{}serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/{}roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/{}rolebindings",
}


def documents(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of manifests."""
    return [item for item in YAML(typ="safe").load_all(path.read_text()) if item]


def resources(directory: Path) -> list[dict[str, Any]]:
    """The objects that a kustomization lists, those of nested ones included, in its order; no patches or generators."""
    (kustomization,) = documents(directory / "kustomization.yaml")
    assert set(kustomization) <= {"apiVersion", "kind", "resources"}, "this reads lists of resources only"
    found = []
    for entry in kustomization["resources"]:
        path = directory / entry
        found += resources(path.resolve()) if path.is_dir() else documents(path)
    return found


def create(lab: RunningLab, items: list[dict[str, Any]]) -> None:
    """Create what is not there yet."""
    for item in items:
        namespace = item["metadata"].get("namespace", "")
        path = PLURALS[item["kind"]].format(f"namespaces/{namespace}/" if namespace else "")
        try:
            lab.call("POST", path, item)
        except ApiException as error:
            if error.status != 409:
                raise
