"""CertificateSigningRequests: approve kubelets' own client requests, sign what is approved for the built-in signers.

Rules: https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/ ("Kubernetes signers").
The signing CA is two files of which the certificate file holds exactly one certificate, as
--cluster-signing-cert-file demands; they are read for every signature, so that a changed CA signs from the next
request on.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID, ObjectIdentifier

from infra.lab.client import key_of
from infra.lab.controllers import pods
from infra.lab.controllers.framework import Context, Controller, path_of

if TYPE_CHECKING:
    from pathlib import Path

    from infra.lab.client import Key

JSON = dict[str, Any]
REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
API_CLIENT = "kubernetes.io/kube-apiserver-client"
KUBELET_CLIENT = "kubernetes.io/kube-apiserver-client-kubelet"
KUBELET_SERVING = "kubernetes.io/kubelet-serving"
LEGACY = "kubernetes.io/legacy-unknown"
BACKDATE = timedelta(minutes=5)
DEFAULT_LIFE = timedelta(days=365)

_EXTENDED: dict[str, ObjectIdentifier] = {
    "any": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    "server auth": ExtendedKeyUsageOID.SERVER_AUTH,
    "client auth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "code signing": ExtendedKeyUsageOID.CODE_SIGNING,
    "email protection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "s/mime": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "timestamping": ExtendedKeyUsageOID.TIME_STAMPING,
    "ocsp signing": ExtendedKeyUsageOID.OCSP_SIGNING,
}
_BASIC = {
    "signing": "digital_signature",
    "digital signature": "digital_signature",
    "content commitment": "content_commitment",
    "key encipherment": "key_encipherment",
    "data encipherment": "data_encipherment",
    "key agreement": "key_agreement",
    "cert sign": "key_cert_sign",
    "crl sign": "crl_sign",
    "encipher only": "encipher_only",
    "decipher only": "decipher_only",
}

_SUBJECT_ORDER = (
    NameOID.COUNTRY_NAME,
    NameOID.ORGANIZATION_NAME,
    NameOID.ORGANIZATIONAL_UNIT_NAME,
    NameOID.LOCALITY_NAME,
    NameOID.STATE_OR_PROVINCE_NAME,
    NameOID.STREET_ADDRESS,
    NameOID.POSTAL_CODE,
    NameOID.COMMON_NAME,
    NameOID.SERIAL_NUMBER,
)


class InvalidRequestError(Exception):
    """The signer cannot honour the request; the text becomes the message of its Failed condition."""


class CsrApprover:
    """Approves client requests of kubelets whose requester may make them, as the access review says."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.requests = context.informer(REQUESTS)
        self.controller = Controller("CSR approver", self.reconcile, workers=2)

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.requests.on_change(lambda _, __, new: self.controller.add(key_of(new)))
        return self.controller

    async def reconcile(self, key: Key) -> None:
        """Decide on one request, or leave it to a person."""
        item = self.requests.objects.get(key)
        if item is None or _conditions(item) or item["spec"]["signerName"] != KUBELET_CLIENT:
            return
        try:
            request = _parse(item)
            _check_kubelet_client(request, item["spec"].get("usages") or [])
        except InvalidRequestError:
            return
        own = _common_name(request) == item["spec"].get("username")
        for subresource, message in (
            [("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.")]
            if own
            else []
        ) + [("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.")]:
            if await self._allowed(item["spec"], subresource):
                fresh = {"type": "Approved", "status": "True", "reason": "AutoApproved", "message": message}
                status = {**(item.get("status") or {}), "conditions": [fresh]}
                path = f"{path_of(REQUESTS, item)}/approval"
                self.requests.observe(await self.context.client.replace(path, {**item, "status": status}))
                return

    async def _allowed(self, spec: JSON, subresource: str) -> bool:
        attributes = {
            "group": "certificates.k8s.io",
            "resource": "certificatesigningrequests",
            "verb": "create",
            "subresource": subresource,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": spec.get("username", ""),
                "groups": spec.get("groups") or [],
                "uid": spec.get("uid", ""),
                "extra": spec.get("extra") or {},
                "resourceAttributes": attributes,
            },
        }
        answer = await self.context.client.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer["status"].get("allowed"))


class CsrSigner:
    """Signs approved requests."""

    def __init__(self, context: Context, certificate: Path, key: Path) -> None:
        self.context = context
        self.certificate = certificate
        self.key = key
        self.requests = context.informer(REQUESTS)
        self.controller = Controller("CSR signer", self.reconcile, workers=2)

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.requests.on_change(lambda _, __, new: self.controller.add(key_of(new)))
        return self.controller

    async def reconcile(self, key: Key) -> None:
        """Sign one request, or mark it failed."""
        item = self.requests.objects.get(key)
        if item is None or (item.get("status") or {}).get("certificate"):
            return
        conditions = _conditions(item)
        if conditions.get("Approved") != "True" or "Denied" in conditions or "Failed" in conditions:
            return
        if item["spec"]["signerName"] not in (API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY):
            return
        status = dict(item.get("status") or {})
        try:
            status["certificate"] = base64.b64encode(self._sign(item)).decode()
        except InvalidRequestError as error:
            moment = pods.timestamp()
            failed = {
                "type": "Failed",
                "status": "True",
                "reason": "SignerValidationFailure",
                "message": str(error),
                "lastUpdateTime": moment,
                "lastTransitionTime": moment,
            }
            status["conditions"] = [*(status.get("conditions") or []), failed]
        await self.context.write_status(REQUESTS, item, status)

    def _sign(self, item: JSON) -> bytes:
        request = _parse(item)
        spec = item["spec"]
        usages = spec.get("usages") or []
        check = {
            API_CLIENT: _check_api_client,
            KUBELET_CLIENT: _check_kubelet_client,
            KUBELET_SERVING: _check_kubelet_serving,
        }.get(spec["signerName"])
        if check is not None:
            check(request, usages)
        authorities = x509.load_pem_x509_certificates(self.certificate.read_bytes())
        if len(authorities) != 1:
            raise InvalidRequestError(
                f"error reading CA cert file {self.certificate}: expected 1 certificate, found {len(authorities)}"
            )
        private = serialization.load_pem_private_key(self.key.read_bytes(), None)
        if not isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
            raise InvalidRequestError(f"the CA key {self.key} is of a kind that signs no certificates")
        return sign(request, usages, spec.get("expirationSeconds"), authorities[0], private, datetime.now(UTC))


