"""What admission adds to a new pod: service account, token volume, priority, tolerations.

Source: Kubernetes documentation, "Admission Controllers" (ServiceAccount, Priority, DefaultTolerationSeconds).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .admission_errors import refusal

if TYPE_CHECKING:
    import random

    from .api import AdmissionAttributes
    from .store import Store

TOKEN_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105  # a path, not a password
TOKEN_VOLUME_PREFIX = "kube-api-access-"  # noqa: S105  # a name, not a password
TOKEN_SECONDS = 3607
_MIRROR = "kubernetes.io/config.mirror"
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_BUILT_IN_PRIORITIES = {"system-node-critical": 2000001000, "system-cluster-critical": 2000000000}
PRIORITY_CLASSES = "priorityclasses.scheduling.k8s.io"
RUNTIME_CLASSES = "runtimeclasses.node.k8s.io"


class PodAdmission:
    """The built-in pod plugins. Running them twice on the same pod changes nothing the second time."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self._store = store
        self._rng = rng

    def admit(self, attributes: AdmissionAttributes) -> None:
        """Complete `attributes.obj` in place. Raises ApiStatusError 403."""
        pod = attributes.obj
        if pod is None:
            return
        spec = pod.setdefault("spec", {})
        if _MIRROR not in (pod["metadata"].get("annotations") or {}):
            self._service_account(attributes, spec)
        self._priority(attributes, spec)
        self._runtime_class(attributes, spec)
        _tolerations(spec)

    def _service_account(self, attributes: AdmissionAttributes, spec: dict[str, Any]) -> None:
        name = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
        # Two names of one field; the older one is kept in step (Pod API reference).
        spec["serviceAccountName"] = spec["serviceAccount"] = name
        account = self._store.get("serviceaccounts", attributes.namespace, name)
        if account is None:
            raise refusal(
                attributes,
                f'error looking up service account {attributes.namespace}/{name}: serviceaccount "{name}" not found',
            )
        wanted = spec.get("automountServiceAccountToken", account.obj.get("automountServiceAccountToken", True))
        if wanted:
            self._mount_token(spec)
        secrets = account.obj.get("imagePullSecrets")
        if secrets and not spec.get("imagePullSecrets"):
            spec["imagePullSecrets"] = [dict(secret) for secret in secrets]

    def _runtime_class(self, attributes: AdmissionAttributes, spec: dict[str, Any]) -> None:
        name = spec.get("runtimeClassName")
        if name and self._store.get(RUNTIME_CLASSES, "", name) is None:
            raise refusal(attributes, f'pod rejected: RuntimeClass "{name}" not found')

    def _mount_token(self, spec: dict[str, Any]) -> None:
        volumes = spec.get("volumes") or []
        existing = next(
            (v["name"] for v in volumes if v.get("projected") and v["name"].startswith(TOKEN_VOLUME_PREFIX)), None
        )
        name = existing or TOKEN_VOLUME_PREFIX + "".join(self._rng.choice(_LETTERS) for _ in range(5))
        used = False
        for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
            mounts = container.setdefault("volumeMounts", [])
            if any(mount.get("mountPath") == TOKEN_MOUNT for mount in mounts):
                continue
            mounts.append({"name": name, "readOnly": True, "mountPath": TOKEN_MOUNT})
            used = True
        if used and not existing:
            spec["volumes"] = [*volumes, _token_volume(name)]

    def _priority(self, attributes: AdmissionAttributes, spec: dict[str, Any]) -> None:
        name = spec.get("priorityClassName", "")
        value, policy = 0, "PreemptLowerPriority"
        if name in _BUILT_IN_PRIORITIES:
            value = _BUILT_IN_PRIORITIES[name]
        elif name:
            found = self._store.get(PRIORITY_CLASSES, "", name)
            if found is None:
                raise refusal(attributes, f"no PriorityClass with name {name} was found")
            value, policy = found.obj.get("value", 0), found.obj.get("preemptionPolicy", policy)
        else:
            standard = next((c for c in self._store.objects(PRIORITY_CLASSES) if c.obj.get("globalDefault")), None)
            if standard is not None:
                spec["priorityClassName"] = standard.key[1]
                value, policy = standard.obj.get("value", 0), standard.obj.get("preemptionPolicy", policy)
        given = spec.get("priority")
        if given is not None and given != value:
            raise refusal(
                attributes,
                f"the integer value of priority ({given}) must not be provided in pod spec; "
                f"priority admission controller computed {value} from the given PriorityClass name",
            )
        spec["priority"] = value
        spec["preemptionPolicy"] = spec.get("preemptionPolicy") or policy


def _token_volume(name: str) -> dict[str, Any]:
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    sources = [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]
    return {"name": name, "projected": {"sources": sources, "defaultMode": 0o644}}


def _tolerations(spec: dict[str, Any]) -> None:
    have = spec.get("tolerations") or []
    for state in ("not-ready", "unreachable"):
        key = f"node.kubernetes.io/{state}"
        tolerated = any(t.get("key", "") in ("", key) and t.get("effect", "") in ("", "NoExecute") for t in have)
        if not tolerated:
            # five minutes: --default-not-ready-toleration-seconds and its twin
            have = [*have, {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]
    if have:
        spec["tolerations"] = have
