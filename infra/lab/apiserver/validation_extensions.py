"""Rules for webhook configurations and APIServices, which extend the API server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from infra.lab.apiserver import validation_meta as meta
from infra.lab.apiserver.validation_meta import bad, duplicate, missing, unsupported

if TYPE_CHECKING:
    from infra.lab.apiserver.status import Cause

Object = dict[str, Any]

_URL_FORM = "desired format: https://host[/path]"
_OPERATIONS = ("*", "CREATE", "UPDATE", "DELETE", "CONNECT")
_SCOPES = ("*", "Cluster", "Namespaced")
_REVIEWS = ("v1", "v1beta1")
_MAX_TIMEOUT = 30
_REINVOCATIONS = ("IfNeeded", "Never")


def webhooks(new: Object, old: Object | None) -> list[Cause]:
    """Validating and mutating webhook configurations. A CA bundle may be any bytes."""
    out: list[Cause] = []
    names: set[str] = set()
    had_reviews = any(
        set(_REVIEWS) & set(hook.get("admissionReviewVersions") or []) for hook in (old or {}).get("webhooks") or []
    )
    for number, hook in enumerate(new.get("webhooks") or []):
        at = f"webhooks[{number}]"
        name = hook.get("name") or ""
        out += _webhook(hook, at)
        if name in names:
            out.append(duplicate(f"{at}.name", name))
        names.add(name)
        out += _review_versions(hook.get("admissionReviewVersions") or [], at, strict=old is None or had_reviews)
    return out


def _review_versions(versions: list[str], at: str, *, strict: bool) -> list[Cause]:
    path = f"{at}.admissionReviewVersions"
    if not versions:
        return [missing(path, f"must specify one of {', '.join(_REVIEWS)}")]
    out: list[Cause] = []
    for number, version in enumerate(versions):
        if version in versions[:number]:
            out.append(bad(f"{path}[{number}]", version, "duplicate version"))
        out += [bad(f"{path}[{number}]", version, message) for message in meta.label_1035(version)]
    if strict and not set(versions) & set(_REVIEWS):
        message = f"must include at least one of {', '.join(_REVIEWS)}"
        out.append(bad(path, versions, message))
    return out


def _webhook(hook: Object, at: str) -> list[Cause]:
    name = hook.get("name") or ""
    out: list[Cause] = []
    if not name:
        out.append(missing(f"{at}.name"))
    elif meta.subdomain(name):
        out.append(bad(f"{at}.name", name, ",".join(meta.subdomain(name))))
    elif name.count(".") < 2:
        out.append(bad(f"{at}.name", name, "should be a domain with at least three segments separated by dots"))
    for number, rule in enumerate(hook.get("rules") or []):
        out += _rule(rule, f"{at}.rules[{number}]")
    for field, supported in (("failurePolicy", ("Fail", "Ignore")), ("matchPolicy", ("Equivalent", "Exact"))):
        if hook.get(field) is not None and hook[field] not in supported:
            out.append(unsupported(f"{at}.{field}", hook[field], supported))
    if hook.get("reinvocationPolicy") not in (None, *_REINVOCATIONS):
        out.append(unsupported(f"{at}.reinvocationPolicy", hook["reinvocationPolicy"], _REINVOCATIONS))
    effects = hook.get("sideEffects")
    if effects is None:
        out.append(missing(f"{at}.sideEffects", "must specify one of None, NoneOnDryRun"))
    elif effects not in ("None", "NoneOnDryRun"):
        out.append(unsupported(f"{at}.sideEffects", effects, ("None", "NoneOnDryRun")))
    seconds = hook.get("timeoutSeconds")
    if seconds is not None and not 1 <= seconds <= _MAX_TIMEOUT:
        out.append(bad(f"{at}.timeoutSeconds", seconds, "the timeout value must be between 1 and 30 seconds"))
    for field in ("namespaceSelector", "objectSelector"):
        out += meta.label_selector(hook.get(field), f"{at}.{field}")
    return out + _client_config(hook.get("clientConfig") or {}, f"{at}.clientConfig", "exactly one of url or service")


def _rule(rule: Object, at: str) -> list[Cause]:
    out: list[Cause] = []
    operations = rule.get("operations") or []
    if not operations:
        out.append(missing(f"{at}.operations"))
    if len(operations) > 1 and "*" in operations:
        out.append(bad(f"{at}.operations", operations, "if '*' is present, must not specify other operations"))
    out += [
        unsupported(f"{at}.operations[{number}]", operation, _OPERATIONS)
        for number, operation in enumerate(operations)
        if operation not in _OPERATIONS
    ]
    for field, noun in (("apiGroups", "API groups"), ("apiVersions", "API versions"), ("resources", "")):
        values = rule.get(field) or []
        if not values:
            out.append(missing(f"{at}.{field}"))
        elif noun and len(values) > 1 and "*" in values:
            out.append(bad(f"{at}.{field}", values, f"if '*' is present, must not specify other {noun}"))
        if field == "apiVersions":
            out += [missing(f"{at}.{field}[{number}]") for number, value in enumerate(values) if not value]
    scope = rule.get("scope")
    if scope is not None and scope not in _SCOPES:
        out.append(unsupported(f"{at}.scope", scope, _SCOPES))
    return out


def _client_config(config: Object, at: str, choice: str) -> list[Cause]:
    url, service = config.get("url"), config.get("service")
    if (url is None) == (service is None):
        return [missing(at, f"{choice} is required")]
    return _url(url, f"{at}.url") if url is not None else _service(service or {}, at)


def _service(service: Object, at: str) -> list[Cause]:
    out: list[Cause] = []
    if not service.get("name"):
        out.append(missing(f"{at}.service.name", "service name is required"))
    if not service.get("namespace"):
        out.append(missing(f"{at}.service.namespace", "service namespace is required"))
    port = service.get("port")
    if port is not None and not 1 <= port <= 65535:
        message = "port is not valid: must be between 1 and 65535, inclusive"
        out.append(bad(f"{at}.service.port", port, message))
    path = service.get("path")
    if path is not None and path != "/" and not path.startswith("/"):
        out.append(bad(f"{at}.service.path", path, "must start with a '/'"))
    return out


def _url(url: str, path: str) -> list[Cause]:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        return [missing(path, f"url must be a valid URL: {error}; {_URL_FORM}")]
    out: list[Cause] = []
    if parts.scheme != "https":
        out.append(bad(path, parts.scheme, f"'https' is the only allowed URL scheme; {_URL_FORM}"))
    if not parts.netloc:
        out.append(bad(path, parts.netloc, f"host must be specified; {_URL_FORM}"))
    if parts.username is not None:
        out.append(bad(path, parts.username, "user information is not permitted in the URL"))
    if parts.fragment:
        out.append(bad(path, parts.fragment, "fragments are not permitted in the URL"))
    if parts.query:
        out.append(bad(path, parts.query, "query parameters are not permitted in the URL"))
    return out


_MAX_GROUP_PRIORITY, _MAX_VERSION_PRIORITY = 20_000, 1_000


def api_service(new: Object, old: Object | None) -> list[Cause]:  # noqa: ARG001  (the signature of every rule)
    spec = new.get("spec") or {}
    version, group = spec.get("version") or "", spec.get("group") or ""
    name = (new.get("metadata") or {}).get("name") or ""
    out: list[Cause] = []
    if name != f"{version}.{group}":
        out.append(bad("metadata.name", name, 'must be `spec.version+"."+spec.group`'))
    if not version:
        out.append(missing("spec.version"))
    else:
        out += [bad("spec.version", version, message) for message in meta.label_1035(version)]
    for field, limit in (
        ("groupPriorityMinimum", _MAX_GROUP_PRIORITY),
        ("versionPriority", _MAX_VERSION_PRIORITY),
    ):
        value = spec.get(field) or 0
        if not 0 < value <= limit:
            out.append(bad(f"spec.{field}", value, f"must be positive and less than {limit}"))
    service = spec.get("service")
    if service is None:
        if spec.get("caBundle"):
            message = "local APIServices may not have a caBundle"
            out.append(bad("spec.caBundle", f"{len(spec['caBundle'])} bytes", message))
        if spec.get("insecureSkipTLSVerify"):
            message = "local APIServices may not have insecureSkipTLSVerify"
            out.append(bad("spec.insecureSkipTLSVerify", True, message))
        return out
    for field in ("namespace", "name"):
        if not service.get(field):
            out.append(missing(f"spec.service.{field}"))
    if spec.get("insecureSkipTLSVerify") and spec.get("caBundle"):
        message = "may not be true if caBundle is present"
        out.append(bad("spec.insecureSkipTLSVerify", True, message))
    return out
