"""Admission webhooks: which configurations concern a write, the AdmissionReview exchange, and what its answer means.

Kubernetes documentation, "Dynamic Admission Control"; the messages are kube-apiserver's. Mutating webhooks are called
one after the other in the order of configuration names, without reinvocation; validating ones all at once.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import copy
import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .calls import Calls
from .objects import convert
from .patch import apply_patch
from .selectors import from_object
from .status import ApiStatusError, internal_error
from .webhook_client import WebhookCallError, WebhookClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .api import AdmissionAttributes
    from .kinds import KindInfo, Registry
    from .store import Store

GROUP = "admissionregistration.k8s.io"
MUTATING = f"mutatingwebhookconfigurations.{GROUP}"
VALIDATING = f"validatingwebhookconfigurations.{GROUP}"


@dataclass(frozen=True)
class Hook:
    """One webhook of one configuration that wants to see a write, and the version of the kind it wants to see."""

    configuration: str
    spec: dict[str, Any]
    kind: KindInfo

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def timeout(self) -> float:
        return float(self.spec.get("timeoutSeconds") or 10)

    @property
    def ignores_failure(self) -> bool:
        return self.spec.get("failurePolicy") == "Ignore"


class Webhooks:
    """Calls the webhooks which the configurations in the store ask for."""

    def __init__(self, store: Store, registry: Registry, client: WebhookClient) -> None:
        self._store = store
        self._registry = registry
        self._client = client
        self.calls = Calls()

    async def call(self, configurations: str, attributes: AdmissionAttributes) -> bool:
        """Call all that match; `attributes.obj` becomes what mutating ones make of it.

        True when an object changed. Raises ApiStatusError when one denies, or cannot be asked and must be.
        """
        hooks = list(self._matching(configurations, attributes))
        if not hooks:
            return False
        if configurations == VALIDATING:
            outcomes = await asyncio.gather(*(self._ask(hook, attributes) for hook in hooks), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
            return False
        before = copy.deepcopy(attributes.obj)
        for hook in hooks:
            response = await self._ask(hook, attributes)
            if response is not None and response.get("patch"):
                self._patch(hook, attributes, response)
        return before != attributes.obj

    # Which webhooks

    def _matching(self, configurations: str, attributes: AdmissionAttributes) -> Iterator[Hook]:
        if attributes.kind.virtual or attributes.kind.group == GROUP:
            # Webhooks must not be able to lock the door to their own configuration.
            return
        for stored in self._store.objects(configurations):
            for spec in stored.obj.get("webhooks") or []:
                kind = self._matched_kind(spec, attributes)
                if kind is not None and self._selected(spec, attributes):
                    yield Hook(stored.key[1], spec, kind)

    def _matched_kind(self, spec: dict[str, Any], attributes: AdmissionAttributes) -> KindInfo | None:
        rules = [r for r in spec.get("rules") or [] if _has(r.get("operations"), attributes.operation)]
        if any(_rule_matches(rule, attributes.kind, attributes.subresource) for rule in rules):
            return attributes.kind
        if spec.get("matchPolicy", "Equivalent") != "Equivalent":
            return None
        for version in self._registry.versions(attributes.kind.group):
            other = self._registry.find(attributes.kind.group, version, attributes.kind.plural)
            if other is not None and any(_rule_matches(rule, other, attributes.subresource) for rule in rules):
                return other
        return None

    def _selected(self, spec: dict[str, Any], attributes: AdmissionAttributes) -> bool:
        objects = [obj for obj in (attributes.obj, attributes.old) if obj is not None]
        chosen = from_object(spec.get("objectSelector") or {})
        if chosen and not any(chosen.matches((obj.get("metadata") or {}).get("labels")) for obj in objects):
            return False
        chosen = from_object(spec.get("namespaceSelector") or {})
        return not chosen or self._namespace_selected(chosen.matches, attributes)

    def _namespace_selected(self, matches: Any, attributes: AdmissionAttributes) -> bool:
        if attributes.kind.resource == "namespaces" and attributes.obj is not None and not attributes.subresource:
            return bool(matches((attributes.obj.get("metadata") or {}).get("labels")))
        if not attributes.kind.namespaced and attributes.kind.resource != "namespaces":
            return True
        namespace = self._store.get("namespaces", "", attributes.namespace or attributes.name)
        return namespace is None or bool(matches(namespace.labels))

    # The exchange

    async def _ask(self, hook: Hook, attributes: AdmissionAttributes) -> dict[str, Any] | None:
        """The response of an allowing webhook; None when it could not be asked and does not have to be."""
        # A dry run asks too: since v1 a configuration may only name webhooks without side effects on dry runs.
        review = self._review(hook, attributes)
        try:
            response = await self._exchange(hook, review)
        except WebhookCallError as error:
            self.calls.failed(hook.name, str(error))
            if hook.ignores_failure:
                return None
            raise internal_error(f'failed calling webhook "{hook.name}": {error}') from error
        self.calls.answered(hook.name)
        attributes.request.warnings.extend(response.get("warnings") or [])
        if not response.get("allowed"):
            raise _denial(hook, response.get("status") or {})
        return response

    async def _exchange(self, hook: Hook, review: dict[str, Any]) -> dict[str, Any]:
        if hook.spec.get("matchConditions"):
            raise WebhookCallError("match conditions (CEL) are not evaluated by this server")
        answer = await self._client.post(hook.spec.get("clientConfig") or {}, review, hook.timeout)
        return _verified(answer, review["request"]["uid"], review["apiVersion"])

    def _review(self, hook: Hook, attributes: AdmissionAttributes) -> dict[str, Any]:
        kind = attributes.kind
        request: dict[str, Any] = {
            "uid": str(uuid.uuid4()),
            "kind": _gvk(attributes, hook.kind),
            "resource": {"group": hook.kind.group, "version": hook.kind.version, "resource": hook.kind.plural},
            "requestKind": _gvk(attributes, kind),
            "requestResource": {"group": kind.group, "version": kind.version, "resource": kind.plural},
            "operation": attributes.operation,
            "userInfo": attributes.user.info(),
            "object": _as(attributes.obj, attributes, hook.kind),
            "oldObject": _as(attributes.old, attributes, hook.kind),
            "dryRun": attributes.dry_run,
            "options": attributes.options or None,
        }
        name = attributes.name or ((attributes.obj or {}).get("metadata") or {}).get("name")
        if name:
            request["name"] = name
        if attributes.namespace:
            request["namespace"] = attributes.namespace
        elif kind.resource == "namespaces" and name:
            request["namespace"] = name
        if attributes.subresource:
            request["subResource"] = request["requestSubResource"] = attributes.subresource
        offered = hook.spec.get("admissionReviewVersions") or ["v1"]
        version = next((v for v in offered if v in ("v1", "v1beta1")), "v1")
        return {"kind": "AdmissionReview", "apiVersion": f"admission.k8s.io/{version}", "request": request}

    def _patch(self, hook: Hook, attributes: AdmissionAttributes, response: dict[str, Any]) -> None:
        if attributes.obj is None:
            message = f'admission webhook "{hook.name}" attempted to modify the object, which is not supported for this'
            raise internal_error(f"{message} operation")
        try:
            document = base64.b64decode(response["patch"], validate=True)
            json.loads(document)
        except (binascii.Error, ValueError) as error:
            raise internal_error(f"failed to decode the patch of admission webhook {hook.name}") from error
        shown = _as(attributes.obj, attributes, hook.kind) or {}
        try:
            changed, _ = apply_patch(hook.kind, shown, "application/json-patch+json", document)
        except ApiStatusError as error:
            raise internal_error(error.message) from error
        attributes.obj = convert(changed, attributes.kind) if not attributes.subresource else changed


def _as(obj: dict[str, Any] | None, attributes: AdmissionAttributes, kind: KindInfo) -> dict[str, Any] | None:
    if obj is None or attributes.subresource or kind == attributes.kind:
        return obj
    return convert(obj, kind)


def _gvk(attributes: AdmissionAttributes, kind: KindInfo) -> dict[str, str]:
    """The kind of the object sent: a subresource may have one of its own (Eviction, Scale)."""
    sent = (attributes.obj or attributes.old or {}) if attributes.subresource else {}
    group, _, version = str(sent.get("apiVersion") or kind.api_version).rpartition("/")
    return {"group": group, "version": version, "kind": str(sent.get("kind") or kind.kind)}


def _has(values: list[str] | None, wanted: str) -> bool:
    return values is not None and ("*" in values or wanted in values)


def _rule_matches(rule: dict[str, Any], kind: KindInfo, subresource: str) -> bool:
    scope = rule.get("scope") or "*"
    if scope != "*" and (scope == "Namespaced") != kind.namespaced:
        return False
    if not _has(rule.get("apiGroups"), kind.group) or not _has(rule.get("apiVersions"), kind.version):
        return False
    for pattern in rule.get("resources") or []:
        resource, _, sub = pattern.partition("/")
        if resource in ("*", kind.plural) and (sub == subresource or (sub == "*" and "/" in pattern)):
            return True
    return False


def _verified(answer: Any, uid: str, version: str) -> dict[str, Any]:
    """The response part of a well-formed AdmissionReview. Raises WebhookCallError."""

    def invalid(reason: str) -> WebhookCallError:
        return WebhookCallError(f"received invalid webhook response: {reason}")

    if not isinstance(answer, dict) or answer.get("kind") != "AdmissionReview" or answer.get("apiVersion") != version:
        kind, group_version = (answer.get("kind"), answer.get("apiVersion")) if isinstance(answer, dict) else ("", "")
        raise invalid(f"expected webhook response of {version}, Kind=AdmissionReview, got {group_version}, Kind={kind}")
    response = answer.get("response")
    if not isinstance(response, dict):
        raise invalid("webhook response was absent")
    if response.get("uid") != uid:
        raise invalid(f'expected response.uid="{uid}", got "{response.get("uid") or ""}"')
    if bool(response.get("patch")) != bool(response.get("patchType")):
        raise invalid("webhook returned response.patch but not response.patchType")
    if response.get("patchType") not in (None, "", "JSONPatch"):
        raise invalid(f'webhook returned invalid response.patchType of "{response["patchType"]}"')
    return response


def _denial(hook: Hook, result: dict[str, Any]) -> ApiStatusError:
    """The webhook's own Status, with who denied in front of its message and never a code of success."""
    denied = f'admission webhook "{hook.name}" denied the request'
    said = result.get("message") or result.get("reason")
    message = f"{denied}: {said}" if said else f"{denied} without explanation"
    code = int(result.get("code") or 0)
    return ApiStatusError(max(code, 400), message, result.get("reason") or "", result.get("details"))
