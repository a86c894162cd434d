"""CertificateSigningRequests: what the server fills in, what may change, and who may approve or sign.

Rules of certificates.k8s.io/v1 (Kubernetes documentation, "Certificates and Certificate Signing Requests"): the
requester is recorded by the server, the specification never changes, conditions Approved, Denied and Failed stay once
set, a certificate once issued stays. The signing itself is a controller's work.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from .admission_errors import refusal
from .go_json import quote
from .rbac import Attributes
from .status import (
    Cause,
    duplicate_value,
    forbidden_field,
    invalid,
    invalid_value,
    required,
    unsupported_value,
)
from .users import MASTERS

if TYPE_CHECKING:
    from .api import AdmissionAttributes
    from .authz import Authorizer
    from .users import User

GROUP = "certificates.k8s.io"
RESOURCE = f"certificatesigningrequests.{GROUP}"
API_SERVER_CLIENT = "kubernetes.io/kube-apiserver-client"
MIN_SECONDS = 600
_CONDITIONS = ("Approved", "Denied", "Failed")
_DECISIONS = ("Approved", "Denied")
USAGES = (
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
)
_SIGNER = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SIGNER_PATH = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


# What the server decides


def record_requester(obj: dict[str, Any], user: User) -> None:
    """Write down who asks, whatever the client claimed. In place; a new request starts with an empty status."""
    spec = obj.setdefault("spec", {})
    for name in ("username", "uid", "groups", "extra"):
        spec.pop(name, None)
    spec.update(user.info())
    obj["status"] = {}


def keep_fixed(new: dict[str, Any], old: dict[str, Any], subresource: str) -> None:
    """Put back what this path may not change: always the specification; all of the status but the part meant.

    `subresource` is "", "approval" (conditions only) or "status" (everything but Approved and Denied). In place.
    """
    new["spec"] = old.get("spec", {})
    before: dict[str, Any] = old.get("status") or {}
    wanted: dict[str, Any] = new.get("status") or {}
    if not subresource:
        new["status"] = before
        return
    conditions = list(wanted.get("conditions") or [])
    status = dict(before) if subresource == "approval" else dict(wanted)
    if subresource == "status":
        # Here an approval can neither come nor go: the stored ones replace whatever was sent.
        kept = [c for c in before.get("conditions") or [] if c.get("type") in _DECISIONS]
        conditions = [*kept, *(c for c in conditions if c.get("type") not in _DECISIONS)]
    status["conditions"] = conditions
    if not conditions:
        del status["conditions"]
    new["status"] = status


def stamp_conditions(new: dict[str, Any], old: dict[str, Any], now: str) -> None:
    """Fill in the times of conditions which came without: `now`, or the old transition's while nothing changed."""
    status = new.get("status") or {}
    before = {(c.get("type"), c.get("status")): c for c in (old.get("status") or {}).get("conditions") or []}
    stamped = []
    for condition in status.get("conditions") or []:
        same = before.get((condition.get("type"), condition.get("status")), {})
        times = {
            "lastUpdateTime": condition.get("lastUpdateTime") or now,
            "lastTransitionTime": condition.get("lastTransitionTime") or same.get("lastTransitionTime") or now,
        }
        stamped.append({**condition, **times})
    if stamped:
        new["status"] = {**status, "conditions": stamped}


# Validation


def validate(new: dict[str, Any], old: dict[str, Any] | None = None) -> None:
    """Raises ApiStatusError 422. Run it on creates and on all updates, on what would be stored."""
    causes: list[Cause] = []
    if old is None:
        causes += _specification(new.get("spec") or {})
    causes += _status(new.get("status") or {}, (old or {}).get("status") or {})
    if causes:
        raise invalid("CertificateSigningRequest", new["metadata"].get("name", ""), causes, GROUP)


def _specification(spec: dict[str, Any]) -> list[Cause]:
    causes: list[Cause] = []
    usages = spec.get("usages") or []
    if not usages:
        causes.append(required("spec.usages"))
    problem = _request_problem(spec.get("request") or "")
    if problem:
        # Go prints a []byte as a JSON string of its base64
        causes.append(invalid_value("spec.request", quote(spec.get("request") or ""), problem))
    for index, usage in enumerate(usages):
        if usage not in USAGES:
            causes.append(unsupported_value(f"spec.usages[{index}]", quote(usage), USAGES))
        if usage in usages[:index]:
            causes.append(duplicate_value(f"spec.usages[{index}]", quote(usage)))
    causes += _signer(spec.get("signerName") or "")
    seconds = spec.get("expirationSeconds")
    if seconds is not None and seconds < MIN_SECONDS:
        message = "may not specify a duration less than 600 seconds (10 minutes)"
        causes.append(invalid_value("spec.expirationSeconds", str(seconds), message))
    return causes


def _request_problem(encoded: str) -> str:
    try:
        data = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return "PEM block type must be CERTIFICATE REQUEST"
    if b"-----BEGIN CERTIFICATE REQUEST-----" not in data:
        return "PEM block type must be CERTIFICATE REQUEST"
    try:
        request = x509.load_pem_x509_csr(data)
        return "" if request.is_signature_valid else "x509: ECDSA verification failure"
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        return str(error)


