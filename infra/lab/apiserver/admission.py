"""Admission: what happens to a write between decoding and storage.

The chain, in kube-apiserver's order: namespace lifecycle, the pod plugins (service account, priority, tolerations),
mutating webhooks (after which the pod plugins run once more, so that injected containers get their token too); then,
when the object has been validated, the validating webhooks. RBAC escalation and signer rights are checked here as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import csr, escalation, limit_ranges, pod_security
from .admission_errors import refusal
from .admission_pods import PodAdmission
from .api import timestamp
from .status import not_found
from .webhooks import MUTATING, VALIDATING, Webhooks

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from datetime import datetime

    from .api import AdmissionAttributes
    from .authz import Authorizer
    from .store import Store

_IMMORTAL = ("default", "kube-system", "kube-public")


class AdmissionChain:
    """The chain (`api.Admission`): `mutate` before an object is validated, `validate` after."""

    def __init__(
        self,
        store: Store,
        authorizer: Authorizer,
        webhooks: Webhooks,
        rng: random.Random,
        now: Callable[[], datetime],
    ) -> None:
        self._now = now
        self._store = store
        self._authorizer = authorizer
        self._pods = PodAdmission(store, rng)
        self._webhooks = webhooks

    async def mutate(self, attributes: AdmissionAttributes) -> None:
        """Complete or change `attributes.obj`. Raises ApiStatusError to refuse the request."""
        # 1. The namespace must be there and, for new objects, stay.
        self._namespace_lifecycle(attributes)
        # 2. Built-in plugins, and who asks for a certificate.
        self._built_in(attributes)
        self._signing_request(attributes)
        # 3. Mutating webhooks, then the built-in plugins again if one of them changed the object.
        if await self._webhooks.call(MUTATING, attributes):
            self._built_in(attributes)
        # 4. Nobody grants what they do not hold, nobody approves or signs for a signer that is not theirs.
        escalation.check(attributes, self._authorizer)
        csr.check_rights(attributes, self._authorizer)

    async def validate(self, attributes: AdmissionAttributes) -> None:
        """Pod security, then the validating webhooks. Raises ApiStatusError to refuse the request."""
        if attributes.kind.resource == csr.RESOURCE and attributes.obj is not None:
            csr.validate(attributes.obj, attributes.old)
        if attributes.kind.resource == "pods" and not attributes.subresource and attributes.operation == "CREATE":
            limit_ranges.check(attributes, self._store)
        if attributes.operation in ("CREATE", "UPDATE"):
            pod_security.check(attributes, self._store)
        await self._webhooks.call(VALIDATING, attributes)

    def _built_in(self, attributes: AdmissionAttributes) -> None:
        if attributes.kind.resource == "pods" and not attributes.subresource and attributes.operation == "CREATE":
            limit_ranges.complete(attributes, self._store)
            self._pods.admit(attributes)

    def _signing_request(self, attributes: AdmissionAttributes) -> None:
        if attributes.kind.resource != csr.RESOURCE or attributes.obj is None:
            return
        if attributes.operation == "CREATE":
            csr.record_requester(attributes.obj, attributes.user)
        else:
            csr.stamp_conditions(attributes.obj, attributes.old or {}, timestamp(self._now()))

    def _namespace_lifecycle(self, attributes: AdmissionAttributes) -> None:
        kind = attributes.kind
        if kind.resource == "namespaces":
            if attributes.operation == "DELETE" and attributes.name in _IMMORTAL:
                raise refusal(attributes, "this namespace may not be deleted")
            return
        if not kind.namespaced or attributes.operation == "DELETE" or kind.plural == "localsubjectaccessreviews":
            return
        namespace = self._store.get("namespaces", "", attributes.namespace)
        if namespace is None:
            raise not_found("namespaces", attributes.namespace)
        if attributes.operation != "CREATE" or (namespace.obj.get("status") or {}).get("phase") != "Terminating":
            return
        name = attributes.namespace
        error = refusal(attributes, f"unable to create new content in namespace {name} because it is being terminated")
        cause = {
            "reason": "NamespaceTerminating",
            "message": f"namespace {name} is being terminated",
            "field": "metadata.namespace",
        }
        error.details = {**(error.details or {}), "causes": [cause]}
        raise error
