"""Reviews: questions about tokens, users and rights, answered with 201 and stored nowhere.

Kubernetes API reference, authentication.k8s.io/v1 and authorization.k8s.io/v1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .api import timestamp
from .rbac import Attributes
from .status import bad_request, invalid, invalid_value, required
from .tokens import InvalidTokenError
from .users import User

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from .authz import Authorizer
    from .status import Cause
    from .tokens import TokenVerifier

AUTHENTICATION = "authentication.k8s.io"
AUTHORIZATION = "authorization.k8s.io"
KINDS = (
    "TokenReview",
    "SelfSubjectReview",
    "SubjectAccessReview",
    "SelfSubjectAccessReview",
    "LocalSubjectAccessReview",
    "SelfSubjectRulesReview",
)

Body = dict[str, Any]


class Reviews:
    """Answers all review kinds."""

    def __init__(self, authorizer: Authorizer, tokens: TokenVerifier, now: Callable[[], datetime]) -> None:
        self._authorizer = authorizer
        self._tokens = tokens
        self._now = now

    def answer(self, kind: str, user: User, namespace: str, body: Body) -> Body:
        """The review with its status. `namespace` is that of the URL (LocalSubjectAccessReview).

        Raises ApiStatusError 422 or 400 for a question that is none.
        """
        spec: Body = body.get("spec") or {}
        match kind:
            case "TokenReview":
                return _review(kind, AUTHENTICATION, body, spec, self._token(spec))
            case "SelfSubjectReview":
                answer = _review(kind, AUTHENTICATION, body, None, {"userInfo": user.info()})
                answer["metadata"] = {**answer["metadata"], "creationTimestamp": timestamp(self._now())}
                return answer
            case "SelfSubjectAccessReview":
                _check_access(kind, spec, None)
                return _review(kind, AUTHORIZATION, body, spec, self._access(spec, user))
            case "SubjectAccessReview" | "LocalSubjectAccessReview":
                return self._subject_access(kind, namespace, body, spec)
            case "SelfSubjectRulesReview":
                return self._rules(user, body, spec)
        raise bad_request(f"no review of kind {kind}")

    def _token(self, spec: Body) -> Body:
        token = spec.get("token") or ""
        if not token:
            raise bad_request("token is required for TokenReview in authentication")
        try:
            user, audiences = self._tokens.verify(token, self._now().timestamp(), spec.get("audiences") or [])
        except InvalidTokenError as error:
            said = str(error)
            known = "" if said.startswith(("not a JSON", "the issuer", "the signature", "unexpected")) else said
            return {"user": {}, "error": f"[invalid bearer token, {known}]" if known else "invalid bearer token"}
        return {"authenticated": True, "user": user.info(), "audiences": audiences}

    def _subject_access(self, kind: str, namespace: str, body: Body, spec: Body) -> Body:
        subject = User(
            spec.get("user") or "", spec.get("uid") or "", tuple(spec.get("groups") or ()), spec.get("extra") or {}
        )
        _check_access(kind, spec, subject)
        if kind == "LocalSubjectAccessReview":
            asked = (spec.get("resourceAttributes") or {}).get("namespace") or ""
            given = (body.get("metadata") or {}).get("namespace") or namespace
            if given != namespace:
                text = "the namespace of the provided object does not match the namespace sent on the request"
                raise bad_request(text)
            if asked != given:
                cause = invalid_value(
                    "spec.resourceAttributes.namespace", f'"{asked}"', "must match metadata.namespace"
                )
                raise invalid("", "", [cause], AUTHORIZATION)
            body = {**body, "metadata": {**(body.get("metadata") or {}), "namespace": given}}
        return _review(kind, AUTHORIZATION, body, spec, self._access(spec, subject))

    def _access(self, spec: Body, user: User) -> Body:
        decision = self._authorizer.decide(_attributes(spec, user))
        return {"allowed": decision.allowed, **({"reason": decision.reason} if decision.reason else {})}

    def _rules(self, user: User, body: Body, spec: Body) -> Body:
        namespace = spec.get("namespace") or ""
        if not namespace:
            raise bad_request("no namespace on request")
        rules, errors = self._authorizer.rules(user, namespace)
        members = ("verbs", "apiGroups", "resources", "resourceNames")
        status: Body = {
            "resourceRules": [{m: r[m] for m in members if r.get(m)} for r in rules if r.get("resources")],
            "nonResourceRules": [
                {"verbs": r["verbs"], "nonResourceURLs": r["nonResourceURLs"]}
                for r in rules
                if r.get("nonResourceURLs")
            ],
            "incomplete": False,
        }
        if errors:
            status |= {"incomplete": True, "evaluationError": ", ".join(errors)}
        return _review("SelfSubjectRulesReview", AUTHORIZATION, body, {}, status)


def _review(kind: str, group: str, body: Body, spec: Body | None, status: Body) -> Body:
    metadata = {k: v for k, v in (body.get("metadata") or {}).items() if v is not None}
    out: Body = {"kind": kind, "apiVersion": f"{group}/v1", "metadata": metadata}
    if spec is not None:
        out["spec"] = spec
    return {**out, "status": status}


def _attributes(spec: Body, user: User) -> Attributes:
    path = spec.get("nonResourceAttributes")
    if path is not None:
        return Attributes(user, (path.get("verb") or "").lower(), path=path.get("path") or "/")
    asked = spec.get("resourceAttributes") or {}
    return Attributes(
        user,
        asked.get("verb") or "",
        asked.get("group") or "",
        asked.get("version") or "",
        asked.get("resource") or "",
        asked.get("subresource") or "",
        asked.get("namespace") or "",
        asked.get("name") or "",
    )


def _check_access(kind: str, spec: Body, subject: User | None) -> None:
    """One of the two sets of attributes, and for reviews of others, of whom."""
    causes: list[Cause] = []
    resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if kind == "LocalSubjectAccessReview" and path is not None:
        message = "disallowed on this kind of request"
        causes.append(invalid_value("spec.nonResourceAttributes", _shown(path), message))
    elif (resource is None) == (path is None):
        where = "spec.resourceAttributes" if resource is None else "spec.nonResourceAttributes"
        message = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        if resource is not None:
            message = "cannot be specified in combination with resourceAttributes"
        causes.append(invalid_value(where, "null" if resource is None else _shown(path), message))
    if subject is not None and not subject.username and not subject.groups:
        causes.append(required("spec.user", "at least one of user or group must be specified"))
    if causes:
        # The real server leaves the kind out of this message.
        raise invalid("", "", causes, AUTHORIZATION)


def _shown(path: Any) -> str:
    verb, url = (path or {}).get("verb", ""), (path or {}).get("path", "")
    return f'{{"path":"{url}","verb":"{verb}"}}'