def sign(
    request: x509.CertificateSigningRequest,
    usages: list[str],
    seconds: int | None,
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
    now: datetime,
) -> bytes:
    """The certificate in PEM: backdated by five minutes, ending `seconds` from now (a year if None), never after the
    CA.
    """
    now = now.replace(microsecond=0)
    life = timedelta(seconds=seconds) if seconds else DEFAULT_LIFE
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(request.subject))
        .issuer_name(authority.subject)
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(min(now + life, authority.not_valid_after_utc))
    )
    basic = {_BASIC[u]: True for u in usages if u in _BASIC}
    if basic:
        names = {*_BASIC.values()}
        builder = builder.add_extension(
            x509.KeyUsage(**{name: basic.get(name, False) for name in names}), critical=True
        )
    extended = [_EXTENDED[u] for u in usages if u in _EXTENDED]
    if extended:
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_authority_key_identifier(authority), critical=False)
    names_wanted = _alternative_names(request)
    if names_wanted is not None:
        builder = builder.add_extension(names_wanted, critical=not list(request.subject))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def _subject(asked: x509.Name) -> x509.Name:
    """The subject as Go's x509 package writes it again after parsing: values of one kind share one RDN."""
    rdns = []
    for oid in _SUBJECT_ORDER:
        values = list(dict.fromkeys(asked.get_attributes_for_oid(oid)))
        if oid in (NameOID.COMMON_NAME, NameOID.SERIAL_NUMBER):
            values = values[-1:]
        if values:
            rdns.append(x509.RelativeDistinguishedName(values))
    return x509.Name(rdns)


def _authority_key_identifier(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        known = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        # a CA key signs
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)


def _alternative_names(request: x509.CertificateSigningRequest) -> x509.SubjectAlternativeName | None:
    try:
        return request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def _parse(item: JSON) -> x509.CertificateSigningRequest:
    try:
        request = x509.load_pem_x509_csr(base64.b64decode(item["spec"]["request"]))
    except ValueError as error:
        raise InvalidRequestError(f"unable to parse csr {item['metadata']['name']!r}: {error}") from error
    if not request.is_signature_valid:
        raise InvalidRequestError("the signature of the request does not match its key")
    return request


def _conditions(item: JSON) -> dict[str, str]:
    return {c["type"]: c["status"] for c in (item.get("status") or {}).get("conditions") or []}


def _common_name(request: x509.CertificateSigningRequest) -> str:
    return next((str(a.value) for a in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)), "")


def _check_api_client(_: x509.CertificateSigningRequest, usages: list[str]) -> None:
    for usage in usages:
        if usage not in ("digital signature", "key encipherment", "client auth"):
            raise InvalidRequestError(f"invalid usage for client certificate: {usage}")
    if "client auth" not in usages:
        raise InvalidRequestError("missing required usage for client certificate: client auth")


def _check_node(request: x509.CertificateSigningRequest) -> None:
    organizations = [str(a.value) for a in request.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    if organizations != ["system:nodes"]:
        raise InvalidRequestError("subject organization is not system:nodes")
    if not _common_name(request).startswith("system:node:"):
        raise InvalidRequestError("subject common name does not begin with system:node:")


def _check_usages(usages: list[str], purpose: str) -> None:
    if set(usages) not in ({"digital signature", purpose}, {"digital signature", "key encipherment", purpose}):
        raise InvalidRequestError(f"usages did not match [digital signature key encipherment {purpose}]")


def _check_kubelet_client(request: x509.CertificateSigningRequest, usages: list[str]) -> None:
    _check_node(request)
    for extension in request.extensions:
        if extension.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME:
            raise InvalidRequestError("subjectAltNames are not allowed")
    _check_usages(usages, "client auth")


def _check_kubelet_serving(request: x509.CertificateSigningRequest, usages: list[str]) -> None:
    _check_node(request)
    names = _alternative_names(request)
    if names is None or not any(isinstance(name, x509.DNSName | x509.IPAddress) for name in names):
        raise InvalidRequestError("DNS or IP subjectAltName is required")
    if not all(isinstance(name, x509.DNSName | x509.IPAddress) for name in names):
        raise InvalidRequestError("email and URI subjectAltNames are not allowed")
    _check_usages(usages, "server auth")