def _signer(name: str) -> list[Cause]:
    path = "spec.signerName"
    if not name:
        return [required(path)]
    shown = quote(name)
    domain, slash, rest = name.partition("/")
    if not slash or "/" in rest:
        form = "must be a fully qualified domain and path of the form 'example.com/signer-name'"
        return [invalid_value(path, shown, form)]
    if not _SIGNER.fullmatch(domain) or "." not in domain:
        return [invalid_value(path, quote(domain), "should be a domain with at least two segments separated by dots")]
    if not _SIGNER_PATH.fullmatch(rest):
        return [invalid_value(path, quote(rest), "a lowercase RFC 1123 subdomain is expected")]
    if name == "kubernetes.io/legacy-unknown":
        return [invalid_value(path, shown, "the legacy signerName is not allowed via this API version")]
    return []


def _status(status: dict[str, Any], before: dict[str, Any]) -> list[Cause]:
    causes: list[Cause] = []
    conditions, old = status.get("conditions") or [], before.get("conditions") or []
    types = [condition.get("type", "") for condition in conditions]
    path = "status.conditions"
    for known in _CONDITIONS:
        if known in (c.get("type") for c in old) and known not in types:
            causes.append(forbidden_field(path, f"updates may not remove a condition of type {quote(known)}"))
    seen: set[str] = set()
    for index, condition in enumerate(conditions):
        kind, state = condition.get("type", ""), condition.get("status", "")
        at = f"{path}[{index}]"
        if not kind:
            causes.append(required(f"{at}.type"))
        if not state:
            causes.append(required(f"{at}.status"))
        elif kind in _CONDITIONS and state != "True":
            causes.append(unsupported_value(f"{at}.status", quote(state), ["True"]))
        elif state not in ("True", "False", "Unknown"):
            causes.append(unsupported_value(f"{at}.status", quote(state), ["False", "True", "Unknown"]))
        exclusive = {"Approved": "Denied", "Denied": "Approved"}.get(kind)
        if exclusive in seen:
            message = "Approved and Denied conditions are mutually exclusive"
            causes.append(invalid_value(path, quote(kind), message))
        if kind in seen:
            causes.append(duplicate_value(f"{at}.type", quote(kind)))
        seen.add(kind)
    return causes + _certificate(status.get("certificate"), before.get("certificate"))


def _certificate(encoded: str | None, before: str | None) -> list[Cause]:
    path, shown = "status.certificate", '"<certificate data>"'
    if encoded == before:
        return []
    if before:
        message = "updates may not change an already issued certificate" if encoded else "updates may not clear it"
        return [forbidden_field(path, message)]
    try:
        data = base64.b64decode(encoded or "", validate=True)
        blocks = re.findall(rb"-----BEGIN ([A-Z ]+)-----", data)
    except binascii.Error:
        blocks = []
    if not blocks:
        return [invalid_value(path, shown, "must contain at least one CERTIFICATE PEM block")]
    if any(block != b"CERTIFICATE" for block in blocks):
        other = next(block for block in blocks if block != b"CERTIFICATE").decode()
        message = f'only CERTIFICATE PEM blocks are allowed, found "{other}"'
        return [invalid_value(path, shown, message)]
    try:
        x509.load_pem_x509_certificates(data)
    except ValueError as error:
        return [invalid_value(path, shown, str(error))]
    return []


# Who may


def check_rights(attributes: AdmissionAttributes, authorizer: Authorizer) -> None:
    """Raises ApiStatusError 403: approving and signing need a right on the signer, and nobody asks for system:masters.

    The right is verb approve or sign on resource signers, named ``example.com/name`` or ``example.com/*``.
    """
    if attributes.kind.resource != RESOURCE or attributes.obj is None:
        return
    if attributes.operation == "CREATE":
        _subject(attributes, attributes.obj.get("spec") or {})
        return
    signer = ((attributes.old or {}).get("spec") or {}).get("signerName", "")
    if attributes.subresource == "approval":
        verb = "approve"
    elif attributes.subresource == "status" and _signs(attributes.obj, attributes.old or {}):
        verb = "sign"
    else:
        return
    domain = signer.partition("/")[0]
    asked = (
        Attributes(attributes.user, verb, GROUP, "v1", "signers", "", "", name) for name in (signer, f"{domain}/*")
    )
    if not any(authorizer.decide(question).allowed for question in asked):
        raise refusal(attributes, f"user not permitted to {verb} requests with signerName {quote(signer)}")


def _signs(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether an update of the status issues a certificate or declares the request failed."""

    def outcome(obj: dict[str, Any]) -> tuple[Any, bool]:
        status = obj.get("status") or {}
        failed = any(c.get("type") == "Failed" for c in status.get("conditions") or [])
        return status.get("certificate"), failed

    return outcome(new) != outcome(old)


def _subject(attributes: AdmissionAttributes, spec: dict[str, Any]) -> None:
    if spec.get("signerName") != API_SERVER_CLIENT:
        return
    try:
        request = x509.load_pem_x509_csr(base64.b64decode(spec.get("request") or "", validate=True))
    except (ValueError, binascii.Error):
        return  # validation will say so
    groups = [str(a.value) for a in request.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    if MASTERS in groups:
        raise refusal(attributes, f"use of {API_SERVER_CLIENT} signer with {MASTERS} group is not allowed")
