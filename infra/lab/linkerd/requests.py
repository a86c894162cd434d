"""What linkerd-identity asks of a Certify request before it looks whose token it is (pkg/identity/service.go)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from cryptography import x509

from infra.lab.linkerd import goasn1

if TYPE_CHECKING:
    from infra.lab.linkerd import wire


class RefusedError(Exception):
    """A Certify call that gets no certificate."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def parse(request: wire.CertifyRequest) -> x509.CertificateSigningRequest:
    """The CSR of a whole request; raises RefusedError."""
    for value, name in (
        (request.identity, "identity"),
        (request.token, "token"),
        (request.csr, "certificate signing request"),
    ):
        if not value:
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, f"missing {name}")
    try:
        return x509.load_der_x509_csr(request.csr)
    except ValueError as error:
        text = goasn1.sequence_error(request.csr, "certificateRequest") or f"asn1: structure error: {error}"
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, text) from error


def check(csr: x509.CertificateSigningRequest, identity: str) -> None:
    """One DNS name, the requested one; a CN only if it is the same; nothing else. Raises RefusedError."""
    try:
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    dns = names.get_values_for_type(x509.DNSName)
    common_names = [str(a.value) for a in csr.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    refusal = ""
    if len(dns) != 1:
        refusal = "CSR must have exactly one DNSName"
    elif dns[0] != identity:
        refusal = f"CSR name does not match requested identity: csr={dns[0]}; req={identity}"
    elif common_names and common_names[-1] not in ("", identity):
        refusal = f"invalid CommonName: {common_names[-1]}"
    elif names.get_values_for_type(x509.RFC822Name):
        refusal = "cannot validate email addresses"
    elif names.get_values_for_type(x509.IPAddress):
        refusal = "cannot validate IP addresses"
    elif names.get_values_for_type(x509.UniformResourceIdentifier):
        refusal = "cannot validate URIs"
    if refusal:
        raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, refusal)
