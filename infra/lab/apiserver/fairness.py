"""API priority and fairness, as clients see it: which flow schema and priority level a request belongs to.

kube-apiserver names both by UID on every answer, and refuses with 429 in plain text. The schemas are the suggested and
mandatory ones (kubernetes.io/docs/concepts/cluster-administration/flow-control), matched in the order of their
precedence, by user alone. The lab queues nothing: only a fault on demand refuses.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from .status import ApiStatusError
from .users import MASTERS

if TYPE_CHECKING:
    from .users import User

# (flow schema, priority level, users, groups)
_SCHEMAS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("exempt", "exempt", (), (MASTERS,)),
    ("system-nodes", "system", (), ("system:nodes",)),
    ("kube-controller-manager", "workload-high", ("system:kube-controller-manager",), ()),
    ("kube-scheduler", "workload-high", ("system:kube-scheduler",), ()),
    ("kube-system-service-accounts", "workload-high", (), ("system:serviceaccounts:kube-system",)),
    ("service-accounts", "workload-low", (), ("system:serviceaccounts",)),
    ("global-default", "global-default", (), ("system:authenticated", "system:unauthenticated")),
)
_NAMESPACE = uuid.UUID("5f0a3a0e-6c0b-4d43-9a8f-1b7f5a4f2f10")


def classify(user: User) -> tuple[str, str]:
    """Flow schema and priority level of a user's requests; `catch-all` for whoever no schema fits."""
    for schema, level, users, groups in _SCHEMAS:
        if user.username in users or set(groups) & set(user.groups):
            return schema, level
    return "catch-all", "catch-all"


def headers(user: User) -> dict[str, str]:
    """The headers by which an answer names them."""
    schema, level = classify(user)
    return {
        "X-Kubernetes-PF-FlowSchema-UID": str(uuid.uuid5(_NAMESPACE, f"flowschemas/{schema}")),
        "X-Kubernetes-PF-PriorityLevel-UID": str(uuid.uuid5(_NAMESPACE, f"prioritylevelconfigurations/{level}")),
    }


def refusal(user: User, seconds: int) -> ApiStatusError:
    """The 429 of a priority level whose queues are full."""
    error = ApiStatusError(429, "Too many requests, please try again later.\n", plain=True)
    error.headers.update({**headers(user), "Retry-After": str(seconds)})
    return error
