"""Rules for CustomResourceDefinitions (apiextensions-apiserver v1.36, package validation).

The real server first moves what all versions have alike to the top of its internal type, so errors in the schema of a
definition with one version are found under ``spec.validation``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from infra.lab.apiserver import validation_meta as meta
from infra.lab.apiserver.go_json import quote
from infra.lab.apiserver.validation_meta import bad, forbidden, missing, unsupported

if TYPE_CHECKING:
    from infra.lab.apiserver.status import Cause

Object = dict[str, Any]

_APPROVAL = "api-approved.kubernetes.io"
_APPROVAL_RULE = f"protected groups must have approval annotation {quote(_APPROVAL)}"
_APPROVAL_LINK = "see https://github.com/kubernetes/enhancements/pull/1111"
_PROTECTED = ("k8s.io", "kubernetes.io")
_REVIEWS = ("v1", "v1beta1")


def custom_resource_definition(new: Object, old: Object | None) -> list[Cause]:
    """A CustomResourceDefinition; group, scope and names are fixed once it is established."""
    spec, metadata, status = new.get("spec") or {}, new.get("metadata") or {}, new.get("status") or {}
    group, names, versions = spec.get("group") or "", spec.get("names") or {}, spec.get("versions") or []
    name = metadata.get("name") or ""
    out: list[Cause] = []
    if old is None and name != f"{names.get('plural') or ''}.{group}":
        out.append(bad("metadata.name", name, 'must be spec.names.plural+"."+spec.group'))
    if not group:
        out.append(missing("spec.group"))
    elif meta.subdomain(group):
        out.append(bad("spec.group", group, ",".join(meta.subdomain(group))))
    elif "." not in group:
        out.append(bad("spec.group", group, "should be a domain with at least one dot"))
    if not spec.get("scope"):
        out.append(missing("spec.scope"))
    elif spec["scope"] not in ("Cluster", "Namespaced"):
        out.append(unsupported("spec.scope", spec["scope"], ("Cluster", "Namespaced")))
    out += _versions(versions) + _names(names)
    schemas = [(version.get("schema") or {}).get("openAPIV3Schema") for version in versions]
    if schemas and schemas[0] is not None and all(schema == schemas[0] for schema in schemas):
        out += _schema(schemas[0], "spec.validation.openAPIV3Schema")
    out += _conversion(spec.get("conversion") or {})
    if old is not None:
        out += _fixed(spec, old)
    out += _stored_versions(status.get("storedVersions") or [], versions)
    return out + _approval(group, metadata, old)


def _versions(versions: list[Object]) -> list[Cause]:
    path = "spec.versions"
    out: list[Cause] = []
    schemas = [(version.get("schema") or {}).get("openAPIV3Schema") for version in versions]
    out += [missing(f"{path}[{n}].schema.openAPIV3Schema") for n, schema in enumerate(schemas) if schema is None]
    alike = all(schema == schemas[0] for schema in schemas)
    for number, version in enumerate(versions):
        complaints = meta.label_1035(version.get("name") or "")
        if complaints:
            out.append(bad(f"{path}[{number}].name", version.get("name") or "", ",".join(complaints)))
        schema = schemas[number]
        if not alike and schema is not None:
            out += _schema(schema, f"{path}[{number}].schema.openAPIV3Schema")
    if len({version.get("name") for version in versions}) != len(versions):
        out.append(bad(path, _internal(versions), "must contain unique version names"))
    if sum(1 for version in versions if version.get("storage")) != 1:
        message = "must have exactly one version marked as storage version"
        out.append(bad(path, _internal(versions), message))
    return out


def _internal(versions: list[Object]) -> list[Object] | None:
    """Versions as errors print them, for versions that are alike: their schemas have gone to the top."""
    shown = [
        {
            "Name": version.get("name") or "",
            "Served": bool(version.get("served")),
            "Storage": bool(version.get("storage")),
            "Deprecated": bool(version.get("deprecated")),
            "DeprecationWarning": version.get("deprecationWarning"),
            "Schema": None,
            "Subresources": None,
            "AdditionalPrinterColumns": None,
            "SelectableFields": None,
        }
        for version in versions
    ]
    return shown or None


def _names(names: Object) -> list[Cause]:
    path = "spec.names"
    out = [missing(f"{path}.{field}") for field in ("plural", "singular", "kind", "listKind") if not names.get(field)]
    for field in ("plural", "singular"):
        value = names.get(field) or ""
        if value and meta.label_1035(value):
            out.append(bad(f"{path}.{field}", value, ",".join(meta.label_1035(value))))
    for field in ("kind", "listKind"):
        value = names.get(field) or ""
        complaints = meta.label_1035(value.lower()) if value else []
        if complaints:
            message = f"may have mixed case, but should otherwise match: {','.join(complaints)}"
            out.append(bad(f"{path}.{field}", value, message))
    out += _labels(names.get("shortNames") or [], f"{path}.shortNames")
    if names.get("kind") and names["kind"] == names.get("listKind"):
        out.append(bad(f"{path}.listKind", names["listKind"], "kind and listKind may not be the same"))
    return out + _labels(names.get("categories") or [], f"{path}.categories")


def _labels(values: list[str], path: str) -> list[Cause]:
    return [
        bad(f"{path}[{number}]", value, ",".join(meta.label_1035(value)))
        for number, value in enumerate(values)
        if meta.label_1035(value)
    ]


def _schema(schema: Object, path: str) -> list[Cause]:
    """A schema must be structural: every part of it has a type (Kubernetes docs, "Specifying a structural schema")."""
    found = _part(schema, path, "at the root")
    kind = schema.get("type")
    if kind and kind != "object":
        found.append(bad(f"{path}.type", kind, "must be object at the root"))
    if schema.get("additionalProperties") is not None:
        found.append(forbidden(f"{path}.additionalProperties", "must not be used at the root"))
    return sorted(found, key=lambda cause: f"{cause.field}: {cause.message}")


def _part(schema: Object, path: str, place: str) -> list[Cause]:
    out: list[Cause] = []
    free = schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields")
    if not schema.get("type") and not free:
        out.append(missing(f"{path}.type", f"must not be empty {place}"))
    items, extra = schema.get("items"), schema.get("additionalProperties")
    if schema.get("type") == "array" and items is None:
        out.append(missing(f"{path}.items", "must be specified"))
    if isinstance(items, dict):
        out += _part(items, f"{path}.items", "for specified array items")
    for name, child in (schema.get("properties") or {}).items():
        out += _part(child, f"{path}.properties[{name}]", "for specified object fields")
    if isinstance(extra, dict):
        out += _part(extra, f"{path}.additionalProperties", "for specified object fields")
    return out


def _conversion(conversion: Object) -> list[Cause]:
    path = "spec.conversion"
    strategy, webhook = conversion.get("strategy") or "", conversion.get("webhook") or {}
    client, reviews = webhook.get("clientConfig"), webhook.get("conversionReviewVersions") or []
    if not conversion:
        return []
    if strategy not in ("None", "Webhook"):
        out = [unsupported(f"{path}.strategy", strategy, ("None", "Webhook"))] if strategy else []
        out = out or [missing(f"{path}.strategy")]
    else:
        out = []
    if strategy != "Webhook":
        message = "should not be set when strategy is not set to Webhook"
        out += [forbidden(f"{path}.webhookClientConfig", message)] if client is not None else []
        return out + ([forbidden(f"{path}.conversionReviewVersions", message)] if reviews else [])
    if client is None:
        out.append(missing(f"{path}.webhookClientConfig", "required when strategy is set to Webhook"))
    elif (client.get("url") is None) == (client.get("service") is None):
        out.append(missing(f"{path}.webhookClientConfig", "exactly one of url or service is required"))
    if not reviews:
        out.append(missing(f"{path}.conversionReviewVersions"))
    elif not set(reviews) & set(_REVIEWS):
        message = f"must include at least one of {', '.join(_REVIEWS)}"
        out.append(bad(f"{path}.conversionReviewVersions", reviews, message))
    return out


def _fixed(spec: Object, old: Object) -> list[Cause]:
    before, status = old.get("spec") or {}, old.get("status") or {}
    names, held = spec.get("names") or {}, before.get("names") or {}
    established = any(
        condition.get("type") == "Established" and condition.get("status") == "True"
        for condition in status.get("conditions") or []
    )
    pairs = [
        ("group", spec.get("group") or "", before.get("group") or ""),
        ("names.plural", names.get("plural") or "", held.get("plural") or ""),
    ]
    if established:
        pairs = [
            ("scope", spec.get("scope") or "", before.get("scope") or ""),
            ("names.kind", names.get("kind") or "", held.get("kind") or ""),
            *pairs,
        ]
    return [bad(f"spec.{field}", value, meta.IMMUTABLE) for field, value, was in pairs if value != was]


def _stored_versions(stored: list[str], versions: list[Object]) -> list[Cause]:
    path = "status.storedVersions"
    if not stored:
        return [bad(path, None, "must have at least one stored version")]
    names = {version.get("name") for version in versions}
    out = [
        bad(path, stored, f"must have the storage version {version.get('name')}")
        for version in versions
        if version.get("storage") and version.get("name") not in stored
    ]
    for number, name in enumerate(stored):
        if name not in names:
            message = (
                f"missing from spec.versions; {name} was previously a storage version, and must remain in "
                f"spec.versions until a storage migration ensures no data remains persisted in {name} and removes "
                f"{name} from status.storedVersions"
            )
            out.append(bad(f"{path}[{number}]", name, message))
    return out


def _approval(group: str, metadata: Object, old: Object | None) -> list[Cause]:
    """Groups of the Kubernetes project need an annotation that says who approved the API, or that nobody did."""
    if group not in _PROTECTED and not group.endswith(tuple(f".{name}" for name in _PROTECTED)):
        return []
    given = (metadata.get("annotations") or {}).get(_APPROVAL) or ""
    before = ((old or {}).get("metadata") or {}).get("annotations") or {}
    if old is not None and _approved(given) == _approved(before.get(_APPROVAL) or ""):
        return []
    path = f"metadata.annotations[{_APPROVAL}]"
    match _approved(given):
        case "missing":
            return [missing(path, f"{_APPROVAL_RULE}, {_APPROVAL_LINK}")]
        case "invalid":
            message = f'{_APPROVAL_RULE} with either a URL or a reason starting with "unapproved", {_APPROVAL_LINK}'
            return [bad(path, given, message)]
    return []


def _approved(annotation: str) -> str:
    if not annotation:
        return "missing"
    if annotation.startswith("unapproved"):
        return "bypassed"
    parts = urlsplit(annotation)
    return "approved" if parts.scheme and parts.netloc else "invalid"
